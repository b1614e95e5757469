"""Transitions out of doubt: two complete readings found nothing, or an operator decided."""

import uuid
from collections.abc import Mapping
from typing import Any

from sqlalchemy import (
    Connection,
    func,
    select,
)

from models.decisions import after_absence
from models.lifecycle import TOO_MANY, TRANSITIONS, Event
from models.transitions.answers import close_attempt
from models.transitions.core import (
    CALM,
    Moved,
    attempts_table,
    cancelled,
    fenced,
    g,
    in_seconds,
    lock,
    move,
    one,
)


def absent(
    conn: Connection,
    generation_id: uuid.UUID,
    attempt: int,
    *,
    max_attempts: int,
    detail: Mapping[str, Any],
    seconds: float = 0.0,
) -> Moved | None:
    """`uncertain → accepted | cancelled | failed`: no remote task exists for any attempt.

    Only attempts that ended this way count against `max_attempts`; refusals burn none, and
    neither does one that the provider had too many tasks for.
    """
    a = attempts_table.c
    row = lock(conn, generation_id)
    if row is None:
        return None
    mine, vain = a.number == attempt, a.code.is_distinct_from(TOO_MANY)
    before, counts = conn.execute(
        select(
            func.count().filter(~mine, a.outcome == "absent", vain),
            func.count().filter(mine, vain),
        ).where(a.generation_id == generation_id)
    ).one()
    event = after_absence(
        cancel_wished=row.cancel_wished,
        absent_before=before,
        max_attempts=max_attempts,
        counts=counts > 0,
    )
    guards = fenced(Event.ABSENT, generation_id, attempt=attempt)
    moved = None
    match event:
        case Event.CANCEL:
            moved = cancelled(
                conn, *guards, sources=TRANSITIONS[Event.ABSENT].sources, detail=detail
            )
        case Event.EXHAUST:
            values: dict[str, Any] = {
                "lease": g.lease + 1,
                "error_code": "SUBMIT_ATTEMPTS_EXHAUSTED",
                "error_message": f"{before + 1} attempts, and the provider made no task of any",
            }
            moved = one(move(conn, event, *guards, values=values, detail=detail))
        case _:
            values = {**CALM, "lease": g.lease + 1, "due_at": in_seconds(seconds)}
            moved = one(move(conn, event, *guards, values=values, detail=detail))
    if moved is not None:
        close_attempt(conn, generation_id, attempt, outcome="absent")
    return moved


def give_up(
    conn: Connection, generation_id: uuid.UUID, attempt: int, *, actor: str
) -> Moved | None:
    """`uncertain | accepted | uploading → failed`: an operator ended it."""
    moved = one(
        move(
            conn,
            Event.GIVE_UP,
            *fenced(Event.GIVE_UP, generation_id, attempt=attempt),
            values={
                "lease": g.lease + 1,
                "credit_cost": None,  # nobody knows; a charge is found by the watch
                "error_code": "GIVEN_UP",
                "error_message": f"ended by {actor} while its submission was undecided",
            },
            detail={"by": actor},
        )
    )
    if moved is not None:
        close_attempt(conn, generation_id, attempt, outcome="given_up")
    return moved
