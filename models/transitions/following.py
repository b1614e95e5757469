"""What observations and polls write while a remote task runs."""

import uuid
from typing import Any

from sqlalchemy import (
    Connection,
    func,
    select,
    update,
)

from models import ledger
from models.lifecycle import (
    LIVE,
    Contradiction,
    Finish,
    Followed,
    Note,
    Nothing,
    Observation,
    Progress,
    Status,
    is_known,
    observe,
)
from models.transitions.core import (
    Moved,
    by_deadline,
    g,
    generations,
    in_seconds,
    note,
    one,
    tell_once,
)
from models.transitions.ending import finish
from models.wait_reasons import NO_WAIT, Wait


def apply_observation(conn: Connection, seen: Observation) -> Moved | Note | None:
    """Hold an observation against the generation that follows its task, and record the outcome.

    Guarded by rank and terminality, not by lease: it may come from a poll, the task list or a
    callback, in any order. Returns the move if the generation ended, PROGRESS or CONTRADICTION,
    or None where nothing changed.
    """
    row = conn.execute(
        select(g.id, g.status, g.attempt, g.remote_task_id, g.remote_status)
        .where(g.remote_task_id == seen.task_id)
        .with_for_update()
    ).one_or_none()
    if row is None:
        return None
    decision = observe(Followed(Status(row.status), row.remote_task_id, row.remote_status), seen)
    match decision:
        case Finish(event):
            return one(finish(conn, event, [(row.id, seen)]))
        case Progress():
            conn.execute(
                update(generations)
                .where(g.id == row.id)
                .values(remote_status=seen.status, observed_at=func.now())
            )
            note(conn, row.id, Note.PROGRESS, detail={"remote_status": seen.status})
            return Note.PROGRESS
        case Contradiction():
            tell_once(
                conn,
                row.id,
                Note.CONTRADICTION,
                {
                    "recorded": row.remote_status,
                    "seen": seen.status,
                    "credit_cost": _text(seen.credit_cost),
                },
            )
            if seen.status == "completed":
                ledger.charge_beside(
                    conn,
                    row.id,
                    row.attempt,
                    task_id=seen.task_id,
                    amount=seen.credit_cost,
                    why=f"recorded as {row.remote_status}",
                )
            return Note.CONTRADICTION
        case Nothing():
            if row.status == Status.RUNNING:
                conn.execute(
                    update(generations).where(g.id == row.id).values(observed_at=func.now())
                )
            if not is_known(seen.status):
                tell_once(conn, row.id, Note.UNKNOWN_STATUS, {"remote_status": seen.status})
            return None


def _text(amount: Any) -> str | None:
    return None if amount is None else str(amount)


def reschedule(
    conn: Connection,
    generation_id: uuid.UUID,
    lease: int,
    *,
    seconds: float,
    polls: int | None = None,
    failures: int | None = None,
) -> bool:
    """Say when a live generation is due next, if its lease is still held.

    While its task runs no later than its deadline: then it is to be cancelled.
    """
    values: dict[str, Any] = {"due_at": by_deadline(in_seconds(seconds)), "tries": 0}
    if polls is not None:
        values["polls"] = polls
    if failures is not None:
        values["failures"] = failures
    done = conn.execute(
        update(generations)
        .where(g.id == generation_id, g.lease == lease, g.status.in_(sorted(LIVE)))
        .values(values)
    )
    return done.rowcount == 1


def need_attention(conn: Connection, generation_id: uuid.UUID, why: str) -> bool:
    """Ask for an operator: the row gives up its slot, is told once, and is still looked at."""
    done = conn.execute(
        update(generations)
        .where(g.id == generation_id, g.finished_at.is_(None), g.attention.is_distinct_from(why))
        .values(attention=why, attention_at=func.coalesce(g.attention_at, func.now()))
    )
    if done.rowcount:
        note(conn, generation_id, Note.ATTENTION, detail={"why": why})
    return done.rowcount == 1


def overdue(conn: Connection, generation_id: uuid.UUID, lease: int) -> bool:
    """Its deadline has passed while its task runs: the wish to cancel is stored, once."""
    done = conn.execute(
        update(generations)
        .where(
            g.id == generation_id,
            g.lease == lease,
            g.status == Status.RUNNING,
            g.deadline_at <= func.now(),
            g.cancel_requested_at.is_(None),
        )
        .values(cancel_requested_at=func.now())
    )
    if done.rowcount:
        note(conn, generation_id, Note.CANCEL_ASKED, detail={"by": "deadline"})
    return done.rowcount == 1


def stay(
    conn: Connection, generation_id: uuid.UUID, *, wait: Wait, seconds: float, **also: Any
) -> None:
    """Store why it stays accepted and when it is due again. Skips a row that is locked."""
    free = (
        select(g.id)
        .where(g.id == generation_id, g.status == Status.ACCEPTED)
        .with_for_update(skip_locked=True)
        .scalar_subquery()
    )
    conn.execute(
        update(generations)
        .where(g.id == free)
        .values(**wait.columns, due_at=in_seconds(seconds), **also)
    )


def decided(conn: Connection, generation_id: uuid.UUID) -> None:
    """What it awaited a decision about is settled: it may be let in again."""
    conn.execute(
        update(generations)
        .where(g.id == generation_id, g.status == Status.ACCEPTED)
        .values(attention=None, attention_at=None, **NO_WAIT, due_at=func.now())
    )


def calm(conn: Connection, generation_id: uuid.UUID) -> None:
    """Attention is no longer needed."""
    conn.execute(
        update(generations)
        .where(g.id == generation_id, g.attention.is_not(None))
        .values(attention=None, attention_at=None)
    )
