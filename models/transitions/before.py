"""Transitions before the POST, fenced by the lease."""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import Any

from sqlalchemy import (
    CTE,
    BigInteger,
    Boolean,
    ColumnElement,
    Connection,
    Integer,
    Text,
    Uuid,
    any_,
    bindparam,
    column,
    func,
    insert,
    select,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from models import storable
from models.lifecycle import (
    Event,
    Status,
)
from models.transitions.core import (
    CALM,
    GIVEN_DETAIL,
    Moved,
    Prepared,
    Values,
    attempts_table,
    carry_out,
    fenced,
    g,
    in_given,
    in_seconds,
    move,
    one,
    prepare,
)
from models.wait_reasons import NO_WAIT, Wait


def admit(conn: Connection, ids: Sequence[uuid.UUID], *, lease_seconds: float) -> list[Moved]:
    """`accepted → uploading`: each takes a slot and a lease."""
    given = {"ids": list(ids), "leased_for": timedelta(seconds=lease_seconds), "detail": None}
    return carry_out(conn, _admit(), given)


@cache
def _admit() -> Prepared:
    return prepare(
        Event.ADMIT,
        g.id == any_(bindparam("ids", type_=ARRAY(Uuid))),
        values={
            "lease": g.lease + 1,
            "due_at": in_given("leased_for"),
            "leased_until": in_given("leased_for"),
            "claimed_by": None,
            "blocked_by": None,
            **NO_WAIT,
        },
        detail=GIVEN_DETAIL,
        # A producer's open transaction on one row must not hold up all the others.
        skip_locked=True,
    )


def put_back(
    conn: Connection,
    generation_id: uuid.UUID,
    lease: int,
    *,
    wait: Wait,
    seconds: float,
    blocked_by: uuid.UUID | None = None,
    attention: str | None = None,
    failed: bool = False,
) -> Moved | None:
    """`uploading → accepted`: it may not be sent now, and gives its slot to another."""
    values: dict[str, Any] = {
        "lease": g.lease + 1,
        "due_at": in_seconds(seconds),
        **wait.columns,
        "blocked_by": blocked_by,
        "tries": 0,
        "failures": g.failures + (1 if failed else 0),
    }
    if attention is not None:
        values |= {
            "attention": attention,
            "attention_at": func.coalesce(g.attention_at, func.now()),
        }
    return one(
        move(
            conn,
            Event.PUT_BACK,
            *fenced(Event.PUT_BACK, generation_id, lease=lease),
            values=values,
            detail=wait.event_detail,
        )
    )


@dataclass(frozen=True)
class Intending:
    """A generation that is to be submitted, the lease it is held under, and its attempt."""

    id: uuid.UUID
    lease: int
    attempt: int
    fingerprint: str
    seed: int
    seed_drawn: bool
    callback_digest: bytes | None = None


def intend(conn: Connection, intending: Intending, *, settle_seconds: float) -> Moved | None:
    """`uploading → submitting`: committed before the POST, with its attempt.

    Due again when the attempt has settled. Raises IntegrityError where another generation in doubt
    has the fingerprint, or another attempt the drawn seed.
    """
    digest = intending.callback_digest
    row = {
        "id": str(intending.id),
        "lease": intending.lease,
        "attempt": intending.attempt,
        "fingerprint": intending.fingerprint,
        "seed": intending.seed,
        "drawn": intending.seed_drawn,
        "digest": None if digest is None else digest.hex(),
    }
    given = {
        "intending": [row],
        "settles_in": timedelta(seconds=settle_seconds),
        "detail": None,
    }
    return one(carry_out(conn, _intend(), given))


_INTENDING = (
    func.jsonb_to_recordset(bindparam("intending", type_=JSONB))
    .table_valued(
        column("id", Uuid),
        column("lease", BigInteger),
        column("attempt", Integer),
        column("fingerprint", Text),
        column("seed", BigInteger),
        column("drawn", Boolean),
        column("digest", Text),
        name="intending",
    )
    .render_derived(with_types=True)
)


@cache
def _intend() -> Prepared:
    i = _INTENDING.c
    return prepare(
        Event.INTEND,
        *fenced(Event.INTEND, i.id, lease=i.lease),
        g.cancel_requested_at.is_(None),
        values={
            **CALM,
            "lease": g.lease + 1,
            "attempt": i.attempt,
            "fingerprint": i.fingerprint,
            "due_at": in_given("settles_in"),
        },
        detail=GIVEN_DETAIL,
        each=_INTENDING,
        also=_store_attempt,
    )


def _store_attempt(moved: CTE) -> CTE:
    """Return the part of the statement that stores the attempt."""
    i = _INTENDING.c
    stored = insert(attempts_table).from_select(
        [
            *("generation_id", "number", "seed", "seed_drawn", "fingerprint"),
            *("callback_digest", "settle_at"),
        ],
        select(
            *(moved.c.id, i.attempt, i.seed, i.drawn, i.fingerprint),
            func.decode(i.digest, "hex"),
            in_given("settles_in"),
        ).where(i.id == moved.c.id),
    )
    return stored.returning(attempts_table.c.number).cte("stored")


def reject(
    conn: Connection, generation_id: uuid.UUID, lease: int, *, code: str, message: str
) -> Moved | None:
    """`uploading → failed`: the request can't be carried out (an unreadable reference, say)."""
    return one(
        move(
            conn,
            Event.REJECT,
            *fenced(Event.REJECT, generation_id, lease=lease),
            values={
                "error_code": storable.text(code),
                "error_message": storable.text(message),
                "lease": g.lease + 1,
            },
            detail={"code": code},
        )
    )


_LAPSED: Values = {
    "lease": g.lease + 1,
    "error_code": "DEADLINE_PASSED",
    "error_message": "the deadline passed before the generation could be submitted",
}
_LATE = g.deadline_at <= func.now()


def lapse(conn: Connection, *guards: ColumnElement[bool]) -> list[Moved]:
    """`accepted | uploading → expired`: the deadline passed before it was sent."""
    return move(conn, Event.LAPSE, _LATE, *guards, values=_LAPSED, skip_locked=True)


def lapse_waiting(conn: Connection) -> list[Moved]:
    """`lapse` of all that is still `accepted`; asked for before each admission."""
    return carry_out(conn, _lapsing(), {"detail": None})


@cache
def _lapsing() -> Prepared:
    return prepare(
        Event.LAPSE,
        _LATE,
        values=_LAPSED,
        detail=GIVEN_DETAIL,
        sources=frozenset({Status.ACCEPTED}),
        skip_locked=True,
    )


def poison(conn: Connection, generation_id: uuid.UUID, lease: int) -> Moved | None:
    """`uploading → failed`: it was handed out again and again and never came back."""
    return one(
        move(
            conn,
            Event.POISON,
            *fenced(Event.POISON, generation_id, lease=lease),
            values={
                "lease": g.lease + 1,
                "error_code": "WORKER_LOST",
                "error_message": "workers died or hung on it again and again; see its events",
            },
        )
    )
