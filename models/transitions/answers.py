"""Transitions that the POST's answer makes, and adoption, which stands for one.

Fenced by the attempt, not by the lease: an answer counts however late it comes, as long as its
attempt is the row's latest.
"""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from sqlalchemy import (
    CTE,
    ColumnElement,
    Connection,
    Double,
    Integer,
    Numeric,
    Text,
    Uuid,
    bindparam,
    case,
    column,
    func,
    or_,
    update,
)
from sqlalchemy.dialects.postgresql import JSONB

from models import storable
from models.decisions import closed_as_not_sent, taken_back
from models.lifecycle import (
    OPEN_OUTCOMES,
    TRANSITIONS,
    UNSPECIFIED,
    Event,
    Observation,
    Status,
)
from models.transitions.core import (
    CALM,
    Moved,
    Prepared,
    attempts_table,
    cancelled,
    carry_out,
    fenced,
    g,
    in_seconds,
    lock,
    move,
    one,
    prepare,
)
from models.wait_reasons import Wait


def _undecided() -> ColumnElement[bool]:
    a = attempts_table.c
    return or_(a.outcome.is_(None), a.outcome.in_(OPEN_OUTCOMES))


def close_attempt(
    conn: Connection,
    generation_id: uuid.UUID,
    attempt: int,
    *,
    outcome: str,
    code: str | None = None,
    remote_task_id: str | None = None,
    provider_ok: bool | None = None,
) -> bool:
    """Record what became of an attempt; a definite outcome is never overwritten.

    `provider_ok`: whether the answer shows the provider well (flow control); None: neither.
    """
    a = attempts_table.c
    done = conn.execute(
        update(attempts_table)
        .where(
            a.generation_id == generation_id,
            a.number == attempt,
            _undecided(),
        )
        .values(
            outcome=outcome,
            # Absent now, it was answered with this code all the same.
            code=func.coalesce(storable.text(code), a.code),
            remote_task_id=remote_task_id,
            decided_at=func.now(),
            # How the provider answered is known once; a search may decide later what it made.
            answered_at=func.coalesce(a.answered_at, func.clock_timestamp()),
            provider_ok=case((a.answered_at.is_(None), provider_ok), else_=a.provider_ok),
        )
    )
    return done.rowcount == 1


@dataclass(frozen=True)
class Answered:
    """The provider's answer to an attempt: which remote task it made."""

    id: uuid.UUID
    attempt: int
    remote_task_id: str
    remote_status: str
    credit_cost: Any
    look_in: float
    """Seconds until the first look at it."""


_ANSWERED = (
    func.jsonb_to_recordset(bindparam("answered", type_=JSONB))
    .table_valued(
        column("id", Uuid),
        column("attempt", Integer),
        column("task_id", Text),
        column("shown", Text),
        column("cost", Numeric),
        column("look_in", Double),
        name="answered",
    )
    .render_derived(with_types=True)
)


def submitted(conn: Connection, answer: Answered) -> Moved | None:
    """`submitting | uncertain | accepted | uploading → running`: the answer named the task.

    Late or not, if the attempt is the row's latest. Otherwise None is returned, and the caller
    flags a second task.
    """
    return one(carry_out(conn, _submitted(), {"answered": [_as_parameter(answer)]}))


def _as_parameter(answer: Answered) -> dict[str, Any]:
    cost = storable.credits(answer.credit_cost)
    return {
        "id": str(answer.id),
        "attempt": answer.attempt,
        "task_id": storable.text(answer.remote_task_id) or "",
        "shown": storable.text(answer.remote_status) or "",
        # As text: a number of JSON would pass through a float.
        "cost": None if cost is None else str(cost),
        "look_in": answer.look_in,
    }


@cache
def _submitted() -> Prepared:
    a = _ANSWERED.c
    return prepare(
        Event.SUBMIT,
        *fenced(Event.SUBMIT, a.id, attempt=a.attempt),
        values={
            **CALM,
            "lease": g.lease + 1,
            "remote_task_id": a.task_id,
            "remote_status": a.shown,
            "credit_cost": a.cost,
            "submitted_at": func.now(),
            "polls": 0,
            # A cancel that was asked for meanwhile goes out at once.
            "due_at": case(
                (g.cancel_requested_at.is_not(None), func.now()),
                # Nor does one go on beyond its deadline.
                else_=func.least(
                    func.now() + func.make_interval(0, 0, 0, 0, 0, 0, a.look_in), g.deadline_at
                ),
            ),
        },
        detail=func.jsonb_build_object("remote_task_id", a.task_id),
        each=_ANSWERED,
        also=_close_answered,
    )


def _close_answered(moved: CTE) -> CTE:
    """Return the part of the statement that closes the attempt."""
    attempts, a = attempts_table.c, _ANSWERED.c
    return (
        update(attempts_table)
        .where(
            attempts.generation_id == moved.c.id,
            a.id == moved.c.id,
            attempts.number == a.attempt,
            _undecided(),
        )
        .values(
            outcome="submitted",
            remote_task_id=a.task_id,
            decided_at=func.now(),
            answered_at=func.clock_timestamp(),
            provider_ok=True,
        )
        .returning(attempts.number)
        .cte("closed")
    )


def adopt(
    conn: Connection,
    generation_id: uuid.UUID,
    attempt: int,
    *,
    latest_attempt: int,
    seen: Observation,
    sources: frozenset[Status],
    by: str,
) -> Moved | None:
    """`… → running`: the remote task of one of the row's attempts was found in the task list.

    `attempt` is the one the task belongs to, `latest_attempt` the row's, which guards the move.
    """
    moved = one(
        move(
            conn,
            Event.ADOPT,
            *fenced(Event.ADOPT, generation_id, attempt=latest_attempt),
            values={
                **CALM,
                "lease": g.lease + 1,
                "remote_task_id": seen.task_id,
                # Its real status comes by observation, which also handles an end already reached.
                "remote_status": None,
                "credit_cost": seen.credit_cost,
                "submitted_at": func.coalesce(g.submitted_at, func.now()),
                "polls": 0,
                "due_at": func.now(),
            },
            detail={"remote_task_id": seen.task_id, "of_attempt": attempt, "by": by},
            sources=sources,
        )
    )
    if moved is not None:
        close_attempt(conn, generation_id, attempt, outcome="adopted", remote_task_id=seen.task_id)
    return moved


def doubt(
    conn: Connection,
    generation_id: uuid.UUID,
    attempt: int,
    *,
    why: str,
    code: str | None = None,
    search_in: float | None = None,
    provider_ok: bool | None = None,
) -> Moved | None:
    """`submitting → uncertain`: it is unknown whether the provider made a task of the POST.

    `search_in`: seconds until the task list is searched for it; without, as it is due already.
    """
    values: dict[str, Any] = {}
    if search_in is not None:
        values = {"due_at": func.least(g.due_at, in_seconds(search_in))}
    moved = one(
        move(
            conn,
            Event.DOUBT,
            *fenced(Event.DOUBT, generation_id, attempt=attempt),
            values=values,
            detail={
                "why": storable.text(why),
                **({"code": storable.text(code)} if code else {}),
            },
        )
    )
    if moved is not None:
        close_attempt(
            conn, generation_id, attempt, outcome="unknown", code=code, provider_ok=provider_ok
        )
    return moved


def not_sent(
    conn: Connection,
    generation_id: uuid.UUID,
    attempt: int,
    *,
    wait: Wait,
    seconds: float,
    code: str | None = None,
) -> Moved | None:
    """`submitting → accepted | cancelled`: the POST was certainly not written.

    Only the submit stage itself can know this.
    """
    row = lock(conn, generation_id)
    if row is None:
        return None
    moved = _take_back(
        conn,
        Event.NOT_SENT,
        generation_id,
        attempt,
        cancel_wished=row.cancel_wished,
        wait=wait,
        seconds=seconds,
        detail=wait.event_detail,
    )
    status = row.status if moved is None else moved.status
    if closed_as_not_sent(status, attempt=row.attempt, unsent=attempt):
        # With a code it was the provider that could not be reached, not a check that forbade it.
        unreachable = None if code is None else False
        close_attempt(
            conn, generation_id, attempt, outcome="not_sent", code=code, provider_ok=unreachable
        )
    return moved


def declined(
    conn: Connection,
    generation_id: uuid.UUID,
    attempt: int,
    *,
    code: str,
    wait: Wait,
    seconds: float,
    provider_ok: bool | None = None,
) -> Moved | None:
    """`submitting → accepted | cancelled`: a definite refusal that may be otherwise later."""
    code = storable.text(code) or ""
    row = lock(conn, generation_id)
    if row is None:
        return None
    moved = _take_back(
        conn,
        Event.DECLINE,
        generation_id,
        attempt,
        cancel_wished=row.cancel_wished,
        wait=wait,
        seconds=seconds,
        detail={"code": code},
    )
    if moved is not None:
        close_attempt(
            conn, generation_id, attempt, outcome="refused", code=code, provider_ok=provider_ok
        )
    return moved


def _take_back(
    conn: Connection,
    event: Event,
    generation_id: uuid.UUID,
    attempt: int,
    *,
    cancel_wished: bool,
    wait: Wait,
    seconds: float,
    detail: Mapping[str, Any],
) -> Moved | None:
    guards = fenced(event, generation_id, attempt=attempt)
    towards = taken_back(event, cancel_wished=cancel_wished)
    if towards is Event.CANCEL:
        return cancelled(conn, *guards, sources=TRANSITIONS[event].sources)
    return one(
        move(
            conn,
            event,
            *guards,
            values={
                "lease": g.lease + 1,
                "due_at": in_seconds(seconds),
                **wait.columns,
                "failures": g.failures + 1,
            },
            detail=detail,
        )
    )


def refused(
    conn: Connection,
    generation_id: uuid.UUID,
    attempt: int,
    *,
    code: str,
    message: str,
    provider_ok: bool = True,
) -> Moved | None:
    """`submitting → failed`: the provider refused the work itself. Final, never reworded."""
    code = storable.text(code) or UNSPECIFIED
    moved = one(
        move(
            conn,
            Event.REFUSE,
            *fenced(Event.REFUSE, generation_id, attempt=attempt),
            values={
                "lease": g.lease + 1,
                "error_code": code,
                "error_message": storable.text(message),
            },
            detail={"code": code},
        )
    )
    if moved is not None:
        close_attempt(
            conn, generation_id, attempt, outcome="refused", code=code, provider_ok=provider_ok
        )
    return moved
