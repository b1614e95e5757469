"""What a transition writes into the ledger, in the statement that makes it.

Credits are set aside from the intent until the end is known, so the entries follow from where a
move leads from and to: into `RESERVED` they are reserved, out of it released, and a completed
task is charged. A generation's moves are a path, so reserved and released alternate by nature.
"""

import uuid
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from sqlalchemy import (
    CTE,
    ColumnElement,
    Connection,
    Select,
    func,
    literal,
    select,
    text,
    union_all,
)
from sqlalchemy.dialects.postgresql import insert

from models.base import table_of
from models.ledger.table import Kind, LedgerEntry
from models.lifecycle import RESERVED, Event, Note, Status
from models.tables import Generation

g = table_of(Generation).c
_entries = table_of(LedgerEntry)

_COLUMNS = (
    "kind",
    "amount",
    "assumed",
    "generation_id",
    "attempt",
    "remote_task_id",
    "event",
    "event_id",
    "tenant",
    "model",
    "resolution",
)

NEEDED: Mapping[str, ColumnElement[Any]] = {
    "tenant": g.tenant,
    "model": g.request["model"].astext.label("model"),
    "resolution": g.request["resolution"].astext.label("resolution"),
    "estimated_cost": g.estimated_cost,
    "credit_cost": g.credit_cost,
    "remote_task_id": g.remote_task_id,
}
"""What an entry takes from the row, beside its id and attempt."""


def books(event: Event, sources: frozenset[Status], target: Status) -> list[Kind]:
    """The kinds of entries that a move from one of `sources` may make."""
    found = []
    if target in RESERVED and sources - RESERVED:
        found.append(Kind.RESERVED)
    if target not in RESERVED and sources & RESERVED:
        found.append(Kind.RELEASED)
    if event is Event.COMPLETE:
        found.append(Kind.CHARGED)
    return found


def on_move(
    event: Event, sources: frozenset[Status], target: Status, moved: CTE, told: CTE
) -> CTE | None:
    """The entries of a move; None if it never makes any.

    `moved` has the rows after it, with `from_status` and the columns of `NEEDED`; `told` the id
    of the event of each.
    """
    kinds = books(event, sources, target)
    if not kinds:
        return None
    selects = [_entry(kind, event, moved, told) for kind in kinds]
    return (
        insert(_entries)
        .from_select(list(_COLUMNS), union_all(*selects))
        # A task that was charged as a second one before it was followed.
        .on_conflict_do_nothing()
        .cte("booked")
    )


def _entry(kind: Kind, event: Event, moved: CTE, told: CTE) -> Select[Any]:
    m = moved.c
    charged = kind is Kind.CHARGED
    entry = select(
        literal(str(kind)),
        func.coalesce(m.credit_cost, m.estimated_cost) if charged else m.estimated_cost,
        m.credit_cost.is_(None) if charged else literal(False),
        m.id,
        m.attempt,
        m.remote_task_id if charged else literal(None),
        literal(str(event)),
        told.c.id,
        m.tenant,
        m.model,
        m.resolution,
    ).join_from(moved, told, told.c.generation_id == m.id)
    reserved = m.from_status.in_(sorted(RESERVED))
    match kind:
        case Kind.RESERVED:
            return entry.where(~reserved)
        case Kind.RELEASED:
            return entry.where(reserved)
        case _:
            return entry


def on_accept(made: CTE, told: CTE) -> CTE:
    """The estimates of generations that were just stored."""
    m = made.c
    return (
        insert(_entries)
        .from_select(
            list(_COLUMNS),
            select(
                literal(str(Kind.ESTIMATED)),
                m.estimated_cost,
                literal(False),
                m.id,
                literal(0),
                literal(None),
                literal(str(Event.ACCEPT)),
                told.c.id,
                m.tenant,
                m.model,
                m.resolution,
            ).join_from(made, told, told.c.generation_id == m.id),
        )
        .on_conflict_do_nothing()
        .cte("booked")
    )


_BESIDE = text(
    """
    WITH of AS (
        SELECT tenant, request ->> 'model' AS model, request ->> 'resolution' AS resolution,
               estimated_cost, true AS kept
        FROM generations WHERE id = :generation_id
        UNION ALL
        SELECT tenant, model, resolution, amount, false FROM ledger_entries
        WHERE generation_id = :generation_id AND attempt = 0 AND kind = 'estimated'
        ORDER BY kept DESC LIMIT 1
    ),
    fresh AS (
        SELECT of.*, coalesce(CAST(:amount AS numeric), estimated_cost) AS cost FROM of
        WHERE NOT EXISTS (
            SELECT FROM ledger_entries WHERE kind = 'charged' AND remote_task_id = :task_id)
    ),
    told AS (
        INSERT INTO generation_events (generation_id, event, attempt, detail)
        SELECT :generation_id, :event, CAST(:attempt AS integer), jsonb_build_object(
            'remote_task_id', CAST(:task_id AS text), 'credit_cost', cost::text,
            'why', CAST(:why AS text))
        FROM fresh WHERE kept RETURNING id
    )
    INSERT INTO ledger_entries (kind, amount, assumed, generation_id, attempt, remote_task_id,
        event, event_id, tenant, model, resolution)
    SELECT 'charged', cost, CAST(:amount AS numeric) IS NULL, :generation_id,
           coalesce(CAST(:attempt AS integer), 0), :task_id, :event, (SELECT id FROM told),
           tenant, model, resolution
    FROM fresh
    ON CONFLICT DO NOTHING
    """
)


def charge_beside(
    conn: Connection,
    generation_id: uuid.UUID,
    attempt: int | None,
    *,
    task_id: str,
    amount: Decimal | None,
    why: str,
) -> bool:
    """Charge a completed remote task that no transition ends: a second one, or one that was
    recorded with another end. Once for each task, told in the history; False if it was before.
    """
    done = conn.execute(
        _BESIDE,
        {
            "generation_id": generation_id,
            "attempt": attempt,
            "task_id": task_id,
            "amount": amount,
            "why": why,
            "event": str(Note.CHARGED),
        },
    )
    return done.rowcount == 1
