"""The dashboard, the alerts and the table of metrics name what is shown, and all of it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser as promql
import pytest

from psycopg2_pool2.contrib import prometheus
from psycopg2_pool2.stats import Counters

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "metrics.rst").read_text()
DASHBOARD: dict[str, Any] = json.loads((DOCS / "grafana-dashboard.json").read_text())
PANELS: list[dict[str, Any]] = DASHBOARD["panels"]
GRAPHS = [panel for panel in PANELS if panel["type"] != "row"]

ADDED_BY_PROMETHEUS = {"instance", "job"}
# What Grafana fills in before Prometheus sees it.
FILLED_IN = {"$__rate_interval": "1m", "$__range": "1h", "$instance": ".*", "$pool": ".*"}
SUFFIXES = {"counter": ["_total"], "gauge": [""], "histogram": ["_bucket", "_count", "_sum"]}


def shown() -> dict[str, set[str]]:
    """Return the names that Prometheus gets, each with its labels."""
    found: dict[str, set[str]] = {}
    for family in prometheus.PoolCollector().describe():
        _, _, labels = prometheus._FAMILIES[family.name.removeprefix(prometheus.PREFIX)]
        for suffix in SUFFIXES[family.type]:
            own = {*labels, "le"} if suffix == "_bucket" else {*labels}
            found[family.name + suffix] = own | ADDED_BY_PROMETHEUS
    return found


SHOWN = shown()


def expressions() -> Iterator[str]:
    """Yield all PromQL that the documentation has."""
    for panel in GRAPHS:
        yield from (target["expr"] for target in panel["targets"])
    yield from re.findall(r"^ +expr: (.+)$", PAGE, re.M)
    for code in re.findall(r"code-block:: promql\n\n((?: +.*\n)+)", PAGE):
        yield code.strip()


EXPRESSIONS = list(expressions())


def parsed(expression: str) -> Any:
    for name, value in FILLED_IN.items():
        expression = expression.replace(name, value)
    assert "$" not in expression
    return promql.parse(expression)


def parts(node: Any, kind: Any) -> Iterator[Any]:
    """Yield the parts of an expression that are of this kind."""
    if isinstance(node, kind):
        yield node
    for name in ("expr", "lhs", "rhs", "vector_selector", "vs", "param"):
        inner = getattr(node, name, None)
        if inner is not None:
            yield from parts(inner, kind)
    for inner in getattr(node, "args", None) or ():
        yield from parts(inner, kind)


def test_there_are_expressions() -> None:
    assert len(EXPRESSIONS) > 30


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_an_expression_names_what_is_shown(expression: str) -> None:
    tree = parsed(expression)
    selectors = list(parts(tree, promql.VectorSelector))
    assert len(selectors) == expression.count(prometheus.PREFIX)
    for selector in selectors:
        assert selector.name in SHOWN, expression
        assert {m.name for m in selector.matchers.matchers} <= SHOWN[selector.name], expression
        for matcher in selector.matchers.matchers:
            if matcher.name == "state":
                assert matcher.value in {"in_use", "open", "half-open"}


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_an_expression_groups_by_labels_that_are_there(expression: str) -> None:
    for aggregate in parts(parsed(expression), promql.AggregateExpr):
        for selector in parts(aggregate, promql.VectorSelector):
            grouped = set(aggregate.modifier.labels) if aggregate.modifier else set()
            assert grouped <= SHOWN[selector.name]


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_a_rate_is_one_of_what_only_grows(expression: str) -> None:
    for call in parts(parsed(expression), promql.Call):
        if call.func.name in ("rate", "increase"):
            [selector] = parts(call, promql.VectorSelector)
            assert selector.name.endswith(("_total", "_bucket", "_count", "_sum"))
        if call.func.name == "histogram_quantile":
            [selector] = parts(call, promql.VectorSelector)
            [aggregate] = parts(call, promql.AggregateExpr)
            assert selector.name.endswith("_bucket")
            assert "le" in aggregate.modifier.labels


def test_the_dashboard_shows_every_metric_but_what_the_others_say() -> None:
    named = {
        selector.name.removesuffix("_bucket")
        for panel in GRAPHS
        for target in panel["targets"]
        for selector in parts(parsed(target["expr"]), promql.VectorSelector)
    }
    families = {family.removesuffix("_bucket") for family in SHOWN}
    missing = {name for name in families - named if not name.endswith(("_count", "_sum"))}
    rest = ("queued_seconds_total", "endpoint_connect_seconds")
    assert missing == {prometheus.PREFIX + name for name in rest}


class TestDashboard:
    """What Grafana needs to import it."""

    def test_has_a_name_and_a_version_of_its_schema(self) -> None:
        assert DASHBOARD["id"] is None, "Grafana chooses it"
        assert re.fullmatch("[a-zA-Z0-9-]{1,40}", DASHBOARD["uid"])
        assert DASHBOARD["title"]
        assert DASHBOARD["schemaVersion"] >= 36

    def test_asks_for_the_data_source_and_for_what_to_show(self) -> None:
        source, *others = DASHBOARD["templating"]["list"]
        assert (source["name"], source["type"], source["query"]) == (
            "datasource",
            "datasource",
            "prometheus",
        )
        assert [(v["name"], v["multi"], v["includeAll"]) for v in others] == [
            ("pool", True, True),
            ("instance", True, True),
        ]
        for variable in others:
            found = re.fullmatch(r"label_values\((\w+)(\{.*\})?, (\w+)\)", variable["definition"])
            assert found is not None
            assert variable["name"] == found[3]
            assert found[3] in SHOWN[found[1]]

    def test_names_no_data_source_of_its_own(self) -> None:
        targets = [target for panel in GRAPHS for target in panel["targets"]]
        for part in [*GRAPHS, *targets, *DASHBOARD["templating"]["list"][1:]]:
            assert part["datasource"] == {"type": "prometheus", "uid": "${datasource}"}

    def test_is_restricted_to_what_was_chosen(self) -> None:
        for panel in GRAPHS:
            for target in panel["targets"]:
                for selector in parts(parsed(target["expr"]), promql.VectorSelector):
                    assert {"pool", "instance"} <= {m.name for m in selector.matchers.matchers}

    def test_has_panels_that_do_not_overlap(self) -> None:
        assert len({panel["id"] for panel in PANELS}) == len(PANELS)
        taken: set[tuple[int, int]] = set()
        for panel in PANELS:
            place = panel["gridPos"]
            cells = {
                (x, y)
                for x in range(place["x"], place["x"] + place["w"])
                for y in range(place["y"], place["y"] + place["h"])
            }
            assert max(x for x, _ in cells) < 24
            assert not cells & taken, panel["title"]
            taken |= cells

    def test_says_of_each_panel_what_it_is(self) -> None:
        assert len({panel["title"] for panel in PANELS}) == len(PANELS)
        for panel in GRAPHS:
            assert panel["description"].endswith(".")
            references = [target["refId"] for target in panel["targets"]]
            assert len(set(references)) == len(references)
            assert panel["fieldConfig"]["defaults"]


class TestTable:
    """The page's table of metrics."""

    ROWS = re.findall(r"^   \* - ``(\w+)``(?: \((.*)\))?\n     - (\w+)", PAGE, re.M)

    def test_has_every_metric_once(self) -> None:
        named = [prometheus.PREFIX + name for name, _, _ in self.ROWS]
        ends = {name.removesuffix("_bucket") for name in SHOWN}
        assert sorted(named) == sorted(x for x in ends if not x.endswith(("_count", "_sum")))

    def test_tells_the_types(self) -> None:
        types = {f.name: f.type for f in prometheus.PoolCollector().describe()}
        for name, _, kind in self.ROWS:
            assert types[prometheus.PREFIX + name.removesuffix("_total")] == kind.lower()

    def test_tells_what_get_stats_calls_it(self) -> None:
        told = {name: re.findall(r"``(\w+)``", figures) for name, figures, _ in self.ROWS}
        for figure, family in prometheus._FIGURES.items():
            assert told.get(family) == [figure] or told[family + "_total"] == [figure]

    def test_leaves_out_no_counter_of_the_pool(self) -> None:
        assert [name for name in Counters.NAMES if f"``{name}``" not in PAGE] == []


def test_the_page_tells_all_metrics_of_opentelemetry() -> None:
    from psycopg2_pool2.contrib import opentelemetry

    names = {"count", *opentelemetry._HISTOGRAMS, *opentelemetry._GAUGES, *opentelemetry._COUNTERS}
    rows = re.findall(r"^   \* - ``db\.client\.connection\.([\w.]+)``$", PAGE, re.M)
    assert sorted(rows) == sorted(names)
