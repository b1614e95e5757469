"""The searches: each bounds a part of the protocol, small enough to be searched whole."""

from dataclasses import replace

from tests.model.scenario import Scenario
from tests.model.state import Left

_FAULTS = Left(decline=1, partial=1, fooled=1)

SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario("drawn seeds", left=_FAULTS),
        Scenario("drawn seeds, a cancel", left=_FAULTS._replace(cancel=1)),
        Scenario("drawn seeds, two generations", generations=2, attempts=1),
        Scenario("drawn seeds, an operator", attempts=3, left=Left(operator=1)),
        Scenario("seeds not shown", seeds_shown=False, left=Left(operator=1)),
        Scenario("a fixed seed, a foreign task", fixed_seed=True, left=Left(foreign=1)),
        Scenario(
            "a fixed seed, the key ours",
            fixed_seed=True,
            key_exclusive=True,
            left=_FAULTS._replace(cancel=1),
        ),
        Scenario(
            "equal fixed seeds, the key ours",
            generations=2,
            fixed_seed=True,
            key_exclusive=True,
            attempts=1,
            left=Left(operator=1),
            decisions=("fail",),
        ),
        Scenario("created too late", left=Left(late=1)),
        Scenario(
            "created too late, a fixed seed", fixed_seed=True, key_exclusive=True, left=Left(late=1)
        ),
        Scenario("asleep between check and write", left=Left(pause=1)),
    )
}


def wider(scenario: Scenario) -> Scenario:
    """The same with larger bounds: longer times, one more attempt, every fault once more."""
    return replace(
        scenario,
        send_budget=1,
        attempts=scenario.attempts + 1,
        left=scenario.left._replace(cancel=1, decline=1, partial=scenario.left.partial + 1),
    )
