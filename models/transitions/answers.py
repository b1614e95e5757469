"""Transitions that the POST's answer makes, and adoption, which stands for one.

Fenced by the attempt, not by the lease: an answer counts however late it comes, as long as its
attempt is the row's latest.
"""

import uuid
from collections.abc import Mapping
from datetime import timedelta
from functools import cache
from typing import Any

from sqlalchemy import (
    Connection,
    bindparam,
    case,
    func,
    or_,
    update,
)

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
    GIVEN_DETAIL,
    Moved,
    Prepared,
    attempts_table,
    cancelled,
    carry_out,
    fenced,
    g,
    in_given,
    in_seconds,
    lock,
    move,
    one,
    prepare,
)


def close_attempt(
    conn: Connection,
    generation_id: uuid.UUID,
    attempt: int,
    *,
    outcome: str,
    code: str | None = None,
    remote_task_id: str | None = None,
) -> bool:
    """Record what became of an attempt; a definite outcome is never overwritten."""
    a = attempts_table.c
    done = conn.execute(
        update(attempts_table)
        .where(
            a.generation_id == generation_id,
            a.number == attempt,
            or_(a.outcome.is_(None), a.outcome.in_(OPEN_OUTCOMES)),
        )
        .values(
            outcome=outcome,
            # Absent now, it was answered with this code all the same.
            code=func.coalesce(storable.text(code), a.code),
            remote_task_id=remote_task_id,
            decided_at=func.now(),
        )
    )
    return done.rowcount == 1


def _follow(
    conn: Connection,
    event: Event,
    generation_id: uuid.UUID,
    attempt: int,
    *,
    remote_task_id: str,
    remote_status: str,
    credit_cost: Any,
    poll_seconds: float,
    detail: Mapping[str, Any] | None = None,
) -> Moved | None:
    remote_task_id = storable.text(remote_task_id) or ""
    remote_status = storable.text(remote_status) or ""
    given = {
        "of_id": generation_id,
        "number": attempt,
        "task_id": remote_task_id,
        "shown": remote_status,
        "cost": storable.credits(credit_cost),
        "look_in": timedelta(seconds=poll_seconds),
        "detail": {"remote_task_id": remote_task_id, **(detail or {})},
    }
    return one(carry_out(conn, _following(event), given))


@cache
def _following(event: Event) -> Prepared:
    return prepare(
        event,
        *fenced(event, bindparam("of_id"), attempt=bindparam("number")),
        values={
            **CALM,
            "lease": g.lease + 1,
            "remote_task_id": bindparam("task_id"),
            "remote_status": bindparam("shown"),
            "credit_cost": bindparam("cost"),
            "submitted_at": func.now(),
            "polls": 0,
            # A cancel that was asked for meanwhile goes out at once.
            "due_at": case(
                (g.cancel_requested_at.is_not(None), func.now()),
                # Nor does one go on beyond its deadline.
                else_=func.least(in_given("look_in"), g.deadline_at),
            ),
        },
        detail=GIVEN_DETAIL,
    )


def submitted(
    conn: Connection,
    generation_id: uuid.UUID,
    attempt: int,
    *,
    remote_task_id: str,
    remote_status: str,
    credit_cost: Any,
    poll_seconds: float,
) -> Moved | None:
    """`submitting | uncertain | accepted | uploading → running`: the answer named the task.

    Late or not, if the attempt is the row's latest. Otherwise the caller flags a second task.
    """
    moved = _follow(
        conn,
        Event.SUBMIT,
        generation_id,
        attempt,
        remote_task_id=remote_task_id,
        remote_status=remote_status,
        credit_cost=credit_cost,
        poll_seconds=poll_seconds,
    )
    if moved is not None:
        close_attempt(
            conn, generation_id, attempt, outcome="submitted", remote_task_id=remote_task_id
        )
    return moved


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
    settle_at: Any = None,
) -> Moved | None:
    """`submitting → uncertain`: nobody knows whether the provider made a task of the POST."""
    values: dict[str, Any] = {} if settle_at is None else {"due_at": settle_at}
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
        close_attempt(conn, generation_id, attempt, outcome="unknown", code=code)
    return moved


def not_sent(
    conn: Connection, generation_id: uuid.UUID, attempt: int, *, why: str, seconds: float
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
        waits_for=why,
        seconds=seconds,
        detail={"why": why},
    )
    status = row.status if moved is None else moved.status
    if closed_as_not_sent(status, attempt=row.attempt, unsent=attempt):
        close_attempt(conn, generation_id, attempt, outcome="not_sent")
    return moved


def declined(
    conn: Connection,
    generation_id: uuid.UUID,
    attempt: int,
    *,
    code: str,
    waits_for: str,
    seconds: float,
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
        waits_for=waits_for,
        seconds=seconds,
        detail={"code": code},
    )
    if moved is not None:
        close_attempt(conn, generation_id, attempt, outcome="refused", code=code)
    return moved


def _take_back(
    conn: Connection,
    event: Event,
    generation_id: uuid.UUID,
    attempt: int,
    *,
    cancel_wished: bool,
    waits_for: str,
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
                "waits_for": waits_for,
                "failures": g.failures + 1,
            },
            detail=detail,
        )
    )


def refused(
    conn: Connection, generation_id: uuid.UUID, attempt: int, *, code: str, message: str
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
        close_attempt(conn, generation_id, attempt, outcome="refused", code=code)
    return moved
