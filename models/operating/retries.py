"""Retrying: a new generation of the same request, linked to the one that ended without a video.

Retries of one request are a chain, each retried once (`retry_of`, `retried_as`): what is retried
again is the last of them. So whatever is true of the end of the chain is true of the request, and a
refusal of its content by the provider can't be walked around.
"""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from types import MappingProxyType
from typing import Any

from sqlalchemy import Connection, Row, exists, func, or_, select, text, update

from models.base import table_of
from models.error_classes import FINAL
from models.ledger.table import Kind, LedgerEntry
from models.lifecycle import TERMINAL, Note, Status
from models.operating import actions
from models.operating.actions import Action, By
from models.tables import OPEN_ATTEMPT_SQL, Generation, StrayTask, SubmitAttempt
from models.transitions.core import note

g = table_of(Generation).c
a = table_of(SubmitAttempt).c
s = table_of(StrayTask).c
c = table_of(LedgerEntry).c

RETRYABLE = TERMINAL - {Status.COMPLETED}
"""What ended without a video."""

AT_THE_DOOR = frozenset({"INVALID_REQUEST", "IDEMPOTENCY_CONFLICT"})
"""Never accepted: their producer must send them again, and right."""

_LESS = ("failed", "cancelled", "expired")


class Refusal(StrEnum):
    """Why a generation is not retried."""

    OPEN = "open"
    COMPLETED = "completed"
    FINAL = "final"
    DOOR = "door"
    RETRIED = "retried"
    GONE = "gone"
    RETRY = "retry"
    UNSETTLED = "unsettled"
    TASK = "task"


MEANS: Mapping[Refusal, str] = MappingProxyType(
    {
        Refusal.OPEN: "it has not ended",
        Refusal.COMPLETED: "it has completed: for another video its producer enqueues it anew",
        Refusal.FINAL: "the provider refused its content, which is final",
        Refusal.DOOR: "it was refused at the door: its producer must send it again, corrected",
        Refusal.RETRIED: "it was retried already; --again retries the last of its retries",
        Refusal.GONE: "a retry of it is no longer kept, and how that ended: its producer must send"
        " it again",
        Refusal.RETRY: "it is a retry itself; --again retries it all the same",
        Refusal.UNSETTLED: "the provider may still make a task of its last attempt",
        Refusal.TASK: "a remote task of its own was found, and may be paid; --again pays twice",
    }
)
"""Each in words."""


@dataclass(frozen=True)
class End:
    """What decides whether a generation is retried."""

    status: Status
    error_code: str | None
    retry_of: uuid.UUID | None = None
    retried_as: uuid.UUID | None = None
    unsettled: bool = False
    """An attempt without a definite answer, of which a task may still be made."""
    has_task: bool = False
    """A remote task of its own that nobody follows and that has not failed, or that was charged
    although the generation ended otherwise.
    """
    chain_lost: bool = False
    """The generation that it was retried as is no longer kept."""


def refuse(end: End, *, again: bool) -> Refusal | None:
    """Why it is not retried; None if it may be. `again` sets aside what only asks for care."""
    if end.status not in TERMINAL:
        return Refusal.OPEN
    if end.status not in RETRYABLE:
        return Refusal.COMPLETED
    if end.error_code in FINAL:
        return Refusal.FINAL
    if end.error_code in AT_THE_DOOR:
        return Refusal.DOOR
    if end.unsettled:
        return Refusal.UNSETTLED
    if end.chain_lost:
        # It may have been refused for its content, or have a retry that runs: nobody knows.
        return Refusal.GONE
    if again:
        return None
    if end.retried_as is not None:
        return Refusal.RETRIED
    if end.retry_of is not None:
        return Refusal.RETRY
    return Refusal.TASK if end.has_task else None


_UNSETTLED = (
    exists()
    .where(a.generation_id == g.id, text(OPEN_ATTEMPT_SQL), a.settle_at > func.now())
    .label("unsettled")
)
_HAS_TASK = or_(
    exists().where(s.generation_id == g.id, s.kind != "foreign", s.status.not_in(_LESS)),
    # What ended without a video and was charged has one at the provider all the same.
    exists().where(c.generation_id == g.id, c.kind == Kind.CHARGED),
).label("has_task")
DECIDING = (g.status, g.error_code, g.retry_of, g.retried_as, _UNSETTLED, _HAS_TASK)
"""The columns that `end_of` reads."""


def end_of(row: Row[Any] | Any) -> End:
    """The facts in a row with the columns `DECIDING`."""
    return End(
        Status(row.status),
        row.error_code,
        row.retry_of,
        row.retried_as,
        row.unsettled,
        row.has_task,
    )


@dataclass(frozen=True)
class Locked:
    """A generation that nobody else can retry until this transaction ends, and what it asked."""

    id: uuid.UUID
    end: End
    request: dict[str, Any]
    tenant: str
    priority: int
    metadata: dict[str, Any] | None
    notify: dict[str, Any] | None
    deadline: datetime | None
    """None too where it has passed."""


def lock(conn: Connection, generation_id: uuid.UUID, *, again: bool) -> Locked | None:
    """Lock a generation; with `again` the last of its retries. None if there is none."""
    # Locked first, then read: what was found of its remote tasks while this waited counts.
    conn.execute(select(g.id).where(g.id == generation_id).with_for_update())
    row = conn.execute(
        select(
            g.id,
            *DECIDING,
            g.request,
            g.tenant,
            g.priority,
            g["metadata"],
            g.notify,
            g.deadline_at,
            (g.deadline_at > func.now()).label("ahead"),
        ).where(g.id == generation_id)
    ).one_or_none()
    if row is None:
        return None
    end = end_of(row)
    if again and row.retried_as is not None:
        # The first stays locked: whoever else goes along the chain comes behind.
        later = lock(conn, row.retried_as, again=True)
        if later is not None:
            return later
        end = replace(end, chain_lost=True)
    return Locked(
        row.id,
        end,
        row.request,
        row.tenant,
        row.priority,
        row.metadata,
        row.notify,
        row.deadline_at if row.ahead else None,
    )


def link(conn: Connection, of: uuid.UUID, new: uuid.UUID, by: By) -> None:
    """Let the two name each other, and keep who did it and why."""
    conn.execute(update(Generation).where(g.id == of).values(retried_as=new))
    conn.execute(update(Generation).where(g.id == new).values(retry_of=of))
    note(conn, of, Note.RETRIED, detail={"as": str(new), "by": by.told})
    actions.record_of(conn, Action.RETRY, by, [of], detail={"retried_as": str(new)})
