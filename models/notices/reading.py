"""Looking at the outbox, and sending again what an operator names."""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, func, select, update

from models.base import table_of
from models.lifecycle import Note
from models.notices import delivery
from models.notices.table import UNSIGNED, Notice, NoticeReceiver, State, Target
from models.operating import actions
from models.operating.actions import Action, By
from models.tables import Generation
from models.transitions.core import note

n = table_of(Notice).c
r = table_of(NoticeReceiver).c
g = table_of(Generation).c


@dataclass(frozen=True)
class NoticeView:
    """A notice as operators see it."""

    id: uuid.UUID
    generation_id: uuid.UUID
    target: Target
    to: str | None
    """The webhook's address, or the task's name. The address may hold a secret in its query."""
    receiver: str
    sequence: int
    type: str
    status: State
    data: dict[str, Any]
    tenant: str
    created_at: datetime
    due_at: datetime | None
    tries: int
    tried_at: datetime | None
    settled_at: datetime | None
    error: str | None


@dataclass(frozen=True)
class ReceiverView:
    """A receiver that fails, and how much waits for it."""

    receiver: str
    failures: int
    failing_since: datetime
    retry_at: datetime
    error: str | None
    waiting: int


_COLUMNS = [
    *(n[name] for name in NoticeView.__dataclass_fields__ if name not in ("to", "tenant")),
    g.tenant,
    g.notify[n.target].astext.label("to"),
]


def listing(
    conn: Connection,
    *,
    states: Sequence[State] = (),
    generation_id: uuid.UUID | None = None,
    receiver: str | None = None,
    tenant: str | None = None,
    limit: int = 50,
) -> list[NoticeView]:
    """The latest notices that are so, the newest first."""
    chosen: list[ColumnElement[bool]] = []
    if states:
        chosen.append(n.status.in_([str(state) for state in states]))
    if generation_id is not None:
        chosen.append(n.generation_id == generation_id)
    if receiver is not None:
        chosen.append(n.receiver == receiver)
    if tenant is not None:
        chosen.append(g.tenant == tenant)
    return _views(conn, *chosen, limit=limit)


def get(conn: Connection, notice_id: uuid.UUID) -> NoticeView | None:
    """One notice, or None if there is none of this id."""
    found = _views(conn, n.id == notice_id, limit=1)
    return found[0] if found else None


def _views(conn: Connection, *chosen: ColumnElement[bool], limit: int) -> list[NoticeView]:
    rows = conn.execute(
        select(*_COLUMNS)
        .join_from(Notice, Generation, g.id == n.generation_id)
        .where(*chosen)
        .order_by(n.created_at.desc(), n.sequence.desc(), n.target)
        .limit(limit)
    )
    return [
        NoticeView(**{**row._asdict(), "target": Target(row.target), "status": State(row.status)})
        for row in rows
    ]


def counts(conn: Connection) -> dict[State, int]:
    """How many are pending, and how many were set aside. Delivered ones are not counted."""
    found = conn.execute(
        select(n.status, func.count()).where(n.status.in_(["pending", "dead"])).group_by(n.status)
    )
    told = {State(status): count for status, count in found}
    return {state: told.get(state, 0) for state in (State.PENDING, State.DEAD)}


def unsigned(conn: Connection) -> int:
    """How many webhooks a worker put off since it has no secret to sign them with."""
    found = select(func.count()).where(n.status == str(State.PENDING), n.error == UNSIGNED)
    return conn.execute(found).scalar_one()


def receivers(conn: Connection) -> list[ReceiverView]:
    """The receivers that fail just now, the longest failing first."""
    waiting = (
        select(func.count())
        .select_from(Notice)
        .where(n.receiver == r.receiver, n.status == "pending")
        .scalar_subquery()
    )
    rows = conn.execute(
        select(*(c for c in table_of(NoticeReceiver).c), waiting.label("waiting")).order_by(
            r.failing_since
        )
    )
    return [ReceiverView(**row._asdict()) for row in rows]


def resend(conn: Connection, ids: Sequence[uuid.UUID], *, by: By) -> list[uuid.UUID]:
    """Make notices due again, delivered ones as well, under the ids that they have.

    Their time begins anew. Who did it is recorded, and in the histories. Returns those that there
    were.
    """
    delivery.lock(conn, ids)
    done = conn.execute(
        update(Notice)
        .where(n.id.in_(ids))
        .values(
            status=str(State.PENDING),
            claimed=False,
            # Raised, so that a delivery under way can't settle what was asked for now.
            lease=n.lease + 1,
            due_at=func.now(),
            since=func.now(),
            settled_at=None,
            tries=0,
            error=None,
        )
        .returning(n.id, n.generation_id, n.sequence, n.target)
    ).all()
    for row in done:
        delivery.goes_first(conn, row.id)
        detail = {"notice": str(row.id), "sequence": row.sequence, "to": row.target}
        actions.record_of(conn, Action.NOTICE_RESEND, by, [row.generation_id], detail=detail)
        detail["by"] = by.told
        note(conn, row.generation_id, Note.NOTICE_RESENT, detail=detail)
    return [row.id for row in done]


def dead_receivers(conn: Connection, *, limit: int = 20) -> list[str]:
    """Whose notices were set aside."""
    dead = select(n.receiver).where(n.status == str(State.DEAD)).distinct()
    return list(conn.execute(dead.order_by(n.receiver).limit(limit)).scalars())


def dead_ids(conn: Connection, *, receiver: str | None, limit: int) -> list[uuid.UUID]:
    """Notices that were set aside, of one receiver if it is named, the oldest first."""
    chosen = [] if receiver is None else [n.receiver == receiver]
    return list(
        conn.execute(
            select(n.id)
            .where(n.status == str(State.DEAD), *chosen)
            .order_by(n.created_at, n.sequence)
            .limit(limit)
        ).scalars()
    )
