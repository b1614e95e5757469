"""Transitions out of doubt: two complete readings found nothing, or an operator decided."""

import math
import uuid
from collections.abc import Mapping
from typing import Any

from sqlalchemy import (
    Connection,
    func,
    select,
)

from models.decisions import after_absence
from models.lifecycle import TRANSITIONS, Event
from models.transitions.answers import close_attempt
from models.transitions.core import (
    CALM,
    Moved,
    attempts_table,
    cancelled,
    fenced,
    g,
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
    retry_for: float = math.inf,
) -> Moved | None:
    """`uncertain → accepted | cancelled | failed`: no remote task exists for any attempt.

    `max_attempts` bounds the attempts without any answer of the provider; those that it answered
    with a code of its own are repeated for `retry_for` seconds from the first attempt.
    """
    a = attempts_table.c
    row = lock(conn, generation_id)
    if row is None:
        return None
    mine, lost = a.number == attempt, a.code.is_(None)
    before, counts, since = conn.execute(
        select(
            func.count().filter(~mine, a.outcome == "absent", lost),
            func.count().filter(mine, lost),
            func.extract(
                "epoch",
                func.now()
                - func.min(a.started_at).filter(a.code.is_not(None), a.provider_ok.is_(False)),
            ),
        ).where(a.generation_id == generation_id)
    ).one()
    event = after_absence(
        cancel_wished=row.cancel_wished,
        absent_before=before,
        max_attempts=max_attempts,
        counts=counts > 0,
        too_long=float(since or 0) > retry_for,
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
                "error_message": f"{attempt} attempts, and the provider made no task of any",
            }
            moved = one(move(conn, event, *guards, values=values, detail=detail))
        case _:
            values = {**CALM, "lease": g.lease + 1, "due_at": func.now()}
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
