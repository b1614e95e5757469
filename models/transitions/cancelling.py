"""Asking for generations to be cancelled, and telling that the provider was asked."""

import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import (
    Connection,
    case,
    func,
    insert,
    select,
    update,
)

from models.lifecycle import (
    LIVE,
    Event,
    Note,
    Status,
)
from models.transitions.core import (
    LOCK_ORDER,
    Moved,
    events_table,
    g,
    generations,
    move,
    note,
)


def cancel(conn: Connection, generation_id: uuid.UUID) -> Moved | None:
    """`accepted | uploading → cancelled` at once; later, the wish is kept and carried out.

    Returns the move if it ended here, None where the wish was stored (or nothing is left to
    cancel: see the row).
    """
    moved = cancel_many(conn, [generation_id])
    return moved[0] if moved else None


def cancel_many(
    conn: Connection, ids: Sequence[uuid.UUID], *, detail: Mapping[str, Any] | None = None
) -> list[Moved]:
    """The same for many, in a few statements; returns the moves of those that ended here."""
    # Locked first: a row that moves between the two ways would slip through both.
    conn.execute(select(g.id).where(g.id.in_(ids)).order_by(*LOCK_ORDER).with_for_update())
    moved = move(
        conn,
        Event.CANCEL,
        g.id.in_(ids),
        values={"lease": g.lease + 1, "cancel_requested_at": func.now()},
        detail=detail,
        sources=frozenset({Status.ACCEPTED, Status.UPLOADING}),
    )
    if len(moved) == len(ids):
        return moved
    wished = conn.execute(
        update(generations)
        .where(
            g.id.in_(ids),
            g.status.in_(sorted(LIVE)),
            g.cancel_requested_at.is_(None),
        )
        .values(
            cancel_requested_at=func.now(),
            # In doubt, the row stays due when it can be settled; running, it is due now.
            due_at=case((g.status == Status.RUNNING, func.now()), else_=g.due_at),
        )
        .returning(g.id)
    )
    kept = dict(detail) if detail else None
    told = [
        {"generation_id": row.id, "event": str(Note.CANCEL_ASKED), "detail": kept} for row in wished
    ]
    if told:
        conn.execute(insert(events_table), told)
    return moved


def cancel_sent(conn: Connection, generation_id: uuid.UUID, lease: int, *, answer: str) -> bool:
    """The provider was asked to cancel; its answer is only a hint."""
    done = conn.execute(
        update(generations)
        .where(g.id == generation_id, g.lease == lease, g.status == Status.RUNNING)
        .values(cancel_sent_at=func.now())
    )
    if done.rowcount:
        note(conn, generation_id, Note.CANCEL_SENT, detail={"answer": answer})
    return done.rowcount == 1
