"""Applying many observations at once: a page of the task list, in a few statements.

The same decisions as `apply_observation` makes for one, by the same pure function. What is rare
or asks for more than the page shows is left to the GET of that task, and to reconcile.
"""

import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import (
    Connection,
    Row,
    func,
    literal,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import insert

from models.base import among
from models.lifecycle import (
    Event,
    Finish,
    Followed,
    Note,
    Nothing,
    Observation,
    Progress,
    Status,
    is_known,
    observe,
)
from models.transitions.core import LOCK_ORDER, Moved, events_table, g, generations, in_seconds
from models.transitions.ending import SHOWN, as_shown, finish

SEEN_EVERY = 120.0
"""Seconds for which nothing is written of what is shown again and again as it was."""


@dataclass
class Page:
    """What a page did."""

    shown: list[str] = field(default_factory=list)
    """Remote tasks of generations that were running, and since before the pass."""
    young: list[str] = field(default_factory=list)
    """Remote tasks of generations that were running, which the list did not have to show yet."""
    ended: list[Moved] = field(default_factory=list)
    took: list[tuple[Mapping[str, Any], float]] = field(default_factory=list)
    """Of those that completed: the request's kind, and seconds since the submission."""

    def __add__(self, other: "Page") -> "Page":
        """What both did."""
        return Page(
            self.shown + other.shown,
            self.young + other.young,
            self.ended + other.ended,
            self.took + other.took,
        )


_LONG_AGO = (func.coalesce(g.observed_at, g.submitted_at) < in_seconds(-SEEN_EVERY)).label(
    "long_ago"
)
_KIND = tuple(g.request[name].astext.label(name) for name in ("model", "resolution", "duration"))


def apply_page(conn: Connection, seen: Sequence[Observation], *, before: datetime) -> Page:
    """Hold a page of the task list against the running generations that follow its tasks.

    `before`: a task submitted before then is one that the whole pass could show.
    """
    tasks = {task.task_id: task for task in seen}
    result = Page()
    changed, unchanged = [], []
    for row in _running(conn, list(tasks)):
        of = result.shown if row.submitted_at < before else result.young
        of.append(row.remote_task_id)
        task = tasks[row.remote_task_id]
        if _decide(row, task) is not None:
            changed.append(row.remote_task_id)
        elif row.long_ago:
            unchanged.append(row.id)
    if unchanged:
        _seen(conn, unchanged)
    if not changed:
        return result
    # Locked, but for what somebody else has, and decided again on what is there now. Waiting for a
    # producer's open transaction on one would leave all the others unseen; the next pass finds it.
    ends: dict[Event, list[tuple[uuid.UUID, Observation]]] = {}
    further: list[tuple[uuid.UUID, Observation]] = []
    bare: list[uuid.UUID] = []
    for row in _running(conn, changed, lock=True):
        task = tasks[row.remote_task_id]
        decision = _decide(row, task)
        if task.status == "completed" and task.video_url is None:
            bare.append(row.id)
        elif isinstance(decision, Finish):
            ends.setdefault(decision.event, []).append((row.id, task))
            if decision.event is Event.COMPLETE:
                kind = {name: getattr(row, name) for name in ("model", "resolution", "duration")}
                result.took.append((kind, float(row.ago)))
        elif decision is not None:
            further.append((row.id, task))
    for event, these in sorted(ends.items()):
        result.ended += finish(conn, event, these)
    if further:
        _progress(conn, further)
    if bare:
        by_its_own(conn, bare)
    return result


def told_by(conn: Connection, seen: Sequence[Observation]) -> tuple[set[str], set[str]]:
    """Of remote tasks those that a generation follows, or followed to its end; and of these those
    of which something new is shown, now locked. What somebody else has is left to the next pass.
    That the rest is as it was is written down, now and then.
    """
    tasks = {task.task_id: task for task in seen}
    known, new, unchanged = set(), set(), []
    query = select(g.id, g.status, g.remote_task_id, g.remote_status, _LONG_AGO)
    for row in conn.execute(query.where(among(g.remote_task_id, list(tasks)))):
        task = tasks[row.remote_task_id]
        known.add(row.remote_task_id)
        decision = observe(
            Followed(Status(row.status), row.remote_task_id, row.remote_status), task
        )
        if not isinstance(decision, Nothing) or not is_known(task.status):
            new.add(row.remote_task_id)
        elif row.status == Status.RUNNING and row.long_ago:
            unchanged.append(row.id)
    if unchanged:
        _seen(conn, unchanged)
    return known, _free(conn, new) if new else new


def _free(conn: Connection, task_ids: Collection[str]) -> set[str]:
    """Lock the generations that follow these tasks, but for those that somebody else has."""
    query = select(g.remote_task_id).where(among(g.remote_task_id, task_ids))
    return set(conn.execute(query.with_for_update(skip_locked=True)).scalars())


def _running(
    conn: Connection, task_ids: Sequence[str], *, lock: bool = False
) -> Sequence[Row[Any]]:
    query = (
        select(
            g.id,
            g.remote_task_id,
            g.remote_status,
            g.submitted_at,
            func.extract("epoch", func.clock_timestamp() - g.submitted_at).label("ago"),
            _LONG_AGO,
            *_KIND,
        )
        .where(among(g.remote_task_id, task_ids), g.status == Status.RUNNING)
        .order_by(*LOCK_ORDER)
    )
    return conn.execute(query.with_for_update(skip_locked=True) if lock else query).all()


def _decide(row: Row[Any], task: Observation) -> Finish | Progress | None:
    decision = observe(Followed(Status.RUNNING, row.remote_task_id, row.remote_status), task)
    return decision if isinstance(decision, Finish | Progress) else None


def _seen(conn: Connection, ids: Sequence[uuid.UUID]) -> None:
    """They were shown, and nothing about them is new. Who has one now sees it himself."""
    free = (
        select(g.id)
        .where(g.id.in_(ids), g.status == Status.RUNNING)
        .with_for_update(skip_locked=True)
        .cte("free")
    )
    conn.execute(update(generations).where(g.id == free.c.id).values(observed_at=func.now()))


def by_its_own(conn: Connection, ids: Sequence[uuid.UUID]) -> None:
    """The task list does not show them, or not all that is needed: each gets its own GET, now.

    A failure is counted, so that they are no longer left to the list until that GET succeeds.
    What somebody else has is passed over: the next pass finds it again.
    """
    free = (
        select(g.id)
        .where(g.id.in_(ids), g.status == Status.RUNNING, g.failures == 0)
        .with_for_update(skip_locked=True)
        .cte("free")
    )
    conn.execute(update(generations).where(g.id == free.c.id).values(due_at=func.now(), failures=1))


def _progress(conn: Connection, further: Sequence[tuple[uuid.UUID, Observation]]) -> None:
    """Remote tasks got further: written and told, in one statement."""
    moved = (
        update(generations)
        .where(g.id == SHOWN.c.id, g.status == Status.RUNNING)
        .values(remote_status=SHOWN.c.status, observed_at=func.now())
        .returning(g.id, g.remote_status)
        .cte("moved")
    )
    conn.execute(
        insert(events_table).from_select(
            ["generation_id", "event", "detail"],
            select(
                moved.c.id,
                literal(str(Note.PROGRESS)),
                func.jsonb_build_object("remote_status", moved.c.remote_status),
            ),
        ),
        {"shown": as_shown(further)},
    )
