"""Measure conditions: one after the other, or several side by side where they mostly wait."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from benchmarks.arena import Host, host
from benchmarks.cells import Figures
from benchmarks.trouble.conditions import CONDITIONS, Condition
from benchmarks.trouble.contenders import CONTENDERS

SIDE_BY_SIDE = 3
"""How many conditions that mostly wait are measured at a time."""


@dataclass(frozen=True)
class Job:
    """One contender under one condition."""

    condition: Condition
    contender: str
    round: int


Record = Callable[[Job, Callable[[], Figures]], None]
"""Measures a job and stores its figures; does not raise."""


def select(names: Sequence[str]) -> list[Condition]:
    """Return conditions by name, each with its baseline. Raises ValueError for an unknown name."""
    known = {condition.name: condition for condition in CONDITIONS}
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"no condition {', '.join(unknown)}; there are {', '.join(known)}")
    wanted = set(names) | {known[name].baseline for name in names}
    return [condition for condition in CONDITIONS if condition.name in wanted]


def run(
    conditions: Sequence[Condition],
    contenders: Sequence[str],
    rounds: int,
    servers: Host,
    record: Record,
    side_by_side: int = SIDE_BY_SIDE,
) -> None:
    """Measure every condition with every contender."""
    for number in range(1, rounds + 1):
        jobs = [
            Job(condition, contender, number)
            for contender in CONTENDERS
            for condition in conditions
            if contender in contenders and contender in condition.contenders
        ]
        for job in jobs:
            if not job.condition.concurrent:
                record(job, lambda job=job: job.condition.measure(job.contender, servers))
        # This service is not measured beside plain Celery, which can keep a processor busy.
        for contender in CONTENDERS:
            with ThreadPoolExecutor(side_by_side) as pool:
                for job in jobs:
                    if job.condition.concurrent and job.contender == contender:
                        pool.submit(record, job, lambda job=job: _apart(job, servers.folder))


def _apart(job: Job, folder: Path) -> Figures:
    """Measure a job with servers that no other job uses."""
    name = f"{job.condition.name}-{job.contender}-{job.round}"
    with host(folder.parent / name) as servers:
        return job.condition.measure(job.contender, servers)
