"""Asking for a generation to be cancelled, and telling that the provider was asked."""

import uuid

from sqlalchemy import (
    Connection,
    case,
    func,
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
    Moved,
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
    # Locked first: a row that moves between the two ways would slip through both.
    conn.execute(select(g.id).where(g.id == generation_id).with_for_update())
    moved = move(
        conn,
        Event.CANCEL,
        g.id == generation_id,
        values={"lease": g.lease + 1, "cancel_requested_at": func.now()},
        sources=frozenset({Status.ACCEPTED, Status.UPLOADING}),
    )
    if moved:
        return moved[0]
    wished = conn.execute(
        update(generations)
        .where(
            g.id == generation_id,
            g.status.in_(sorted(LIVE)),
            g.cancel_requested_at.is_(None),
        )
        .values(
            cancel_requested_at=func.now(),
            # In doubt, the row stays due when it can be settled; running, it is due now.
            due_at=case((g.status == Status.RUNNING, func.now()), else_=g.due_at),
        )
    )
    if wished.rowcount:
        note(conn, generation_id, Note.CANCEL_ASKED)
    return None


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
