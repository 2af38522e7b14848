"""contrib.django passes Django's own tests of what it touches; `make stress` runs more of them."""

from __future__ import annotations

import pytest

from psycopg2_pool2.contrib.embedded import Server
from tests.support.django_source import run_django_tests

# What concerns connections and transactions, and is fast.
LABELS = (
    "backends",
    "dbshell",
    "get_or_create",
    "handlers",
    "multiple_database",
    "select_for_update",
    "test_utils",
    "timezones",
    "transaction_hooks",
    "transactions",
)


@pytest.mark.timeout(240)  # the first time they are fetched
def test_djangos_own_tests_pass(server: Server) -> None:
    assert run_django_tests(server, *LABELS, seconds=100) > 700
