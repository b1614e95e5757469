"""How long healthy generations wait for their submits, in calm and under partial faults.

Pure: works on `Records` alone. Submit times are the provider's, times of acceptance the database's;
both run on the machine's clock, which no strike shifts.
"""

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import median

from models.lifecycle import Event
from tests.chaos.records import Records, number_of
from tests.chaos.strikes import NOT_STRIKES, Note

MULTIPLE = 5.0
"""How many times its calm time a healthy generation may wait under partial faults."""
ALLOWANCE = 10.0
"""Seconds on top of that, for a busy machine and for the backoff after one refusal."""
MIN_CALM = 10
"""Minimum number of calm waits; their median is the calm time."""


@dataclass(frozen=True)
class Wait:
    """How long one generation waited for a submit. Times are seconds since 1970."""

    number: int
    what: str
    began: float
    ended: float | None
    """None if the submit never came."""

    @property
    def seconds(self) -> float:
        return math.inf if self.ended is None else self.ended - self.began


@dataclass(frozen=True)
class Liveness:
    """The waits of one run, measured."""

    calm: Sequence[Wait]
    """Waits that began and ended in the calm stage."""
    judged: Sequence[Wait]
    """Waits during which only partial faults were active."""
    measured: bool
    """Whether the run had a stage of partial faults at all."""

    @property
    def calm_time(self) -> float:
        """Return the median of the calm waits, in seconds."""
        return median(wait.seconds for wait in self.calm) if self.calm else 0.0

    @property
    def bound(self) -> float:
        """Return the longest wait that is allowed under partial faults, in seconds."""
        return MULTIPLE * self.calm_time + ALLOWANCE

    @property
    def late(self) -> list[Wait]:
        """Return the judged waits that are longer than the bound."""
        return [wait for wait in self.judged if wait.seconds > self.bound]

    def summary(self) -> str:
        """Describe calm time, bound and longest wait in one line."""
        if not self.measured:
            return "not measured"
        longest = max((wait.seconds for wait in self.judged), default=0.0)
        return (
            f"calm time {self.calm_time:.2f} s ({len(self.calm)} waits), bound {self.bound:.1f} s;"
            f" {len(self.judged)} waits under partial faults, the longest {longest:.1f} s,"
            f" {len(self.late)} too long"
        )


def measure(records: Records) -> Liveness:
    """Return the waits of the calm stage, and those of the stage with partial faults.

    A wait that ends in time is judged if it lies within the stage. One that does not is judged if
    the whole bound lies within the stage. A wait that a strike or a restart overlaps is not judged.
    """
    calm_stages = _stages(records, "calm")
    stages = _stages(records, "partial")
    waits = list(_waits(records))
    calm = [
        wait
        for wait in waits
        for start, end in calm_stages
        if wait.ended is not None and start <= wait.began and wait.ended <= end
    ]
    found = Liveness(calm, [], bool(stages))
    strikes = [
        note
        for note in records.journal.notes
        if note.kind not in NOT_STRIKES or note.kind in ("restart", "DIED")
    ]
    judged = [wait for wait in waits if _can_be_judged(wait, found.bound, stages, strikes)]
    return replace(found, judged=judged)


def _can_be_judged(
    wait: Wait, bound: float, stages: list[tuple[float, float]], strikes: list[Note]
) -> bool:
    last = wait.began + min(wait.seconds, bound)
    return any(start <= wait.began and last <= end for start, end in stages) and not any(
        note.at <= last and wait.began <= note.until for note in strikes
    )


def _stages(records: Records, name: str) -> list[tuple[float, float]]:
    """Return start and end of each stage of that name, in seconds since 1970."""
    notes = records.journal.of("stage")
    ends = [*(note.at for note in notes[1:]), math.inf][: len(notes)]
    return [(note.at, end) for note, end in zip(notes, ends, strict=True) if note.detail == name]


def _waits(records: Records) -> Iterator[Wait]:
    submits = defaultdict(list)
    for submit in sorted(records.submits, key=lambda submit: submit["time"]):
        submits[number_of(submit["body"])].append(submit)
    healthy = {order.number for order in records.orders if order.healthy}
    for row in records.rows:
        if row.number not in healthy:
            continue
        mine = submits[row.number]
        accepted = [e["at"].timestamp() for e in row.events if e["event"] == Event.ACCEPT]
        times = [float(submit["time"]) for submit in mine[:2]] + [None, None]
        if accepted:
            yield Wait(row.number, "its first submit", accepted[0], times[0])
        if mine and mine[0]["fault"] == "service_busy":
            yield Wait(row.number, "its second submit", times[0] or 0.0, times[1])
