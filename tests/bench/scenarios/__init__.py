"""The scenarios, one module each."""

from tests.bench.harness import Scenario
from tests.bench.scenarios import (
    adaptive,
    database,
    fleet,
    healing,
    idle,
    imports,
    many_pools,
    oversubscribed,
    spike,
    spread,
    tasks,
    tested,
    threads,
)

_MODULES = (
    idle,
    tested,
    threads,
    oversubscribed,
    spike,
    many_pools,
    imports,
    spread,
    adaptive,
    fleet,
    database,
    tasks,
)

SCENARIOS: dict[str, Scenario] = {
    scenario.name: scenario
    for scenario in (*(module.SCENARIO for module in _MODULES), *healing.SCENARIOS)
}


def chosen(name: str) -> list[str]:
    """Return the names of the scenarios that are meant: the one, or a family's."""
    return [each for each in SCENARIOS if each == name or each.startswith(f"{name}-")]
