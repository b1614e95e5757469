"""Reading generations: for producers, operators and reports. Nothing here writes."""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Any

from sqlalchemy import ColumnElement, Connection, func, select

from models.artifacts import Artifact, Kind
from models.base import table_of
from models.flow_control import breakers
from models.flow_control import state as flow_state
from models.flow_control.report import Limit, limits
from models.flow_control.state import FlowState
from models.lifecycle import LIVE, TERMINAL, Status
from models.operating import pauses
from models.operating.pauses import PauseView
from models.tables import Generation, GenerationEvent, StrayTask, SubmitAttempt
from models.wait_reasons import WaitReason, sentence

g = table_of(Generation).c
e = table_of(GenerationEvent).c


@dataclass(frozen=True)
class GenerationView:
    """A generation as its producer and its operators see it. Credits are exact, times aware."""

    id: uuid.UUID
    status: Status
    remote_task_id: str | None
    remote_status: str | None
    request: dict[str, Any]
    metadata: dict[str, Any] | None
    tenant: str
    priority: int
    idempotency_key: str | None
    estimated_cost: Decimal
    credit_cost: Decimal | None
    error_code: str | None
    error_message: str | None
    # Signed, and so a key while it lives: kept out of reprs.
    video_url: str | None = field(repr=False)
    last_frame_url: str | None = field(repr=False)
    # Where the archive has them: stable, and no secret.
    video_uri: str | None
    last_frame_uri: str | None
    attempt: int
    cancel_requested_at: datetime | None
    wait_reason: WaitReason | None
    wait_detail: dict[str, Any] | None
    blocked_by: uuid.UUID | None
    retry_of: uuid.UUID | None
    retried_as: uuid.UUID | None
    attention: str | None
    deadline_at: datetime | None
    due_at: datetime | None
    created_at: datetime
    submitted_at: datetime | None
    observed_at: datetime | None
    finished_at: datetime | None
    # An address in it may have a key in its query.
    notify: dict[str, Any] | None = field(default=None, repr=False)

    @property
    def waits_for(self) -> str | None:
        """Return why it is delayed, as a sentence; None if nothing delays it."""
        if self.wait_reason is None:
            return None
        return sentence(self.wait_reason, self.wait_detail)

    @property
    def ended(self) -> bool:
        """Nothing will change any more."""
        return self.status in TERMINAL


def _uri(kind: Kind) -> ColumnElement[Any]:
    a = table_of(Artifact).c
    of = select(a.uri).where(a.generation_id == g.id, a.kind == str(kind))
    return of.scalar_subquery().label(f"{kind}_uri")


_URIS = {f"{kind}_uri": _uri(kind) for kind in Kind}
COLUMNS = [
    _URIS[name] if name in _URIS else g[name] for name in GenerationView.__dataclass_fields__
]


def view_of(row: Any) -> GenerationView:
    """The generation in a row with (at least) `COLUMNS`."""
    values = {name: getattr(row, name) for name in GenerationView.__dataclass_fields__}
    reason = values["wait_reason"]
    typed = {
        "status": Status(values["status"]),
        "wait_reason": None if reason is None else WaitReason(reason),
    }
    return GenerationView(**{**values, **typed})


def get(conn: Connection, generation_id: uuid.UUID) -> GenerationView | None:
    """One generation, or None if there is none of this id."""
    row = conn.execute(select(*COLUMNS).where(g.id == generation_id)).one_or_none()
    return None if row is None else view_of(row)


def get_many(conn: Connection, ids: Sequence[uuid.UUID]) -> dict[uuid.UUID, GenerationView]:
    """Those of the ids that exist."""
    rows = conn.execute(select(*COLUMNS).where(g.id.in_(ids)))
    return {row.id: view_of(row) for row in rows}


def by_remote_task(conn: Connection, task_id: str) -> GenerationView | None:
    """The generation that follows a remote task."""
    row = conn.execute(select(*COLUMNS).where(g.remote_task_id == task_id)).one_or_none()
    return None if row is None else view_of(row)


@dataclass(frozen=True)
class EventView:
    """One line of a generation's history."""

    at: datetime
    event: str
    from_status: str | None
    to_status: str | None
    attempt: int | None
    detail: dict[str, Any] | None


def events(conn: Connection, generation_id: uuid.UUID) -> list[EventView]:
    """A generation's history, in order."""
    rows = conn.execute(
        select(e.at, e.event, e.from_status, e.to_status, e.attempt, e.detail)
        .where(e.generation_id == generation_id)
        .order_by(e.id)
    )
    return [EventView(*row) for row in rows]


@dataclass(frozen=True)
class AttemptView:
    """One POST of a generation, and what became of it."""

    number: int
    seed: int
    seed_drawn: bool
    started_at: datetime
    settle_at: datetime
    outcome: str | None
    code: str | None
    remote_task_id: str | None


def attempts(conn: Connection, generation_id: uuid.UUID) -> list[AttemptView]:
    """A generation's attempts, in order."""
    a = table_of(SubmitAttempt).c
    columns = [a[name] for name in AttemptView.__dataclass_fields__]
    rows = conn.execute(select(*columns).where(a.generation_id == generation_id).order_by(a.number))
    return [AttemptView(*row) for row in rows]


@dataclass(frozen=True)
class StrayView:
    """A remote task that no generation follows."""

    task_id: str
    kind: str
    generation_id: uuid.UUID | None
    attempt: int | None
    status: str
    credit_cost: Decimal | None
    remote_created_at: datetime | None


def strays(conn: Connection, *, generation_id: uuid.UUID | None = None) -> list[StrayView]:
    """Second, possible and foreign remote tasks; those of one generation if one is named."""
    s = table_of(StrayTask).c
    columns = [s[name] for name in StrayView.__dataclass_fields__]
    wanted = [] if generation_id is None else [s.generation_id == generation_id]
    rows = conn.execute(select(*columns).where(*wanted).order_by(s.first_seen_at))
    return [StrayView(*row) for row in rows]


@dataclass(frozen=True)
class Summary:
    """How much there is of what."""

    by_status: dict[Status, int]
    in_flight: int
    attention: int
    blocked: int
    oldest_due_seconds: float
    """How late the most overdue live generation is; 0 with none overdue."""
    breakers: dict[str, str]
    """The open circuit breakers, and why."""
    limits: tuple[Limit, ...]
    """What else limits submission."""
    flow: FlowState
    pauses: tuple[PauseView, ...] = ()
    """What operators hold back."""


def ended(conn: Connection) -> dict[Status, int]:
    """How many ended in which way. Reads the whole table, and so takes long where it is long."""
    return _by_status(conn, g.finished_at.is_not(None))


def _by_status(conn: Connection, which: ColumnElement[bool]) -> dict[Status, int]:
    counts = conn.execute(select(g.status, func.count()).where(which).group_by(g.status))
    return {Status(status): count for status, count in counts}


def summary(conn: Connection, *, ended: Mapping[Status, int] | None = None) -> Summary:
    """The state of everything, in numbers; of what has ended, those that are given."""
    # Each by itself has a small index; together they would read what has ended as well.
    live, waiting = g.status.in_(sorted(LIVE)), g.status == Status.ACCEPTED
    by_status = {**(ended or {}), **_by_status(conn, live), **_by_status(conn, waiting)}
    in_flight, overdue = conn.execute(
        select(
            func.count().filter(g.attention.is_(None)),
            func.max(func.extract("epoch", func.now() - g.due_at)),
        ).where(live)
    ).one()
    attention, blocked = (
        conn.execute(select(func.count()).select_from(Generation).where(*which)).scalar_one()
        for which in ([g.attention.is_not(None)], [waiting, g.blocked_by.is_not(None)])
    )
    flow = flow_state.read(conn)
    return Summary(
        by_status,
        in_flight,
        attention,
        blocked,
        max(0.0, float(overdue or 0)),
        {str(one.name): one.reason for one in breakers.read(conn).open},
        tuple(limits(conn, flow)),
        flow,
        pauses.known(conn),
    )
