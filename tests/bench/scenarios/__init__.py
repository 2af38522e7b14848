"""The scenarios, one module each."""

from tests.bench.harness import Scenario
from tests.bench.scenarios import (
    idle,
    imports,
    many_pools,
    oversubscribed,
    spike,
    tested,
    threads,
)

SCENARIOS: dict[str, Scenario] = {
    module.SCENARIO.name: module.SCENARIO
    for module in (idle, tested, threads, oversubscribed, spike, many_pools, imports)
}
