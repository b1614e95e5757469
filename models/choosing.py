"""Choosing generations: what operators list, count, and act on in bulk. Nothing here writes."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, select, union

from models.artifacts import Artifact
from models.base import table_of
from models.error_classes import ErrorClass, class_sql
from models.lifecycle import Status
from models.reads import COLUMNS, GenerationView
from models.tables import Generation
from models.wait_reasons import WaitReason
from models.waiting import Holds

g = table_of(Generation).c

_ATTENTION = union(
    select(g.id).where(g.attention.is_not(None)),
    select(Artifact.generation_id).where(
        Artifact.attention_at.is_not(None), Artifact.due_at.is_not(None)
    ),
)
"""Those that need an operator, and those with a result that could not be stored for long. Each by
its small index: as two conditions on a row they would read all that has ended.
"""


@dataclass(frozen=True)
class Choice:
    """Which generations are meant: those that meet every condition that is named."""

    statuses: frozenset[Status] = frozenset()
    tenants: frozenset[str] = frozenset()
    error_codes: frozenset[str] = frozenset()
    error_classes: frozenset[ErrorClass] = frozenset()
    waits: frozenset[WaitReason] = frozenset()
    attention: bool = False
    since: datetime | None = None
    """Accepted then or later."""
    until: datetime | None = None
    """Accepted before then."""

    @property
    def everything(self) -> bool:
        """Nothing is named."""
        return self == Choice()

    def conditions(self, holds: Holds) -> list[ColumnElement[bool]]:
        """What a row must meet, given what holds generations back now."""
        wanted: list[ColumnElement[bool]] = []
        for column, values in (
            (g.status, self.statuses),
            (g.tenant, self.tenants),
            (g.error_code, self.error_codes),
            (class_sql(g.error_code), self.error_classes),
            (holds.reason(), self.waits),
        ):
            if values:
                wanted.append(column.in_(sorted(map(str, values))))
        if self.waits:
            # Said for the planner as well: what waits has not ended.
            wanted.append(g.finished_at.is_(None))
        if self.attention:
            wanted.append(g.id.in_(_ATTENTION))
        if self.since is not None:
            wanted.append(g.created_at >= self.since)
        if self.until is not None:
            wanted.append(g.created_at < self.until)
        return wanted


def rows(
    conn: Connection,
    choice: Choice,
    columns: Sequence[ColumnElement[Any]],
    *,
    among: frozenset[Status],
    wished: bool = True,
) -> Sequence[Row[Any]]:
    """The ids, and these columns, of all that is chosen and of these statuses, the oldest first.

    `wished=False` leaves out those whose cancel was asked for already.
    """
    also = [] if wished else [g.cancel_requested_at.is_(None)]
    return conn.execute(
        select(g.id, *columns)
        .where(*choice.conditions(Holds.read(conn)), g.status.in_(sorted(among)), *also)
        .order_by(g.created_at, g.id)
    ).all()


def newest(conn: Connection, choice: Choice, *, limit: int) -> list[GenerationView]:
    """Generations, the newest first, each with what it waits for as of now."""
    holds = Holds.read(conn)
    rows = conn.execute(
        select(*COLUMNS, *holds.columns())
        .where(*choice.conditions(holds))
        .order_by(g.created_at.desc(), g.id)
        .limit(limit)
    )
    return [holds.current(row) for row in rows]
