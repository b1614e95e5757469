"""What a run measures, in which order, and for how long it may."""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.producing import Seconds


@dataclass(frozen=True)
class Plan:
    """One form of a run. `--quick` and `--full` are the others."""

    form: str
    minutes: float
    """What would not fit in is left out, and said so."""
    rounds: int
    """Of enqueuing and of instant tasks."""
    instant: int
    idle: int
    """Single ones, for the time from enqueuing to submission."""
    singles: int
    bulk: int
    seconds: Seconds
    """What a task takes that is followed."""
    beside: int
    """In flight with all contenders side by side: so few that the machine is mostly idle."""
    alone: tuple[int, ...]
    """In flight with one contender at a time."""
    alone_for_service: tuple[int, ...]
    """The same, for this service alone."""
    within: float
    """Seconds in which all must be submitted, or it counts as not reached."""
    killed: int
    """Generations at the blow; 0: no blow."""
    killed_seconds: Seconds
    killed_within: float
    trouble: int
    """Rounds of the section "In trouble"; 0 leaves it out."""


USUAL = Plan(
    form="usual",
    minutes=31,
    rounds=2,
    instant=1_000,
    idle=6,
    singles=200,
    bulk=20_000,
    seconds=(60, 120),
    beside=100,
    alone=(1_000,),
    alone_for_service=(10_000,),
    within=200,
    killed=200,
    killed_seconds=(10, 20),
    killed_within=140,
    trouble=1,
)

FULL = dataclasses.replace(USUAL, form="full", minutes=87, rounds=3, alone=(1_000, 10_000))

QUICK = Plan(
    form="quick",
    minutes=4,
    rounds=1,
    instant=300,
    idle=5,
    singles=50,
    bulk=5_000,
    seconds=(10, 15),
    beside=50,
    alone=(),
    alone_for_service=(),
    within=60,
    killed=0,
    killed_seconds=(5, 10),
    killed_within=60,
    trouble=0,
)


def changed(plan: Plan, changes: Sequence[str]) -> Plan:
    """The plan with other numbers, each as `name=3` or `name=[1, 2]`. Raises ValueError."""
    values = {}
    for change in changes:
        name, _, text = change.partition("=")
        now = vars(plan).get(name)
        if now is None or name == "form":
            raise ValueError(f"{change!r}: there is no {name!r}; there are {', '.join(vars(plan))}")
        try:
            value = json.loads(text)
        except ValueError:
            raise ValueError(f"{change!r} is not written as {name}={json.dumps(now)}") from None
        if isinstance(value, list) != isinstance(now, tuple) or isinstance(value, (str, dict)):
            raise ValueError(f"{change!r} is not written as {name}={json.dumps(now)}")
        values[name] = tuple(value) if isinstance(value, list) else value
    return dataclasses.replace(plan, **values)
