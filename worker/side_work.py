"""Work beside the generations: storing results, delivering notices.

It may be slow or fail for long, and must not slow a generation down. So each kind has rows of its
own, with `due_at` and `lease` as generations have; its messages have a queue of their own, to
which workers can be dedicated (`seedance worker -Q seedance.side`); and it takes at most half of
a process's threads, of which one kind leaves the last to the others.
"""

from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import Connection

from worker.runtime import Runtime
from worker.settings import Settings

NO_ROOM = 1.0
"""Seconds until work is due again that found the process's share of threads taken."""


@dataclass(frozen=True)
class SideClaim:
    """The right to work on one row of a kind until its lease ends or is raised."""

    id: str
    lease: int


@dataclass(frozen=True)
class SideWork:
    """One kind of work: where its rows are, and what is done with one."""

    task: str
    """The name of its Celery task, which takes id and lease."""
    wanted: Callable[[Settings], bool]
    """Whether these settings ask for it."""
    claim: Callable[[Connection, int, float], list[SideClaim]]
    """Claim up to so many due rows for so many seconds, with SKIP LOCKED."""
    put_off: Callable[[Connection, SideClaim, float], None]
    """Make a claimed row due in so many seconds, if the claim still holds."""
    run: Callable[[Runtime, SideClaim], None]
    """Do it. Raises nothing that another try could mend: that is written to the row."""


def run(rt: Runtime, kind: SideWork, claim: SideClaim) -> None:
    """Do the work in this process's share of threads, or put it off where the share is taken."""
    if not rt.side_slots.take(kind.task):
        with rt.engine.begin() as conn:
            kind.put_off(conn, claim, NO_ROOM)
        return
    try:
        kind.run(rt, claim)
    finally:
        rt.side_slots.give_back(kind.task)
