"""Reading the ledger: what things cost, and whether the account is whole. Nothing here writes."""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

from sqlalchemy import (
    ColumnElement,
    Connection,
    Select,
    case,
    func,
    literal,
    or_,
    select,
    union_all,
)

from models.base import table_of
from models.ledger.table import Kind, LedgerEntry
from models.lifecycle import RESERVED, Event, Note, Status
from models.tables import Generation

g = table_of(Generation).c
e = table_of(LedgerEntry).c


@dataclass(frozen=True)
class EntryView:
    """One entry of the ledger."""

    at: datetime
    kind: str
    amount: Decimal
    assumed: bool
    attempt: int
    remote_task_id: str | None
    event: str
    event_id: int | None


def entries(conn: Connection, generation_id: uuid.UUID) -> list[EntryView]:
    """A generation's entries, in order; they are there when the generation is not any more."""
    columns = [e[name] for name in EntryView.__dataclass_fields__]
    rows = conn.execute(select(*columns).where(e.generation_id == generation_id).order_by(e.id))
    return [EntryView(*row) for row in rows]


def charged(
    conn: Connection, *, after: datetime | None = None, until: datetime | None = None
) -> Decimal:
    """The credits charged, of all tenants, in `(after, until]`."""
    wanted = [e.kind == Kind.CHARGED]
    wanted += [] if after is None else [e.at > after]
    wanted += [] if until is None else [e.at <= until]
    total: Decimal = conn.execute(
        select(func.coalesce(func.sum(e.amount), 0)).where(*wanted)
    ).scalar_one()
    return total


def outstanding(conn: Connection) -> Decimal:
    """What is reserved and not released."""
    signed = case((e.kind == Kind.RESERVED, e.amount), else_=-e.amount)
    left: Decimal = conn.execute(
        select(func.coalesce(func.sum(signed), 0)).where(e.kind.in_((Kind.RESERVED, Kind.RELEASED)))
    ).scalar_one()
    return left


# --- what things cost ---------------------------------------------------------------------------


@dataclass(frozen=True)
class CostLine:
    """What one group cost, in credits."""

    group: tuple[str, ...]
    generations: int
    """How many were accepted."""
    completed: int
    estimated: Decimal
    """Expected at acceptance."""
    charged: Decimal
    """Taken by the provider, second tasks included."""
    second: Decimal
    """The part of `charged` that went to further tasks of a generation."""
    pending: Decimal
    """Estimates of what has not ended yet: not charged, may be."""


GROUPS = ("tenant", "model", "resolution", "day")
"""What costs can be grouped by; a day is UTC's."""


def _day(at: ColumnElement[datetime]) -> ColumnElement[str]:
    return func.to_char(func.timezone("UTC", at), "YYYY-MM-DD")


def cost(
    conn: Connection,
    by: Sequence[str],
    *,
    since: datetime | None = None,
    until: datetime | None = None,
) -> list[CostLine]:
    """Credits by group, from `since` up to but without `until`.

    Each entry counts when it was written: an estimate at acceptance, a charge when the end was
    seen. What is pending counts when it was accepted.
    """
    booked = select(
        e.at,
        e.tenant,
        func.coalesce(e.model, "").label("model"),
        func.coalesce(e.resolution, "").label("resolution"),
        e.kind,
        e.event,
        e.amount,
    ).where(e.kind.in_((Kind.ESTIMATED, Kind.CHARGED)), *_within(e.at, since, until))
    pending = _unended().where(*_within(g.created_at, since, until))
    every = union_all(booked, pending).subquery()
    v = every.c
    columns = {**{name: v[name] for name in GROUPS if name != "day"}, "day": _day(v.at)}
    groups = [columns[name] for name in by]

    def total(*where: ColumnElement[bool]) -> ColumnElement[Decimal]:
        return func.coalesce(func.sum(v.amount).filter(*where), 0)

    is_charge = v.kind == Kind.CHARGED
    second = v.event != Event.COMPLETE
    rows = conn.execute(
        select(
            *groups,
            func.count().filter(v.kind == Kind.ESTIMATED),
            func.count().filter(is_charge, ~second),
            total(v.kind == Kind.ESTIMATED),
            total(is_charge),
            total(is_charge, second),
            total(v.kind == "pending"),
        )
        .select_from(every)
        .group_by(*groups)
        .order_by(*groups)
    )
    n = len(groups)
    return [CostLine(tuple(map(str, row[:n])), *row[n:]) for row in rows]


def _unended() -> Select[tuple[object, ...]]:
    return select(
        g.created_at,
        g.tenant,
        func.coalesce(g.request["model"].astext, ""),
        func.coalesce(g.request["resolution"].astext, ""),
        literal("pending"),
        literal("accept"),
        g.estimated_cost,
    ).where(g.finished_at.is_(None))


def _within(
    at: ColumnElement[datetime], since: datetime | None, until: datetime | None
) -> list[ColumnElement[bool]]:
    return ([] if since is None else [at >= since]) + ([] if until is None else [at < until])


# --- whether the account is whole ---------------------------------------------------------------


@dataclass(frozen=True)
class Imbalance:
    """A generation whose entries do not say what its row says."""

    generation_id: uuid.UUID
    status: Status
    expected: Decimal
    """What should be outstanding: the estimate while it may be charged, else nothing."""
    outstanding: Decimal
    credit_cost: Decimal
    charged: Decimal
    """For the task that it followed; second tasks are beside it."""


def imbalances(
    conn: Connection, *, since: datetime | None = None, limit: int = 100
) -> list[Imbalance]:
    """Generations (accepted since then) that the ledger and their rows tell of differently.

    Of every ended one nothing is outstanding, and its own task's charge is its `credit_cost`.
    There are none, unless something writes past the transitions.
    """
    # A charge that a note told: it was booked while the task was a second one.
    beside = (e.event == Note.CHARGED) & (g.status != Status.COMPLETED)
    kept = func.coalesce(func.sum(e.amount).filter(e.kind == Kind.RESERVED), 0) - func.coalesce(
        func.sum(e.amount).filter(e.kind == Kind.RELEASED), 0
    )
    sums = select(e.generation_id, kept.label("kept")).group_by(e.generation_id).subquery()
    own = (
        select(func.sum(e.amount))
        .where(e.kind == Kind.CHARGED, ~beside, e.remote_task_id == g.remote_task_id)
        .scalar_subquery()
    )
    expected = case((g.status.in_(sorted(RESERVED)), g.estimated_cost), else_=0)
    left = func.coalesce(sums.c.kept, 0)
    cost_ = case(
        (g.status == Status.COMPLETED, func.coalesce(g.credit_cost, g.estimated_cost)), else_=0
    )
    paid = func.coalesce(own, 0)
    rows = conn.execute(
        select(g.id, g.status, expected, left, cost_, paid)
        .outerjoin_from(table_of(Generation), sums, sums.c.generation_id == g.id)
        .where(or_(expected != left, cost_ != paid), *_within(g.created_at, since, None))
        .order_by(g.created_at)
        .limit(limit)
    )
    return [Imbalance(row[0], Status(row[1]), *row[2:]) for row in rows]
