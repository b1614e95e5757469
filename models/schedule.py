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
    bindparam,
    func,
    or_,
    select,
    text,
    tuple_,
    update,
)
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.sql.dml import ReturningUpdate

from models import gates, transitions
from models.base import table_of
from models.credit import Purse
from models.lifecycle import IN_DOUBT, LIVE, Status
from models.observing.turns import BY_LIST, LIVE_ONES
from models.operating.pauses import paused_sql
from models.tables import LIVE_SQL, Generation, LearnedLimit, SubmitAttempt
from models.transitions import in_seconds
from models.transitions.core import LOCK_ORDER, in_given
from models.wait_reasons import Wait, WaitReason

g = table_of(Generation).c
_limits = table_of(LearnedLimit)
_a = table_of(SubmitAttempt).c

IN_FLIGHT = "in_flight"

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
        .values(lease=g.lease + 1, due_at=in_given("leased_for"))
        .returning(g.id, g.lease, g.status, g.tries, _NEEDS_UPLOAD)
    )


def _one_by_one(by_list: bool) -> list[ColumnElement[bool]]:
    return [~BY_LIST] if by_list else []


def release(conn: Connection, claims: Sequence[Claim], *, seconds: float) -> None:
    """Give claims back that could not be handed on: due again soon, not at the lease's end."""
    held = select(g.id).where(tuple_(g.id, g.lease).in_([(c.id, c.lease) for c in claims]))
    locked = held.where(g.finished_at.is_(None)).order_by(*LOCK_ORDER).with_for_update().cte()
    conn.execute(
        update(table_of(Generation)).where(g.id == locked.c.id).values(due_at=in_seconds(seconds))
    )


# A loose index scan finds the tenants, each then gives its first rows: the cost grows with
# tenants and free slots, not with how much waits. Of a paused tenant nothing is read.
_WAITING = text(
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
        SELECT w.id, w.fingerprint, w.priority, w.created_at, w.estimated_cost, w.needs_upload,
               row_number() OVER (ORDER BY w.priority DESC, w.created_at) AS turn
        FROM (
            SELECT id, fingerprint, priority, created_at, estimated_cost,
                   has_sources AND (content IS NULL OR content_until <= now()) AS needs_upload
            FROM generations g
            WHERE g.status = 'accepted' AND g.tenant = t.tenant AND g.due_at <= now()
              AND g.wait_reason IS DISTINCT FROM '{WaitReason.OPERATOR}'
              AND (CAST(:ceiling AS numeric) IS NULL OR g.estimated_cost <= :ceiling)
            ORDER BY g.priority DESC, g.created_at
            LIMIT :free
        ) w
    ) c
    WHERE t.tenant IS NOT NULL AND NOT {paused_sql("t.tenant")}
    ORDER BY c.priority DESC, coalesce(b.n, 0) + c.turn, c.created_at
    LIMIT :free
    """  # noqa: S608  (built from constants of this package)
).bindparams(bindparam("ceiling"), bindparam("free"))

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
    """Let waiting generations into free slots: by priority, then by turns between tenants.

    `ceiling` bounds the estimated cost while the credit gate is closed; `open_purse` is asked,
    under the lock and only if something waits, for what may be spent at all. One process admits
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
    free = min(limit, max_in_flight - standing.in_flight)
    if ceiling is not None and ceiling < 0:
        free = 0  # a gate is closed for everything: don't read all that waits to find nothing
    if free > 0 and standing.reopening:
        reopening = gates.reopening(conn)
        if reopening is not None and not reopening.done:
            free = min(free, reopening.allowed_now - _about_to_send(conn))
    claims: list[Claim] = []
    looking = free
    purse: Purse | None = None
    for _ in range(_ADMISSION_ROUNDS):
        if free <= 0:
            break
        waiting = conn.execute(_WAITING, {"free": looking, "ceiling": ceiling}).all()
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


_SLOTS_IN_USE = f"SELECT count(*) FROM generations WHERE {LIVE_SQL} AND attention IS NULL"  # noqa: S608

_TAKE_LOCK = select(func.pg_try_advisory_xact_lock(_ADMISSION_LOCK))

_STANDING = text(
    f"""
    SELECT ({_SLOTS_IN_USE}) AS in_flight,
           EXISTS (SELECT FROM generations
                   WHERE status = 'accepted' AND deadline_at <= now()) AS late,
           EXISTS (SELECT FROM gates
                   WHERE name = 'backoff' AND opens_at <= clock_timestamp()) AS reopening
    """  # noqa: S608  (built from constants of this package)
)
"""What an admission begins with: slots in use, and whether there is more to look at."""


@dataclass(frozen=True)
class Waits:
    """Whether there is anything for an admission to do, and what it must know before."""

    accepted: bool
    """Something waits to be let in, or its deadline to pass."""
    undecided: bool
    """Something of it awaits a decision (`submission.look_again`)."""
    held: bool
    """A gate is closed."""
    limit: int | None
    """The learned one."""


_WAITS = text(
    f"""
    SELECT EXISTS (SELECT FROM generations WHERE status = 'accepted') AS accepted,
           EXISTS (SELECT FROM generations WHERE attention IS NOT NULL AND status = 'accepted'
                   AND wait_reason = '{WaitReason.OPERATOR}' AND due_at <= now()) AS undecided,
           EXISTS (SELECT FROM gates WHERE closed_at IS NOT NULL) AS held,
           (SELECT value FROM learned_limits WHERE name = '{IN_FLIGHT}') AS limit
    """  # noqa: S608
)


def waits(conn: Connection) -> Waits:
    """Look whether an admission has anything to do: where nothing waits that is all it costs."""
    row = conn.execute(_WAITS).one()
    return Waits(row.accepted, row.undecided, row.held, row.limit)


def in_flight(conn: Connection) -> int:
    """How many generations hold a slot."""
    return int(conn.execute(text(_SLOTS_IN_USE)).scalar_one())


def _about_to_send(conn: Connection) -> int:
    """How many were let in and have nothing left to upload: their POST comes next."""
    return conn.execute(
        select(func.count())
        .select_from(Generation)
        .where(g.status == Status.UPLOADING, g.attention.is_(None), ~_needs_upload)
    ).scalar_one()


def next_due_in(conn: Connection, *, within: float = 3600.0, by_list: bool = False) -> float | None:
    """Seconds until the next live generation is due; None with none due `within` so many.

    `by_list`: but for those that the task list is being read for, which may be all there are.
    """
    given = {"within": timedelta(seconds=within)}
    seconds = conn.execute(_next_due(by_list), given).scalar_one()
    return None if seconds is None else float(seconds)


@cache
def _next_due(by_list: bool) -> Select[Any]:
    return select(func.extract("epoch", func.min(g.due_at) - func.now())).where(
        LIVE_ONES,
        g.due_at <= in_given("within"),
        *_one_by_one(by_list),
    )


WAKE = func.pg_notify(CHANNEL, "")
"""Tells the dispatchers, once its transaction commits, that something may be due."""


def wake(conn: Connection) -> None:
    """Tell the dispatchers, once this transaction commits, that something may be due."""
    conn.execute(select(WAKE))


# --- the limit that the provider teaches -------------------------------------------------------


RAISE_AFTER = 30.0
"""Seconds without a refusal after which a learned limit is raised, to see whether it may."""

RAISE_SELDOM = 3600.0
"""At most so many seconds, when what it was raised to is refused again and again."""


@dataclass(frozen=True)
class Limit:
    """A learned limit."""

    value: int
    refused: int
    """The latest value under which there was a refusal: so many were too many then."""
    pause: float
    """Seconds between two raises while `refused` has not been passed."""

    @property
    def raise_in(self) -> float:
        """Seconds from its last change until it may be raised."""
        return RAISE_AFTER if self.value >= self.refused else self.pause

    @property
    def raised(self) -> int:
        """What it is raised to: one more, to try again what was refused; more by half once that
        holds, since what refused it then is over.
        """
        return self.value + (1 if self.value < self.refused else max(1, self.value // 2))

    def refuse(self, present: int, *, fresh: bool) -> "Limit":
        """After a refusal, with `present` others at the provider or on their way: never under 1.

        `fresh`: it was sent under this very limit, which is then too high. One that was sent
        before (of the crowd that found the limit) only shows how many fit beside it.
        """
        value = max(1, min(self.value - 1 if fresh else self.value, present))
        if not fresh:
            return Limit(value, value + 1, self.pause)
        # What a provider refuses again and again is tried less and less often: each refusal
        # leaves a generation in doubt (protocol.md, "Answers").
        again = self.value <= self.refused
        pause = min(RAISE_SELDOM, self.pause * 2) if again else RAISE_AFTER
        return Limit(value, max(self.value, value + 1), pause)


def learned(conn: Connection) -> int | None:
    """The limit that CONCURRENCY_LIMIT_REACHED taught, if it did."""
    return conn.execute(
        select(_limits.c.value).where(_limits.c.name == IN_FLIGHT)
    ).scalar_one_or_none()


def any_learned() -> ColumnElement[bool]:
    """Whether the provider taught a limit."""
    return select(_limits.c.name).where(_limits.c.name == IN_FLIGHT).exists()


def sent(conn: Connection) -> int:
    """How many may have a remote task at work."""
    return conn.execute(
        select(func.count())
        .select_from(Generation)
        .where(g.status.in_(sorted(LIVE - {Status.UPLOADING})), g.attention.is_(None))
    ).scalar_one()


def learned_limit(conn: Connection, configured: int) -> int:
    """`max_in_flight` as learned from CONCURRENCY_LIMIT_REACHED: never above the setting."""
    value = learned(conn)
    return configured if value is None else min(configured, value)


def learn_lower(conn: Connection, generation_id: uuid.UUID, attempt: int) -> int:
    """The provider refused this attempt as one too many. Returns the limit learned from it."""
    present = conn.execute(
        select(func.count())
        .select_from(Generation)
        .where(
            g.status.in_((Status.RUNNING, Status.SUBMITTING)),
            g.attention.is_(None),
            g.id != generation_id,
        )
    ).scalar_one()
    first = Limit(max(1, present), max(1, present) + 1, RAISE_AFTER)
    made = conn.execute(
        insert(LearnedLimit)
        .values(name=IN_FLIGHT, value=first.value, refused=first.refused, pause=first.pause)
        .on_conflict_do_nothing(index_elements=[_limits.c.name])
        .returning(_limits.c.name)
    )
    if made.first() is not None:
        return first.value
    row = conn.execute(
        select(_limits.c.value, _limits.c.refused, _limits.c.pause, _limits.c.changed_at)
        .where(_limits.c.name == IN_FLIGHT)
        .with_for_update()
    ).one_or_none()
    if row is None:
        return first.value  # forgotten in this moment: the next refusal says it again
    fresh = conn.execute(
        select(_a.started_at >= row.changed_at).where(
            _a.generation_id == generation_id, _a.number == attempt
        )
    ).scalar_one()
    limit = Limit(row.value, row.refused, row.pause).refuse(present, fresh=fresh)
    conn.execute(
        update(_limits)
        .where(_limits.c.name == IN_FLIGHT)
        .values(value=limit.value, refused=limit.refused, pause=limit.pause, changed_at=func.now())
    )
    return limit.value


def relax(conn: Connection, configured: int) -> None:
    """Allow more again, when every slot has been in use without a refusal for long enough.

    Slots that nobody used prove nothing. At the setting the limit is forgotten.
    """
    row = conn.execute(
        select(
            _limits.c.value,
            _limits.c.refused,
            _limits.c.pause,
            func.extract("epoch", func.now() - _limits.c.changed_at).label("age"),
        )
        .where(_limits.c.name == IN_FLIGHT)
        .with_for_update(skip_locked=True)
    ).one_or_none()
    if row is None:
        return
    limit = Limit(row.value, row.refused, row.pause)
    mine = _limits.c.name == IN_FLIGHT
    if limit.value >= configured:
        conn.execute(_limits.delete().where(mine))
    elif row.age >= limit.raise_in and in_flight(conn) >= limit.value:
        conn.execute(
            update(_limits)
            .where(mine)
            .values(value=min(limit.raised, configured), changed_at=func.now())
        )


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
