"""The provider's callbacks: hints to look, kept with the attempt that they are of.

A callback proves itself by the secret in its address, of which the table has the digest alone.
It says that the provider has something to show, never what: the row is made due, and a GET tells.
It is a mark as well: an attempt that was called back has a remote task, so it is never taken for
absent, whatever the task list shows.
"""

import hashlib
import hmac
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, case, func, or_, select, tuple_, update

from models import schedule, storable
from models.base import table_of
from models.lifecycle import Note, Status
from models.resolution import Attempt
from models.tables import Generation, SubmitAttempt
from models.transitions import in_seconds, note

g = table_of(Generation).c
a = table_of(SubmitAttempt).c

_LOOKED_AT = (Status.RUNNING, Status.UNCERTAIN)
"""Who is brought forward. While it is `submitting` its answer may still come, and says the same."""

WHY = (
    "the provider called back, so a remote task exists, and it is not found:"
    " decide with `seedance resolve`"
)
"""Why a generation needs attention whose attempt was called back without being answered."""

_ANSWERED = ("submitted", "adopted")
_NO_DIGEST = bytes(32)


@dataclass(frozen=True)
class Address:
    """Which attempt a callback is addressed to, and what it shows to prove itself."""

    generation_id: uuid.UUID
    attempt: int
    secret: str

    def here(self) -> tuple[ColumnElement[bool], ...]:
        """The row of the attempt."""
        return a.generation_id == self.generation_id, a.number == self.attempt


def digest(secret: str) -> bytes:
    """What the table keeps of a secret. It is random and long: no salt, no stretching."""
    return hashlib.sha256(secret.encode()).digest()


def heed(
    conn: Connection, to: Address, *, task_id: str | None = None, spacing: float
) -> bool | None:
    """Take a callback in: remember that it came, and make its row due.

    `task_id`: the remote task that it speaks of, if it does. `spacing`: seconds in which further
    callbacks of the attempt bring no further look, so that no flood makes more than one.

    Returns None where the address is none of ours (nothing is written), False where nothing had
    to be changed, True where something was.
    """
    found = conn.execute(select(a.callback_digest).where(*to.here())).scalar_one_or_none()
    # The same work for an address that never was as for one with a wrong secret.
    if not hmac.compare_digest(digest(to.secret), found or _NO_DIGEST):
        return None
    # First the generation, then the attempt, as everywhere: two orders could deadlock.
    live = conn.execute(
        select(g.id).where(g.id == to.generation_id, g.finished_at.is_(None)).with_for_update()
    ).first()
    if live is None:
        return False
    before = conn.execute(select(a.callback_at, a.outcome).where(*to.here())).one()
    heeded = conn.execute(
        update(SubmitAttempt)
        .where(*to.here(), or_(a.callback_at.is_(None), a.callback_at <= in_seconds(-spacing)))
        .values(
            callback_at=func.now(),
            callback_task_id=func.coalesce(storable.text(task_id), a.callback_task_id),
        )
    ).rowcount
    if before.callback_at is None and before.outcome not in _ANSWERED:
        said = {"remote_task_id": storable.text(task_id)} if task_id else None
        note(conn, to.generation_id, Note.CALLED_BACK, attempt=to.attempt, detail=said)
    wanted = func.now() if heeded else select(_after(spacing)).where(*to.here()).scalar_subquery()
    forward = _bring_forward(conn, to.generation_id, wanted)
    return forward or bool(heeded)


def _after(spacing: float) -> ColumnElement[datetime]:
    """When a callback that came too soon after another is looked at."""
    return a.callback_at + timedelta(seconds=spacing)


def _bring_forward(conn: Connection, generation_id: uuid.UUID, to: ColumnElement[Any]) -> bool:
    by_list = and_(g.status == Status.RUNNING, g.failures == 0)
    done = conn.execute(
        update(Generation)
        .where(
            g.id == generation_id,
            g.status.in_(_LOOKED_AT),
            or_(g.due_at > to, by_list),
        )
        .values(
            due_at=func.least(g.due_at, to),
            # A look that is under way has seen less, and must not put this one off.
            lease=g.lease + 1,
            # Nor is it left to the next reading of the task list: its own look comes at once.
            failures=case((by_list, 1), else_=g.failures),
        )
    )
    if done.rowcount:
        schedule.wake(conn)
    return done.rowcount == 1


def catch_up(conn: Connection, attempts: Sequence[tuple[uuid.UUID, int]]) -> None:
    """Look at once where a callback overtook what became of its POST."""
    came = select(a.generation_id).where(
        tuple_(a.generation_id, a.number).in_(attempts), a.callback_at.is_not(None)
    )
    for generation_id in conn.execute(came.order_by(a.generation_id)).scalars().all():
        _bring_forward(conn, generation_id, func.now())


@dataclass(frozen=True)
class Hint:
    """A callback for an attempt without an answer: a remote task of it exists."""

    attempt: Attempt
    task_id: str | None
    """The remote task that it spoke of, if it did. To be looked at, not to be believed."""


def hints(conn: Connection, generation_id: uuid.UUID) -> list[Hint]:
    """The callbacks of a generation's attempts that were not answered with a task."""
    rows = conn.execute(
        select(a.number, a.seed, a.seed_drawn, a.started_at, a.settle_at, a.callback_task_id)
        .where(
            a.generation_id == generation_id,
            a.callback_at.is_not(None),
            or_(a.outcome.is_(None), a.outcome.not_in(_ANSWERED)),
        )
        .order_by(a.number)
    )
    return [Hint(Attempt(*row[:5]), row.callback_task_id) for row in rows]


def surely_sent(conn: Connection, generation_id: uuid.UUID) -> bool:
    """Whether a callback says that a task exists which no answer named: never send it again.

    Locks the generation, so that no callback comes between this and the caller's decision.
    """
    conn.execute(select(g.id).where(g.id == generation_id).with_for_update())
    return bool(hints(conn, generation_id))


def disown(conn: Connection, generation_id: uuid.UUID) -> list[int]:
    """An operator's word that the callbacks were not for it: forget them, and take no more.

    Returns the numbers of the attempts.
    """
    numbers = [hint.attempt.number for hint in hints(conn, generation_id)]
    conn.execute(
        update(SubmitAttempt)
        .where(a.generation_id == generation_id, a.number.in_(numbers))
        .values(callback_digest=None, callback_at=None, callback_task_id=None)
    )
    return numbers
