"""Transitions out of doubt: two complete readings found nothing, or an operator decided."""

import uuid
from collections.abc import Mapping
from typing import Any

from sqlalchemy import (
    Connection,
    func,
    select,
)

from models.lifecycle import (
    Event,
    Status,
)
from models.transitions.answers import close_attempt
from models.transitions.core import (
    CALM,
    Moved,
    attempts_table,
    g,
    in_seconds,
    move,
    one,
    wished,
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

    Only attempts that ended this way count against `max_attempts`; refusals burn none.
    """
    mine = (g.id == generation_id, g.attempt == attempt)
    a = attempts_table.c
    absent_before = conn.execute(
        select(func.count()).where(
            a.generation_id == generation_id, a.outcome == "absent", a.number != attempt
        )
    ).scalar_one()
    in_vain = absent_before + 1
    moved = wished(conn, *mine, sources=frozenset({Status.UNCERTAIN}), detail=detail)
    if not moved and in_vain >= max_attempts:
        moved = move(
            conn,
            Event.EXHAUST,
            *mine,
            values={
                "lease": g.lease + 1,
                "error_code": "SUBMIT_ATTEMPTS_EXHAUSTED",
                "error_message": f"{in_vain} attempts, and the provider made no task of any",
            },
            detail=detail,
        )
    elif not moved:
        moved = move(
            conn,
            Event.ABSENT,
            *mine,
            values={**CALM, "lease": g.lease + 1, "due_at": in_seconds(seconds)},
            detail=detail,
        )
    if moved:
        close_attempt(conn, generation_id, attempt, outcome="absent")
    return one(moved)


def give_up(
    conn: Connection, generation_id: uuid.UUID, attempt: int, *, actor: str
) -> Moved | None:
    """`uncertain | accepted | uploading → failed`: an operator ended it."""
    moved = one(
        move(
            conn,
            Event.GIVE_UP,
            g.id == generation_id,
            g.attempt == attempt,
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
