"""Who changed what, when and why: written in the transaction of the change, never altered."""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import ColumnElement, Connection, insert, select

from models import storable
from models.base import table_of
from models.operating.tables import OperatorAction
from models.tables import Generation

_actions = table_of(OperatorAction)
a = _actions.c
g = table_of(Generation).c


class Action(StrEnum):
    """What an operator can change."""

    CANCEL = "cancel"
    RETRY = "retry"
    RESOLVE = "resolve"
    PAUSE = "pause"
    RESUME = "resume"
    BUDGET_SET = "budget_set"
    BUDGET_REMOVE = "budget_remove"
    NOTICE_RESEND = "notice_resend"


@dataclass(frozen=True)
class By:
    """Who does it, and why if that was told."""

    who: str
    why: str | None = None

    @property
    def told(self) -> str:
        """As histories of generations name who did it."""
        return f"operator {self.who}"


def record(
    conn: Connection,
    action: Action,
    by: By,
    *,
    tenant: str | None = None,
    detail: Mapping[str, Any] | None = None,
) -> None:
    """Record a change that belongs to no generation."""
    conn.execute(
        insert(_actions).values(
            action=str(action),
            actor=storable.text(by.who),
            reason=storable.text(by.why),
            tenant=tenant,
            detail=dict(detail) if detail else None,
        )
    )


def record_of(
    conn: Connection,
    action: Action,
    by: By,
    generation_ids: Sequence[uuid.UUID],
    *,
    detail: Mapping[str, Any] | None = None,
) -> None:
    """Record a change of generations, a line for each, with its tenant."""
    kept = dict(detail) if detail else None
    said = {"action": str(action), "actor": storable.text(by.who), "reason": storable.text(by.why)}
    rows = conn.execute(select(g.id, g.tenant).where(g.id.in_(generation_ids)).order_by(g.id))
    lines = [
        {**said, "generation_id": row.id, "tenant": row.tenant, "detail": kept} for row in rows
    ]
    if lines:
        conn.execute(insert(_actions), lines)


@dataclass(frozen=True)
class ActionView:
    """One change by an operator."""

    at: datetime
    action: str
    actor: str
    reason: str | None
    tenant: str | None
    generation_id: uuid.UUID | None
    detail: dict[str, Any] | None


_COLUMNS = [a[name] for name in ActionView.__dataclass_fields__]


def of_generation(
    conn: Connection, generation_id: uuid.UUID, *, retry_of: uuid.UUID | None = None
) -> list[ActionView]:
    """What operators did to a generation, in order; there when the generation is not any more.

    How it came to be is told of the one that it is a retry of: name that to have it as well.
    """
    mine = a.generation_id == generation_id
    if retry_of is not None:
        made = a.detail["retried_as"].astext == str(generation_id)
        mine |= (a.generation_id == retry_of) & made
    rows = conn.execute(select(*_COLUMNS).where(mine).order_by(a.id))
    return [ActionView(*row) for row in rows]


def newest(
    conn: Connection,
    *,
    action: Action | None = None,
    actor: str | None = None,
    tenant: str | None = None,
    generation_id: uuid.UUID | None = None,
    since: datetime | None = None,
    limit: int = 50,
) -> list[ActionView]:
    """What operators did, the latest first."""
    wanted: list[ColumnElement[bool]] = []
    wanted += [] if action is None else [a.action == str(action)]
    wanted += [] if actor is None else [a.actor == actor]
    wanted += [] if tenant is None else [a.tenant == tenant]
    wanted += [] if generation_id is None else [a.generation_id == generation_id]
    wanted += [] if since is None else [a.at >= since]
    rows = conn.execute(select(*_COLUMNS).where(*wanted).order_by(a.id.desc()).limit(limit))
    return [ActionView(*row) for row in rows]
