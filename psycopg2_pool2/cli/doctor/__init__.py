"""Connect to every server behind a dsn, and tell what a pool will find there."""

from __future__ import annotations

import argparse
import sys

from psycopg2_pool2.text import in_one_line

from ..output import standard_output, write_json
from ..parser import number
from ..where import add_dsn, server_params
from .advise import advise
from .capacity import Plan
from .collect import examine
from .facts import as_json
from .render import complaints, report


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the doctor takes."""
    add_dsn(parser, "libpq's own default")
    parser.add_argument(
        "--processes",
        metavar="N",
        type=number(int, 1, 1e6),
        help="how many processes will have such a pool",
    )
    parser.add_argument(
        "--maxconn", metavar="M", type=number(int, 1, 1e6), help="the maxconn of each pool"
    )
    parser.add_argument(
        "--timeout",
        metavar="SECONDS",
        type=number(float, 0.1, 3600),
        default=10.0,
        help="seconds to wait for the name servers, and then for the servers (%(default)g)",
    )
    parser.add_argument("--json", action="store_true", help="write one JSON document")
    parser.epilog = (
        "Exit status: 0 if all is fine, 1 if problems were found (an endpoint that cannot be"
        " reached, a setting that the pool will suffer from, too many connections), 2 if the"
        " command line or the dsn cannot be read."
    )


def run(arguments: argparse.Namespace) -> int:
    """Examine, judge and tell; return 0 if there is no problem."""
    examination = examine(server_params(arguments.dsn), arguments.timeout)
    findings = advise(examination, Plan(arguments.processes, arguments.maxconn))
    if not any(endpoint.server for endpoint in examination.endpoints):
        for complaint in complaints(examination):
            print(f"psycopg2_pool2 doctor: {in_one_line(complaint)}", file=sys.stderr)
    elif not arguments.json:
        standard_output().show(report(examination, findings))
    if arguments.json:
        write_json(as_json(examination, findings))
    return int(any(finding.severity == "problem" for finding in findings))
