"""The statements behind `models.intake`: rows, history, ledger and wake-up in one, for any number.

A batch travels as one JSON document: as thousands of parameters, or as arrays, it costs Python
more than PostgreSQL needs to store it. Statements are built once; compiled, they are the same text
each time, which the driver prepares.
"""

import json
import uuid
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any

from sqlalchemy import (
    CTE,
    JSON,
    Boolean,
    Column,
    ColumnElement,
    Connection,
    Numeric,
    Select,
    SmallInteger,
    Text,
    Uuid,
    and_,
    any_,
    bindparam,
    cast,
    exists,
    func,
    literal,
    select,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, TIMESTAMP, insert

from models import budgets, ledger, schedule
from models.base import table_of
from models.ledger import Budget
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


_COLUMNS: tuple[Column[Any], ...] = (
    Column("id", Uuid),
    Column("request", JSONB),
    Column("metadata", JSONB),
    Column("notify", JSONB),
    Column("idempotency_key", Text),
    Column("tenant", Text),
    Column("priority", SmallInteger),
    Column("deadline_at", TIMESTAMP(timezone=True)),
    Column("has_sources", Boolean),
    Column("estimated_cost", Numeric),
    Column("fingerprint", Text),
    Column("trace", Text),
)
"""What comes with each row; the rest of it is the same for all."""


def _row(new: NewGeneration) -> dict[str, Any]:
    """By `_COLUMNS`; what is left out is null."""
    row = {
        "id": new.id.hex,
        "request": new.request,
        "tenant": new.tenant,
        "priority": new.priority,
        "has_sources": new.has_sources,
        "estimated_cost": str(new.estimated_cost),
    }
    seed = producer_seed(new.request)
    if seed is not None:
        # Known before admission only for a seed that the producer fixed.
        row["fingerprint"] = fingerprint(new.request, seed)
    if new.metadata is not None:
        row["metadata"] = new.metadata
    if new.notify is not None:
        row["notify"] = new.notify
    if new.idempotency_key is not None:
        row["idempotency_key"] = new.idempotency_key
    if new.deadline is not None:
        row["deadline_at"] = new.deadline.isoformat()
    if new.trace is not None:
        row["trace"] = new.trace
    return row


def told(ids: ColumnElement[uuid.UUID], event: Event) -> CTE:
    """The first line of the history of rows that a statement makes."""
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


def _statement(*, asks: bool) -> Select[Any]:
    """Store a batch; one row tells what came of it. `asks`: nothing if a budget is to be asked."""
    document = cast(bindparam("given", type_=Text), JSON)
    given = (
        select(
            func.json_to_recordset(document)
            .table_valued(*_COLUMNS)
            .render_derived(name="given", with_types=True)
        )
        .cte("given")
        .prefix_with("MATERIALIZED")
    )
    held = budgets.refusing(
        table_of(Budget).c.tenant == any_(bindparam("asking", type_=ARRAY(Text)))
    ).cte("held")
    is_held = exists(select(held.c.tenant)) if asks else literal(False)
    rows = select(
        *given.c,
        literal(str(Status.ACCEPTED)),
        func.now(),
    ).where(~is_held)
    made = (
        insert(_generations)
        .from_select([*(column.name for column in _COLUMNS), "status", "due_at"], rows)
        .on_conflict_do_nothing()
        .returning(g.id, *NEEDED.values())
        .cte("made")
    )
    history = told(made.c.id, Event.ACCEPT)
    booked = ledger.on_accept(made, history)
    left_out = select(func.array_agg(given.c.id)).where(
        ~exists().where(made.c.id == given.c.id),
    )
    woken = select(schedule.WAKE).select_from(made).limit(1)
    return select(
        is_held.label("held"),
        left_out.scalar_subquery().label("left_out"),
        woken.scalar_subquery().label("woken"),
    ).add_cte(history, booked)


_STORE = _statement(asks=False)
_ASK_AND_STORE = _statement(asks=True)


def store(
    conn: Connection, batch: Iterable[NewGeneration], *, asking: Collection[str]
) -> set[uuid.UUID] | None:
    """Store what is new of a batch, and return the ids of the rest: they, or their keys, are there.

    `asking`: None, with nothing stored, if one of these tenants has a budget that refuses.
    """
    given = {"given": document(batch), "asking": sorted(asking)}
    done = conn.execute(_ASK_AND_STORE, given).one()
    return None if done.held else set(done.left_out or ())


def document(batch: Iterable[NewGeneration]) -> str:
    """A batch as it travels."""
    return json.dumps([_row(new) for new in batch])


def store_document(conn: Connection, batch: str) -> set[uuid.UUID]:
    """`store` of a `document`, with no budget to be asked, or all of them held."""
    return set(conn.execute(_STORE, {"given": batch}).one().left_out or ())


@dataclass(frozen=True)
class Found:
    """The row that stands where a new one was to be."""

    id: uuid.UUID
    request: dict[str, Any]


def _found() -> Select[Any]:
    wanted = (
        func.unnest(
            bindparam("ids", type_=ARRAY(Uuid)),
            bindparam("tenants", type_=ARRAY(Text)),
            bindparam("keys", type_=ARRAY(Text)),
        )
        .table_valued(Column("id", Uuid), Column("tenant", Text), Column("key", Text))
        .render_derived(name="wanted")
    )
    w = wanted.c
    by_id = select(w.id.label("wanted"), g.id, g.request, literal(1).label("rank")).join_from(
        wanted, _generations, g.id == w.id
    )
    by_key = select(w.id, g.id, g.request, literal(0)).join_from(
        wanted, _generations, and_(g.tenant == w.tenant, g.idempotency_key == w.key)
    )
    both = by_id.union_all(by_key).subquery("both")
    return select(both.c.wanted, both.c.id, both.c.request).order_by(both.c.rank)


_FOUND = _found()


def found(conn: Connection, left_out: Sequence[NewGeneration]) -> dict[uuid.UUID, Found]:
    """The rows that stand for what was left out, by the ids it came with; by id before by key."""
    if not left_out:
        return {}
    rows = conn.execute(
        _FOUND,
        {
            "ids": [new.id for new in left_out],
            "tenants": [new.tenant for new in left_out],
            "keys": [new.idempotency_key for new in left_out],
        },
    )
    return {row.wanted: Found(row.id, row.request) for row in rows}
