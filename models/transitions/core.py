"""What every transition is made of: lock and compare, set, tell, book, in one statement."""

import uuid
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import (
    CTE,
    ColumnElement,
    Connection,
    FromClause,
    Interval,
    Select,
    bindparam,
    case,
    exists,
    func,
    insert,
    literal,
    select,
    text,
    update,
)
from sqlalchemy.dialects.postgresql import JSONB

from models import artifacts, ledger, notices
from models.base import table_of
from models.ledger.booking import NEEDED
from models.lifecycle import (
    IN_DOUBT,
    TERMINAL,
    TRANSITIONS,
    Event,
    Fence,
    Note,
    Status,
)
from models.tables import Generation, GenerationEvent, SubmitAttempt
from models.wait_reasons import NO_WAIT

g = table_of(Generation).c
generations = table_of(Generation)
events_table = table_of(GenerationEvent)
attempts_table = table_of(SubmitAttempt)

Values = Mapping[str, Any]


@dataclass(frozen=True)
class Moved:
    """A generation after a transition."""

    id: uuid.UUID
    from_status: Status
    status: Status
    lease: int
    attempt: int
    fingerprint: str | None


LOCK_ORDER = (g.remote_task_id.collate("C"), g.id)
"""The order in which whoever changes many generations locks them: that of remote tasks as Python
sorts them, since passes over the task list know nothing else. In one order nobody deadlocks.
"""


def in_seconds(seconds: float) -> ColumnElement[Any]:
    """The database's now, that many seconds on."""
    return func.now() + timedelta(seconds=seconds)


def in_given(name: str) -> ColumnElement[Any]:
    """The database's now, as much later as the parameter of this name, a timedelta, says."""
    return func.now() + bindparam(name, type_=Interval)


def by_deadline(due: ColumnElement[Any]) -> ColumnElement[Any]:
    """`due`, but for a running generation no later than a deadline that is still ahead."""
    return case(
        (
            (g.status == Status.RUNNING) & (g.deadline_at > func.now()),
            func.least(due, g.deadline_at),
        ),
        else_=due,
    )


MOVED = "seedance_moved"
"""NOTIFY on this channel names a generation that has moved; models.telling says when."""

ENDED: Values = {
    # Post-pay: nothing but a completed task is charged (the provider's document, "Billing Model").
    "credit_cost": 0,
    "due_at": None,
    "finished_at": func.now(),
    "blocked_by": None,
    **NO_WAIT,
    "attention": None,
    "attention_at": None,
}
CALM: Values = {
    "tries": 0,
    "failures": 0,
    "blocked_by": None,
    **NO_WAIT,
    "attention": None,
    "attention_at": None,
}


def move(
    conn: Connection,
    event: Event,
    *guards: ColumnElement[bool],
    values: Values,
    detail: Mapping[str, Any] | None = None,
    sources: frozenset[Status] | None = None,
    skip_locked: bool = False,
) -> list[Moved]:
    """Move every row that passes `guards` by `event`; the other functions here are its callers.

    One statement: lock and compare, set, tell, book; one more where notices are wanted. `sources`
    narrows the transition's own; `skip_locked` leaves out rows that somebody else is changing.
    """
    prepared = prepare(
        event,
        *guards,
        values=values,
        detail=bindparam("detail", dict(detail) if detail else None, _DETAIL),
        sources=sources,
        skip_locked=skip_locked,
        stores=artifacts.wanted(conn, event),
    )
    return carry_out(conn, prepared, {})


@dataclass(frozen=True)
class Prepared:
    """The statement of a transition. Building it costs more than sending it, so those that every
    generation makes are built once, with parameters in place of their values.
    """

    event: Event
    query: Select[Any]


_DETAIL = JSONB(none_as_null=True)

GIVEN_DETAIL = bindparam("detail", type_=_DETAIL)
"""A prepared statement's parameter for what the event tells."""


def prepare(
    event: Event,
    *guards: ColumnElement[bool],
    values: Values,
    detail: ColumnElement[Any],
    sources: frozenset[Status] | None = None,
    skip_locked: bool = False,
    each: FromClause | None = None,
    also: Callable[[CTE], CTE] | None = None,
    stores: bool = False,
) -> Prepared:
    """Build the statement of `move`. `stores`: results are to be archived.

    `each` has a row for each generation, by `id`, that `values` and `detail` may draw on. `also`
    makes a further part of the statement from the rows that moved.
    """
    transition = TRANSITIONS[event]
    leaving = transition.sources if sources is None else transition.sources & sources
    locked = (
        select(g.id, g.status)
        .where(g.status.in_(sorted(leaving)), *guards)
        .order_by(*LOCK_ORDER)
        .with_for_update(of=generations, skip_locked=skip_locked)
        .cte("locked")
    )
    joined = [] if each is None else [each.c.id == locked.c.id]
    moved = (
        update(generations)
        .where(g.id == locked.c.id, *joined)
        .values(
            {
                **(ENDED if transition.target in TERMINAL else {}),
                **values,
                "status": str(transition.target),
                "notified": notices.numbered(transition.target),
            }
        )
        .returning(
            g.id,
            locked.c.status.label("from_status"),
            g.lease,
            g.attempt,
            g.fingerprint,
            (g.waited_until > func.now()).label("waited"),
            func.coalesce(notices.wanted(transition.target), False).label("noticed"),
            *NEEDED.values(),
            *([g.last_frame_url] if stores else []),
            detail.label("detail"),
        )
        .cte("moved")
    )
    told = (
        insert(events_table)
        .from_select(
            ["generation_id", "event", "from_status", "to_status", "attempt", "detail"],
            select(
                moved.c.id,
                literal(str(event)),
                moved.c.from_status,
                literal(str(transition.target)),
                moved.c.attempt,
                moved.c.detail,
            ),
        )
        .returning(events_table.c.id, events_table.c.generation_id)
        .cte("told")
    )
    parts = [told]
    booked = ledger.on_move(event, leaving, transition.target, moved, told)
    if booked is not None:
        parts.append(booked)
    if stores:
        parts.append(artifacts.on_move(moved))
    if also is not None:
        parts.append(also(moved))
    m = moved.c
    query = select(
        m.id,
        m.from_status,
        m.lease,
        m.attempt,
        m.fingerprint,
        m.waited,
        m.noticed,
        _blocks(m.fingerprint).label("blocks"),
    ).add_cte(*parts)
    return Prepared(event, query)


def _blocks(fingerprint: ColumnElement[Any]) -> ColumnElement[bool]:
    """Return a condition: some generation waits for one with this fingerprint."""
    w = generations.alias("waiter").c
    return exists().where(
        w.finished_at.is_(None),
        w.fingerprint == fingerprint,
        w.status == Status.ACCEPTED,
        w.blocked_by.is_not(None),
    )


def carry_out(conn: Connection, prepared: Prepared, parameters: Mapping[str, Any]) -> list[Moved]:
    """Make the transition, and wake who waited for it."""
    transition = TRANSITIONS[prepared.event]
    rows = conn.execute(prepared.query, parameters).all()
    result = [
        Moved(
            row.id,
            Status(row.from_status),
            transition.target,
            row.lease,
            row.attempt,
            row.fingerprint,
        )
        for row in rows
    ]
    if transition.target not in IN_DOUBT:
        freed = {row.fingerprint for row in rows if row.blocks and row.from_status in IN_DOUBT}
        _wake_waiters(conn, freed)
    notices.write(conn, [row.id for row in rows if row.noticed])
    for waited in (row.id for row in rows if row.waited):
        conn.execute(select(func.pg_notify(MOVED, str(waited))))
    return result


def fenced(
    event: Event, generation_id: Any, *, lease: Any = None, attempt: Any = None
) -> tuple[ColumnElement[bool], ...]:
    """The guards of one generation's transition: its row, and the fence that the table names.

    Each is a value, or the parameter of a prepared statement.
    """
    row = g.id == generation_id
    match TRANSITIONS[event].fence:
        case Fence.LEASE:
            assert lease is not None, f"{event} is fenced by the lease"
            return (row, g.lease == lease)
        case Fence.ATTEMPT:
            assert attempt is not None, f"{event} is fenced by the attempt"
            return (row, g.attempt == attempt)
        case Fence.NONE:
            return (row,)


def cancelled(
    conn: Connection,
    *guards: ColumnElement[bool],
    sources: frozenset[Status],
    detail: Mapping[str, Any] | None = None,
) -> Moved | None:
    """`… → cancelled`, as was asked for: certainly no remote task exists."""
    return one(
        move(
            conn,
            Event.CANCEL,
            *guards,
            values={"lease": g.lease + 1},
            detail=detail,
            sources=sources,
        )
    )


def one(moved: list[Moved]) -> Moved | None:
    return moved[0] if moved else None


# Materialised: joined any other way the subquery could run once for each row, and each time find
# the next oldest, as it passes over what this statement has changed already.
_WAKE = text(
    f"""
    WITH oldest AS MATERIALIZED (
        SELECT w.id FROM unnest(CAST(:marks AS text[])) mark CROSS JOIN LATERAL (
            SELECT id FROM generations
            WHERE finished_at IS NULL AND fingerprint = mark
              AND status = '{Status.ACCEPTED}' AND blocked_by IS NOT NULL
            -- With the id, as admission orders them: many have the time of one transaction.
            ORDER BY created_at, id LIMIT 1 FOR UPDATE SKIP LOCKED
        ) w
    )
    UPDATE generations SET blocked_by = NULL, wait_reason = NULL, wait_detail = NULL, due_at = now()
    FROM oldest WHERE generations.id = oldest.id
    """  # noqa: S608  (a constant of this module)
)


def _wake_waiters(conn: Connection, fingerprints: Collection[str | None]) -> None:
    """The oldest that waits for each of these may go now."""
    if fingerprints:
        conn.execute(_WAKE, {"marks": list(fingerprints)})


def note(
    conn: Connection,
    generation_id: uuid.UUID,
    kind: Note,
    *,
    attempt: int | None = None,
    detail: Mapping[str, Any] | None = None,
) -> None:
    """Tell something in the generation's history that moves nothing."""
    conn.execute(
        insert(events_table).values(
            generation_id=generation_id,
            event=str(kind),
            attempt=attempt,
            detail=dict(detail) if detail else None,
        )
    )


def tell_once(
    conn: Connection, generation_id: uuid.UUID, kind: Note, detail: Mapping[str, Any]
) -> None:
    told = select(events_table.c.id).where(
        events_table.c.generation_id == generation_id, events_table.c.event == str(kind)
    )
    if conn.execute(told.limit(1)).first() is None:
        note(conn, generation_id, kind, detail=detail)


@dataclass(frozen=True)
class Locked:
    """A generation that nobody else can change until this transaction ends."""

    status: Status
    attempt: int
    cancel_wished: bool


def lock(conn: Connection, generation_id: uuid.UUID) -> Locked | None:
    """Lock a generation, to decide on what it is now. None if there is none."""
    row = conn.execute(
        select(g.status, g.attempt, g.cancel_requested_at.is_not(None).label("wished"))
        .where(g.id == generation_id)
        .with_for_update()
    ).one_or_none()
    return None if row is None else Locked(Status(row.status), row.attempt, row.wished)
