"""Accepting a request: the row that makes it durable, written once however often it is sent."""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Any

from sqlalchemy import CTE, ColumnElement, Connection, func, literal, select
from sqlalchemy.dialects.postgresql import insert

from models import budgets, ledger, notices, schedule
from models.base import table_of
from models.ledger.booking import NEEDED
from models.lifecycle import Event, Status
from models.marks import fingerprint, producer_seed
from models.tables import DEFAULT_TENANT, Generation, GenerationEvent

_generations = table_of(Generation)
_events = table_of(GenerationEvent)
g = _generations.c


@dataclass(frozen=True)
class NewGeneration:
    """A checked request, ready to be stored. `request` is normalised: every default filled in."""

    id: uuid.UUID
    request: dict[str, Any]
    estimated_cost: Decimal
    has_sources: bool = False
    tenant: str = DEFAULT_TENANT
    priority: int = 0
    idempotency_key: str | None = None
    metadata: dict[str, Any] | None = None
    deadline: datetime | None = None
    notify: dict[str, Any] | None = None
    trace: str | None = None
    """The trace that it is enqueued in, as W3C `traceparent`."""


class IdempotencyConflict(ValueError):
    """The idempotency key, or the id, was used before for a different request."""


@dataclass(frozen=True)
class Accepted:
    """The generation that stands for the request, and whether this call created it."""

    id: uuid.UUID
    created: bool


def accept(conn: Connection, new: NewGeneration) -> Accepted:
    """Store a request, or find the row that it made before.

    Raises IdempotencyConflict where the id or the key stands for a different request, and
    BudgetExceeded.
    """
    return accept_many(conn, [new])[0]


def accept_many(conn: Connection, requests: Sequence[NewGeneration]) -> list[Accepted]:
    """Store many requests in one statement; the answers are in the order of `requests`.

    Raises BudgetExceeded where a tenant's budget does not cover what is new of its: none is
    stored then.
    """
    if not requests:
        return []
    if not budgets.hold(conn, {new.tenant for new in requests}):
        return _store(conn, requests)
    # Undone where it is refused, whatever the caller makes of its transaction then.
    with conn.begin_nested():
        accepted = _store(conn, requests)
        costs: dict[str, Decimal] = {}
        for new, stored in zip(requests, accepted, strict=True):
            if stored.created:
                costs[new.tenant] = costs.get(new.tenant, Decimal(0)) + new.estimated_cost
        budgets.check(conn, costs)
        return accepted


def _store(conn: Connection, requests: Sequence[NewGeneration]) -> list[Accepted]:
    made = (
        insert(_generations)
        # In one order everywhere: two batches with the same keys must not wait for each other.
        .values([_row(new) for new in sorted(requests, key=_order)])
        .on_conflict_do_nothing()
        .returning(g.id, *NEEDED.values())
        .cte("made")
    )
    told = _told(made.c.id, Event.ACCEPT)
    booked = ledger.on_accept(made, told)
    created = set(conn.execute(select(made.c.id).add_cte(told, booked)).scalars())
    if created:
        schedule.wake(conn)
    return [
        Accepted(new.id, created=True) if new.id in created else _existing(conn, new)
        for new in requests
    ]


def _told(ids: ColumnElement[uuid.UUID], event: Event) -> CTE:
    to_status = Status.FAILED if event is Event.REJECT else Status.ACCEPTED
    return (
        insert(_events)
        .from_select(
            ["generation_id", "event", "to_status"],
            select(ids, literal(str(event)), literal(str(to_status))),
        )
        .returning(_events.c.id, _events.c.generation_id)
        .cte("told")
    )


def _order(new: NewGeneration) -> tuple[str, str]:
    return new.tenant, new.idempotency_key or ""


def _row(new: NewGeneration) -> dict[str, Any]:
    seed = producer_seed(new.request)
    return {
        "id": new.id,
        "status": str(Status.ACCEPTED),
        "request": new.request,
        "metadata": new.metadata,
        "notify": new.notify,
        "idempotency_key": new.idempotency_key,
        "tenant": new.tenant,
        "priority": new.priority,
        "deadline_at": new.deadline,
        "has_sources": new.has_sources,
        "estimated_cost": new.estimated_cost,
        # Known before admission only for a seed that the producer fixed.
        "fingerprint": None if seed is None else fingerprint(new.request, seed),
        "due_at": func.now(),
        "trace": new.trace,
    }


def _existing(conn: Connection, new: NewGeneration) -> Accepted:
    same_key = (g.tenant == new.tenant) & (g.idempotency_key == new.idempotency_key)
    found = (g.id == new.id) if new.idempotency_key is None else (g.id == new.id) | same_key
    row = conn.execute(select(g.id, g.request).where(found).limit(1)).one()
    if row.request != new.request:
        by = f"id {new.id}" if row.id == new.id else f"idempotency_key {new.idempotency_key!r}"
        raise IdempotencyConflict(
            f"{by} was used before, by generation {row.id}, for a different request;"
            " use a new key for a new request"
        )
    return Accepted(row.id, created=False)


@dataclass(frozen=True)
class RefusedRequest:
    """A request that breaks a bound, kept as a failed generation so that its producer sees why."""

    id: uuid.UUID
    request: dict[str, Any]
    message: str
    code: str = "INVALID_REQUEST"
    tenant: str = DEFAULT_TENANT
    metadata: dict[str, Any] | None = field(default=None)
    notify: dict[str, Any] | None = None


def record_refused(conn: Connection, refused: RefusedRequest) -> bool:
    """Store a request that was refused at the door. False if its id exists already."""
    made = (
        insert(_generations)
        .values(
            id=refused.id,
            status=str(Status.FAILED),
            request=refused.request,
            metadata=refused.metadata,
            notify=refused.notify,
            notified=0 if refused.notify is None else 1,
            tenant=refused.tenant,
            estimated_cost=0,
            credit_cost=0,
            error_code=refused.code,
            error_message=refused.message,
            finished_at=func.now(),
        )
        .on_conflict_do_nothing()
        .returning(g.id)
        .cte("made")
    )
    told = _told(made.c.id, Event.REJECT)
    created = conn.execute(select(made.c.id).add_cte(told)).first() is not None
    if created and refused.notify is not None:
        notices.write(conn, [refused.id])
    return created
