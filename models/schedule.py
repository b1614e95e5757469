"""The schedule: which generations are due, who gets to work on them, and who is let in.

A claim raises the row's lease and sets `due_at` to the lease's end: if the message is lost or
the worker dies, the row is simply due again then. A stage writes only while it holds the lease.
"""

import random
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from enum import StrEnum
from functools import cache
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    Select,
    TextClause,
    bindparam,
    exists,
    func,
    or_,
    select,
    text,
    tuple_,
    update,
)
from sqlalchemy.sql.dml import ReturningUpdate

from models import transitions
from models.base import table_of
from models.credit import Purse
from models.flow_control import state as flow_state
from models.flow_control.breakers import any_open
from models.lifecycle import IN_DOUBT, Status
from models.observing.turns import BY_LIST, LIVE_ONES
from models.operating.pauses import paused_sql
from models.tables import LIVE_SQL, Generation
from models.transitions import in_seconds
from models.transitions.core import LOCK_ORDER, in_given
from models.wait_reasons import Wait, WaitReason

g = table_of(Generation).c

CHANNEL = "seedance_due"
"""NOTIFY on this channel says that something may be due: dispatchers LISTEN to it."""

_ADMISSION_LOCK = 0x5EED_A117


BLOCKED_RECHECK = 60.0
"""Seconds after which a blocked generation looks again by itself, should a wake-up be lost."""


_LOOK_FURTHER = 100
_ADMISSION_ROUNDS = 10
"""How far one admission looks past blocked generations: so often, so many at a time."""


class Stage(StrEnum):
    """What a claimed generation needs next."""

    UPLOAD = "upload"
    SUBMIT = "submit"
    RESOLVE = "resolve"
    POLL = "poll"


@dataclass(frozen=True)
class Claim:
    """The right to work on one generation until its lease ends or is raised."""

    id: uuid.UUID
    lease: int
    stage: Stage
    tries: int

    @property
    def held(self) -> tuple[uuid.UUID, int]:
        """Its id and lease."""
        return self.id, self.lease


def stage_of(status: Status, *, needs_upload: bool) -> Stage:
    """The stage that moves a live generation of this status on."""
    if status is Status.RUNNING:
        return Stage.POLL
    if status in IN_DOUBT:
        return Stage.RESOLVE
    return Stage.UPLOAD if needs_upload else Stage.SUBMIT


_needs_upload = g.has_sources & or_(g.content.is_(None), g.content_until <= func.now())
_NEEDS_UPLOAD = _needs_upload.label("needs_upload")


def claim_due(
    conn: Connection, limit: int, *, lease_seconds: float, by_list: bool = False
) -> list[Claim]:
    """Claim up to `limit` live generations whose next step is due, the longest due first.

    `by_list`: without those that the task list is being read for (`models.observing`).
    """
    given = {"most": limit, "leased_for": timedelta(seconds=lease_seconds)}
    rows = conn.execute(_claiming(by_list), given)
    return [
        Claim(r.id, r.lease, stage_of(Status(r.status), needs_upload=r.needs_upload), r.tries)
        for r in rows
    ]


@cache
def _claiming(by_list: bool) -> ReturningUpdate[Any]:
    due = (
        select(g.id)
        .where(LIVE_ONES, g.due_at <= func.now(), *_one_by_one(by_list))
        .order_by(g.due_at)
        .limit(bindparam("most"))
        .with_for_update(skip_locked=True)
        .cte("due")
    )
    return (
        update(table_of(Generation))
        .where(g.id == due.c.id)
        .values(
            lease=g.lease + 1,
            due_at=in_given("leased_for"),
            leased_until=in_given("leased_for"),
            claimed_by=None,
        )
        .returning(g.id, g.lease, g.status, g.tries, _NEEDS_UPLOAD)
    )


def _one_by_one(by_list: bool) -> list[ColumnElement[bool]]:
    return [~BY_LIST] if by_list else []


def release(conn: Connection, claims: Sequence[tuple[uuid.UUID, int]], *, seconds: float) -> None:
    """Give claims (id and lease) back: due again soon, not at the lease's end."""
    held = select(g.id).where(tuple_(g.id, g.lease).in_(claims))
    locked = held.where(g.finished_at.is_(None)).order_by(*LOCK_ORDER).with_for_update().cte()
    conn.execute(
        update(table_of(Generation)).where(g.id == locked.c.id).values(due_at=in_seconds(seconds))
    )


# A loose index scan finds the tenants, each then gives its first rows: the cost grows with
# tenants and free slots, not with how much waits. Of a paused tenant nothing is read.
def _waiting(first: str) -> TextClause:
    return text(
        f"""
    WITH RECURSIVE tenants AS (
        (SELECT tenant FROM generations WHERE status = 'accepted' ORDER BY tenant LIMIT 1)
        UNION ALL
        SELECT (SELECT g.tenant FROM generations g
                WHERE g.status = 'accepted' AND g.tenant > t.tenant ORDER BY g.tenant LIMIT 1)
        FROM tenants t WHERE t.tenant IS NOT NULL
    ),
    busy AS (
        SELECT tenant, count(*) AS n FROM generations
        WHERE {LIVE_SQL} AND attention IS NULL GROUP BY tenant
    )
    SELECT c.id, c.fingerprint, c.created_at, t.tenant, c.estimated_cost, c.needs_upload
    FROM tenants t
    LEFT JOIN busy b USING (tenant)
    CROSS JOIN LATERAL (
        SELECT w.id, w.fingerprint, w.priority, w.created_at, w.due_at, w.estimated_cost,
               w.needs_upload,
               row_number() OVER (ORDER BY w.priority DESC, w.{first}) AS turn
        FROM (
            SELECT id, fingerprint, priority, created_at, due_at, estimated_cost,
                   has_sources AND (content IS NULL OR content_until <= now()) AS needs_upload
            FROM generations g
            WHERE g.status = 'accepted' AND g.tenant = t.tenant AND g.due_at <= now()
              AND g.wait_reason IS DISTINCT FROM '{WaitReason.OPERATOR}'
              AND (CAST(:ceiling AS numeric) IS NULL OR g.estimated_cost <= :ceiling)
            ORDER BY g.priority DESC, g.{first}
            LIMIT :free
        ) w
    ) c
    WHERE t.tenant IS NOT NULL AND NOT {paused_sql("t.tenant")}
    ORDER BY c.priority DESC, coalesce(b.n, 0) + c.turn, c.{first}
    LIMIT :free
    """  # noqa: S608  (built from constants of this package)
    ).bindparams(bindparam("ceiling"), bindparam("free"))


_WAITING = _waiting("created_at")

_PROBES = _waiting("due_at")
"""During an outage: the longest due first, so that one that is always refused is not each probe."""


# Not who can't go for a reason of his tenant's alone, be it for a month.
_AHEAD = text(
    f"""
    SELECT o.id FROM generations o
    WHERE o.finished_at IS NULL AND o.fingerprint = :mark AND o.id <> :id
      AND (o.status IN ('uploading', 'submitting', 'uncertain')
           OR (o.status = 'accepted' AND (o.created_at, o.id) < (:created_at, :id)
               AND NOT {paused_sql("o.tenant")}
               AND o.wait_reason IS DISTINCT FROM '{WaitReason.BUDGET}'))
    ORDER BY (o.status = 'accepted'), o.created_at LIMIT 1
    """  # noqa: S608  (built from constants of this package)
)


def admit(
    conn: Connection,
    limit: int,
    *,
    max_in_flight: int,
    lease_seconds: float,
    ceiling: Decimal | None,
    open_purse: Callable[[Connection], Purse] | None = None,
) -> list[Claim] | None:
    """Admit waiting generations to free slots: by priority, then by turns between tenants.

    Flow control bounds how many; `ceiling` bounds the estimated cost while the credit breaker is
    open; `open_purse` is asked, under the lock and only if something waits, for
    what may be spent at all. One process admits
    at a time; another finds the lock taken and gets None. A generation whose fingerprint
    another holds, or an older one waits for, stays accepted and shows `blocked_by`.
    """
    locked = conn.execute(_TAKE_LOCK).scalar_one()
    if not locked:
        return None
    # Under the lock, and not in the statement that takes it: that one began before.
    standing = conn.execute(_STANDING).one()
    if standing.late:
        transitions.lapse_waiting(conn)
    flow = flow_state.read(conn)
    slots = max_in_flight
    if flow.concurrency is not None:
        slots = min(slots, flow.concurrency.value)
    free = min(limit, slots - standing.in_flight)
    if ceiling is not None and ceiling < 0:
        free = 0  # nothing passes the breakers: don't read all that waits to find nothing
    if free > 0 and (allowed := flow_state.allowance(conn, flow)) is not None:
        free = min(free, allowed.count)
    claims: list[Claim] = []
    looking = free
    purse: Purse | None = None
    for _ in range(_ADMISSION_ROUNDS):
        if free <= 0:
            break
        query = _WAITING if flow.outage_age is None else _PROBES
        waiting = conn.execute(query, {"free": looking, "ceiling": ceiling}).all()
        chosen = _unblocked(conn, waiting)[:free]
        if waiting and open_purse is not None:
            purse = purse or open_purse(conn)
            # What can't be paid is not asked for again; behind it others may wait that can.
            chosen = purse.take(conn, [row for row in waiting if row.id in chosen])
            ceiling = purse.ceiling(ceiling)
        claims += _admitted(conn, chosen, waiting, lease_seconds=lease_seconds)
        if len(waiting) < looking:
            break
        # The blocked are put off: behind them others may wait, and must not starve.
        free -= len(chosen)
        looking = max(free, _LOOK_FURTHER)
    return claims


def _unblocked(conn: Connection, waiting: Sequence[Row[Any]]) -> list[uuid.UUID]:
    """Those that may be admitted together; the others are put off and show `blocked_by`."""
    chosen: list[uuid.UUID] = []
    marks: dict[str, uuid.UUID] = {}
    for row in waiting:
        blocked_by = None
        if row.fingerprint is not None:
            blocked_by = (
                marks.get(row.fingerprint)
                or conn.execute(
                    _AHEAD,
                    {"mark": row.fingerprint, "id": row.id, "created_at": row.created_at},
                ).scalar_one_or_none()
            )
        if blocked_by is not None:
            transitions.stay(
                conn,
                row.id,
                wait=Wait(WaitReason.EQUAL_GENERATION, {"generation": str(blocked_by)}),
                seconds=BLOCKED_RECHECK,
                blocked_by=blocked_by,
            )
            continue
        if row.fingerprint is not None:
            marks[row.fingerprint] = row.id
        chosen.append(row.id)
    return chosen


def _admitted(
    conn: Connection,
    chosen: Sequence[uuid.UUID],
    waiting: Sequence[Row[Any]],
    *,
    lease_seconds: float,
) -> list[Claim]:
    if not chosen:
        return []
    moved = transitions.admit(conn, chosen, lease_seconds=lease_seconds)
    needs = {row.id: row.needs_upload for row in waiting}
    order = {generation_id: i for i, generation_id in enumerate(chosen)}
    return [
        Claim(m.id, m.lease, stage_of(m.status, needs_upload=needs[m.id]), 0)
        for m in sorted(moved, key=lambda m: order[m.id])
    ]


# Uncertain generations occupy no slot: most have no remote task, and settling is slow.
_SLOTS_IN_USE = (
    f"SELECT count(*) FROM generations WHERE {LIVE_SQL} AND status <> '{Status.UNCERTAIN}'"  # noqa: S608
    " AND attention IS NULL"
)

_TAKE_LOCK = select(func.pg_try_advisory_xact_lock(_ADMISSION_LOCK))

_STANDING = text(
    f"""
    SELECT ({_SLOTS_IN_USE}) AS in_flight,
           EXISTS (SELECT FROM generations
                   WHERE status = 'accepted' AND deadline_at <= now()) AS late
    """  # noqa: S608  (built from constants of this package)
)
"""What an admission begins with: slots in use, and whether deadlines have passed."""


@dataclass(frozen=True)
class Waits:
    """Whether there is anything for an admission to do, and what it must know before."""

    accepted: bool
    """Something waits to be admitted, or its deadline to pass."""
    undecided: bool
    """Something of it awaits a decision (`submission.look_again`)."""
    breaker: bool
    """A breaker is open."""


_WAITS = select(
    exists().where(g.status == text("'accepted'")).label("accepted"),
    exists()
    .where(
        g.attention.is_not(None),
        g.status == text("'accepted'"),
        g.wait_reason == str(WaitReason.OPERATOR),
        g.due_at <= func.now(),
    )
    .label("undecided"),
    any_open().label("breaker"),
)


def waits(conn: Connection) -> Waits:
    """Return whether an admission has anything to do: where nothing waits that is all it costs."""
    row = conn.execute(_WAITS).one()
    return Waits(row.accepted, row.undecided, row.breaker)


def in_flight(conn: Connection) -> int:
    """How many generations hold a slot."""
    return int(conn.execute(text(_SLOTS_IN_USE)).scalar_one())


def next_due_in(conn: Connection, *, within: float = 3600.0, by_list: bool = False) -> float | None:
    """Return the seconds until the next live generation, or retry, is due; None: not `within`.

    `by_list`: without the generations that the task list is being read for.
    """
    given = {"within": timedelta(seconds=within)}
    seconds = [conn.execute(_next_due(by_list), given).scalar_one()]
    seconds.append(conn.execute(_NEXT_RETRY, given).scalar_one())
    return min((float(one) for one in seconds if one is not None), default=None)


_NEXT_RETRY = select(func.extract("epoch", func.min(g.due_at) - func.now())).where(
    text(f"status = '{Status.ACCEPTED}' AND wait_reason = '{WaitReason.RETRY}'"),
    # Not those that are due already: what they wait for is a slot.
    g.due_at > func.now(),
    g.due_at <= in_given("within"),
)


@cache
def _next_due(by_list: bool) -> Select[Any]:
    return select(func.extract("epoch", func.min(g.due_at) - func.now())).where(
        LIVE_ONES,
        g.due_at <= in_given("within"),
        *_one_by_one(by_list),
    )


WAKE = func.pg_notify(CHANNEL, "")
"""Tells the dispatchers, once its transaction commits, that something may be due."""


_WAKE_IF_WAITING = select(WAKE).where(
    exists().where(g.status == text("'accepted'"), g.due_at <= func.now())
)


def wake_if_waiting(conn: Connection) -> None:
    """Notify the dispatchers of a free slot on commit, if a generation waits for one."""
    conn.execute(_WAKE_IF_WAITING)


def wake(conn: Connection) -> None:
    """Tell the dispatchers, once this transaction commits, that something may be due."""
    conn.execute(select(WAKE))


def at_work(conn: Connection) -> int:
    """Return how many generations may have a remote task at work."""
    return conn.execute(
        select(func.count())
        .select_from(Generation)
        .where(g.status.in_((Status.SUBMITTING, Status.RUNNING)), g.attention.is_(None))
    ).scalar_one()


# --- backoff -----------------------------------------------------------------------------------


def backoff(failures: int, *, base: float, cap: float, rng: random.Random | None = None) -> float:
    """Seconds to wait after so many failures in a row: capped, doubling, jittered by half.

    Half is kept so that a wait is never zero, half is random so that a crowd spreads out.
    """
    full = min(cap, base * 2.0 ** min(max(failures, 0), 32))
    return full / 2 + (rng or random).random() * full / 2


def poll_delay(
    polls: int, *, shortest: float, longest: float, rng: random.Random | None = None
) -> float:
    """Seconds until the next look at a running task: never under `shortest`.

    Grows by a third with each look, so that a task of some minutes is seen soon after its end
    and a long one costs little; jittered upwards by up to a tenth.
    """
    delay = min(longest, shortest * (4 / 3) ** min(max(polls, 0), 64))
    return delay * (1 + (rng or random).random() / 10)
