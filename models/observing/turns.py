"""The observer's turns, and the schedule of what it follows.

One observer at a time: a turn is taken by raising the row's lease, as a claim is, and ends with
`end`, or when `held_until` has passed. While the list is engaged its generations are not claimed
one by one (`BY_LIST`); each pass puts their `due_at` ahead, so that they come due by themselves
should nobody read the list any more.
"""

import uuid
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Select, and_, func, literal, or_, select, text, update
from sqlalchemy.dialects.postgresql import insert

from models.base import among, not_among, table_of
from models.lifecycle import Status
from models.observing import choice
from models.observing.choice import Pass, Verdict
from models.observing.table import Observer
from models.tables import LIVE_SQL, Generation
from models.transitions.core import by_deadline, in_seconds
from models.transitions.page import by_its_own

g = table_of(Generation).c
_observers = table_of(Observer)
_o = _observers.c

LIVE_ONES = text(LIVE_SQL)
"""In the words of the partial indexes: as parameters the statuses hide them from a plan that is
kept for all values.
"""

TASK_LIST = "task_list"

AHEAD = 60.0
"""Seconds that a pass puts what it follows ahead, and up to half as much again."""

BY_LIST = and_(
    g.status == Status.RUNNING,
    # What needs more than to be seen is polled: a cancel to send, a deadline to keep, trouble.
    g.failures == 0,
    g.attention.is_(None),
    or_(g.cancel_requested_at.is_(None), g.cancel_sent_at.is_not(None)),
    or_(g.deadline_at.is_(None), g.deadline_at > func.now(), g.cancel_sent_at.is_not(None)),
)
"""Generations that the task list is enough for."""


@dataclass(frozen=True)
class Turn:
    """What a dispatcher finds: whether the list is engaged, and a pass to publish, if any."""

    engaged: bool
    lease: int | None = None


@dataclass(frozen=True)
class Begun:
    """A pass that has begun."""

    lease: int
    began: datetime
    before: datetime
    """What was submitted before then can be shown by every page."""
    sought: int
    """How many such generations are running."""
    expected: int
    """How many are past their first look."""
    backward: bool

    @property
    def budget(self) -> int:
        """Pages that it may take."""
        return choice.budget(self.expected, self.sought)


def take(conn: Connection, *, least: int, every: float, lease_seconds: float) -> Turn:
    """Look whether the list is, or should be, read; and take the turn if it is time.

    `least`: from so many GETs within `every` seconds on; 0: never.
    """
    if least == 0:
        return Turn(engaged=False)
    row = conn.execute(
        select(
            _o.engaged,
            _o.lease,
            _o.tries,
            (_o.held_until > func.now()).label("held"),
            (_o.next_at <= func.now()).label("due"),
            ((_o.lease > 0) & _o.ended_at.is_(None)).label("under_way"),
        ).where(_o.name == TASK_LIST)
    ).one_or_none()
    engaged = row is not None and row.engaged and row.held
    if row is not None and (not row.due or (row.held and row.under_way)):
        return Turn(engaged)
    if not (row is not None and row.engaged) and not _pays(conn, least=least, every=every):
        return Turn(engaged)
    if row is None:
        conn.execute(insert(_observers).values(name=TASK_LIST).on_conflict_do_nothing())
    if row is not None and row.tries >= choice.MOST_TRIES:
        _leave_alone(conn, row.lease)
        return Turn(engaged=False)
    lease = conn.execute(
        update(_observers)
        .where(_o.name == TASK_LIST, _o.lease == (row.lease if row is not None else 0))
        .values(
            lease=_o.lease + 1,
            engaged=True,
            next_at=in_seconds(every),
            held_until=in_seconds(lease_seconds),
            ended_at=None,
        )
        .returning(_o.lease)
    ).scalar_one_or_none()
    return Turn(engaged=True, lease=lease)


def _pays(conn: Connection, *, least: int, every: float) -> bool:
    """Asked at each tick of each worker while the list is not engaged, so bounded: with less than
    `least` due soon it counts no further, else no more of what runs than these GETs outweigh.
    """
    due = select(literal(1)).where(LIVE_ONES, BY_LIST, g.due_at <= in_seconds(every))
    if _count(conn, due, most=least) < least:
        return False
    soon = _count(conn, due)
    running = select(literal(1)).where(LIVE_ONES, g.status == Status.RUNNING)
    most = choice.outweighed(soon) + 1
    return choice.engage(soon, _count(conn, running, most=most), least=least)


def _count(conn: Connection, rows: Select[Any], *, most: int | None = None) -> int:
    query = select(func.count()).select_from(rows.limit(most).subquery())
    return conn.execute(query).scalar_one()


def _leave_alone(conn: Connection, lease: int) -> None:
    conn.execute(
        update(_observers)
        .where(_o.name == TASK_LIST, _o.lease == lease)
        .values(
            engaged=False, tries=0, ended_at=func.now(), next_at=in_seconds(choice.LONGEST_REST)
        )
    )


def give_back(conn: Connection, lease: int, *, seconds: float) -> None:
    """The pass could not be handed on: soon again."""
    conn.execute(
        update(_observers)
        .where(_o.name == TASK_LIST, _o.lease == lease)
        .values(next_at=in_seconds(seconds), ended_at=func.now())
    )


def begin(
    conn: Connection,
    lease: int,
    *,
    list_lag: float,
    every: float,
    lease_seconds: float,
    stalled_after: float,
) -> Begun | None:
    """Begin the pass: count it, and put ahead what would come due while it is under way.

    None if the turn is somebody else's by now.
    """
    row = conn.execute(
        update(_observers)
        # A message that comes again after its pass has ended begins nothing.
        .where(_o.name == TASK_LIST, _o.lease == lease, _o.ended_at.is_(None))
        .values(
            tries=_o.tries + 1,
            began_at=func.clock_timestamp(),
            held_until=in_seconds(lease_seconds),
        )
        .returning(_o.backward, _o.began_at)
    ).one_or_none()
    if row is None:
        return None
    stalled = select(g.id).where(LIVE_ONES, BY_LIST, g.submitted_at < in_seconds(-stalled_after))
    if overlong := conn.execute(stalled).scalars().all():
        by_its_own(conn, overlong)  # which asks for an operator
    # What somebody else has this moment comes due all the same, and is put ahead the next time.
    soon = (
        select(g.id)
        .where(LIVE_ONES, BY_LIST, g.due_at <= in_seconds(every))
        .with_for_update(skip_locked=True)
        .cte("soon")
    )
    conn.execute(
        update(Generation)
        .where(g.id == soon.c.id)
        .values(
            due_at=by_deadline(
                func.now() + func.make_interval(0, 0, 0, 0, 0, 0, AHEAD * (1 + func.random() / 2))
            ),
            polls=g.polls + 1,
        )
        .execution_options(synchronize_session=False)
    )
    counted = conn.execute(
        select(
            func.count().filter(g.submitted_at < in_seconds(-list_lag)).label("sought"),
            func.count().filter(BY_LIST, g.polls > 0).label("expected"),
        ).where(LIVE_ONES, g.status == Status.RUNNING)
    ).one()
    before = row.began_at - timedelta(seconds=list_lag)
    return Begun(lease, row.began_at, before, counted.sought, counted.expected, row.backward)


def hold_on(conn: Connection, lease: int, *, lease_seconds: float) -> bool:
    """The pass goes on; False if the turn was lost."""
    done = conn.execute(
        update(_observers)
        .where(_o.name == TASK_LIST, _o.lease == lease)
        .values(held_until=in_seconds(lease_seconds))
    )
    return done.rowcount == 1


def end(
    conn: Connection,
    begun: Begun,
    seen: AbstractSet[str],
    *,
    young: AbstractSet[str] = frozenset(),
    pages: int,
    failed: bool,
    limited: float | None = None,
    least: int,
    every: float,
    lease_seconds: float,
) -> Verdict | None:
    """Record the pass, and have what it did not show looked at. None if the turn was lost.

    `seen`: the remote tasks of running generations that the pages showed; `young`: of those
    that they did not have to show yet. `limited`: it failed for
    a limit on the rate of requests, which asks to wait so many seconds.
    """
    row = conn.execute(
        select(_o.failures, _o.backward)
        .where(_o.name == TASK_LIST, _o.lease == begun.lease)
        .with_for_update()
    ).one_or_none()
    if row is None:
        return None
    unseen = [] if failed else _unseen(conn, begun, seen)
    left = _left(conn, every=every)
    done = Pass(pages, begun.sought, begun.expected, len(unseen), left, failed, limited)
    verdict = choice.judge(
        done, backward=row.backward, failures=row.failures, least=least, every=every
    )
    if verdict.engaged and done.showed_them:
        overdue = _overdue(conn, begun, seen | young, every=every, most=pages)
        if unseen or overdue:
            by_its_own(conn, unseen + overdue)
    if not verdict.engaged:
        _hand_over(conn, every=every)
    conn.execute(
        update(_observers)
        .where(_o.name == TASK_LIST)
        .values(
            engaged=verdict.engaged,
            backward=verdict.backward,
            failures=verdict.failures,
            tries=0,
            pages=pages,
            sought=begun.sought,
            missed=len(unseen),
            ended_at=func.clock_timestamp(),
            held_until=in_seconds(lease_seconds + (limited or 0.0)),
            next_at=func.greatest(
                begun.began + func.make_interval(0, 0, 0, 0, 0, 0, verdict.rest), func.now()
            ),
        )
    )
    return verdict


def _left(conn: Connection, *, every: float) -> int:
    return conn.execute(
        select(func.count()).where(
            LIVE_ONES,
            BY_LIST,
            or_(g.polls > 0, g.due_at <= in_seconds(every)),
        )
    ).scalar_one()


def _unseen(conn: Connection, begun: Begun, seen: AbstractSet[str]) -> list[uuid.UUID]:
    """What ran all the while and was not shown, of those past their first look."""
    return _ids(conn, _not_shown(conn, g.submitted_at < begun.before, seen=seen))


def _overdue(
    conn: Connection, begun: Begun, seen: AbstractSet[str], *, every: float, most: int
) -> list[uuid.UUID]:
    """Those past their first look that the list need not show yet, did not in this pass, and
    could have in the one before. None if they are more than `most`: then it is the list that is
    late, and a GET for each would cost more than waiting for it.
    """
    missed = _not_shown(
        conn,
        g.submitted_at >= begun.before,
        g.submitted_at < begun.began - timedelta(seconds=every),
        seen=seen,
    )
    return [] if len(missed) > most else _ids(conn, missed)


def _not_shown(conn: Connection, *submitted: Any, seen: AbstractSet[str]) -> list[str]:
    """The remote tasks of those past their first look that were not seen."""
    return not_among(conn, g.remote_task_id, LIVE_ONES, BY_LIST, g.polls > 0, *submitted, seen=seen)


def _ids(conn: Connection, task_ids: list[str]) -> list[uuid.UUID]:
    return list(conn.execute(select(g.id).where(among(g.remote_task_id, task_ids))).scalars())


def _hand_over(conn: Connection, *, every: float) -> None:
    """Back to polling one by one: those past their first look come due within an interval. What
    somebody else has comes due by itself, as it was put ahead.
    """
    soon = func.now() + func.make_interval(0, 0, 0, 0, 0, 0, every * func.random())
    theirs = (
        select(g.id)
        .where(LIVE_ONES, BY_LIST, g.polls > 0)
        .with_for_update(skip_locked=True)
        .cte("theirs")
    )
    conn.execute(
        update(Generation)
        .where(g.id == theirs.c.id)
        .values(due_at=func.least(g.due_at, soon), polls=1)
        .execution_options(synchronize_session=False)
    )
