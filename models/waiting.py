"""Why each generation is delayed at this moment. Nothing here writes.

The row has the reason that it was delayed for itself. Nothing is written to the many that wait
behind a pause or a breaker or for a slot: their reason is read from pauses and breakers.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    and_,
    case,
    false,
    func,
    literal,
    null,
    or_,
    select,
    true,
)

from models import gates, reads, schedule
from models.base import table_of
from models.gates import GateName, Sending
from models.lifecycle import Status
from models.operating import pauses
from models.operating.pauses import PauseView
from models.reads import GenerationView
from models.tables import Generation
from models.wait_reasons import NO_WAIT, Wait, WaitReason

g = table_of(Generation).c


@dataclass(frozen=True)
class Holds:
    """What delays generations at this moment, beside what their rows say."""

    pauses: tuple[PauseView, ...]
    sending: Sending

    @staticmethod
    def read(conn: Connection) -> "Holds":
        """Read the pauses and the closed gates."""
        return Holds(pauses.known(conn), gates.sending(conn))

    def reason(self) -> ColumnElement[str | None]:
        """Return a row's current reason as an expression; null where nothing delays the row."""
        return case(
            *((condition, reason) for condition, reason, _ in self._cases()),
            else_=literal(str(WaitReason.CONCURRENCY)),
        )

    def columns(self) -> tuple[ColumnElement[Any], ...]:
        """Return what `current` needs beside `reads.COLUMNS`."""
        stored = case(
            *((condition, literal(stored)) for condition, _, stored in self._cases()),
            else_=literal(False),
        )
        return (self.reason().label("current_reason"), stored.label("reason_is_stored"))

    def _cases(self) -> Iterator[tuple[ColumnElement[bool], ColumnElement[Any], bool]]:
        """Yield condition, reason, and whether the row has it; the first that is true counts."""
        accepted = g.status == Status.ACCEPTED
        own, delayed = g.wait_reason.is_not(None), g.due_at > func.now()
        yield and_(~accepted, ~own), null(), False
        yield g.wait_reason == WaitReason.OPERATOR, g.wait_reason, True
        yield ~accepted, g.wait_reason, True
        for condition, reason in (
            (self._paused(), WaitReason.PAUSE),
            (g.blocked_by.is_not(None), WaitReason.EQUAL_GENERATION),
            (_above_ceiling(self._breakers), WaitReason.BREAKER),
            (_above_ceiling(self._backoff), WaitReason.RATE),
        ):
            yield condition, literal(str(reason)), False
        yield g.wait_reason == WaitReason.CREDITS, g.wait_reason, True
        yield and_(own, delayed), g.wait_reason, True

    def _paused(self) -> ColumnElement[bool]:
        named = [pause.tenant for pause in self.pauses]
        if not named:
            return false()
        return true() if None in named else g.tenant.in_(named)

    @cached_property
    def _breakers(self) -> Sending:
        closed = tuple(gate for gate in self.sending.closed if gate.name is not GateName.BACKOFF)
        return replace(self.sending, closed=closed)

    @cached_property
    def _backoff(self) -> Sending:
        closed = tuple(gate for gate in self.sending.closed if gate.name is GateName.BACKOFF)
        return replace(self.sending, closed=closed)

    def current(self, row: Row[Any]) -> GenerationView:
        """Return the generation of a row (`reads.COLUMNS`, `columns`) with its current wait."""
        view = reads.view_of(row)
        if row.reason_is_stored:
            return view
        reason = row.current_reason
        wait = None if reason is None else self._wait(view, WaitReason(reason))
        return _with_wait(view, wait)

    def _wait(self, view: GenerationView, reason: WaitReason) -> Wait | None:
        match reason:
            case WaitReason.PAUSE:
                return next(p.wait for p in self.pauses if p.tenant in (None, view.tenant))
            case WaitReason.EQUAL_GENERATION:
                return Wait(reason, {"generation": str(view.blocked_by)})
            case WaitReason.BREAKER | WaitReason.RATE:
                gates_ = self._breakers if reason is WaitReason.BREAKER else self._backoff
                gate = gates_.obstacle(view.estimated_cost)
                return None if gate is None else gates.wait_for(gate.name, gate.reason)
            case _:
                return Wait(reason)


def _above_ceiling(sending: Sending) -> ColumnElement[bool]:
    ceiling = sending.ceiling
    return false() if ceiling is None else g.estimated_cost > ceiling


def _with_wait(view: GenerationView, wait: Wait | None) -> GenerationView:
    columns = NO_WAIT if wait is None else {"wait_reason": wait.reason, "wait_detail": wait.detail}
    return replace(view, **columns)


def current(conn: Connection, view: GenerationView, *, position: bool = False) -> GenerationView:
    """Return the generation with what it waits for at this moment.

    `position`: for one that waits for a slot, count the generations ahead of it.
    """
    holds = Holds.read(conn)
    row = conn.execute(
        select(*reads.COLUMNS, *holds.columns()).where(g.id == view.id)
    ).one_or_none()
    if row is None:
        return view
    now = holds.current(row)
    if position and now.wait_reason is WaitReason.CONCURRENCY and not row.reason_is_stored:
        return _with_wait(now, _queue_position(conn, now))
    return now


def _queue_position(conn: Connection, view: GenerationView) -> Wait:
    ahead = conn.execute(
        select(func.count())
        .select_from(Generation)
        .where(
            g.status == Status.ACCEPTED,
            g.due_at <= func.now(),
            or_(
                g.priority > view.priority,
                and_(g.priority == view.priority, g.created_at < view.created_at),
            ),
        )
    ).scalar_one()
    detail: dict[str, Any] = {"in_flight": schedule.in_flight(conn), "ahead": ahead}
    slowed_by = list(reads.slowed(conn))
    return Wait(
        WaitReason.CONCURRENCY, {**detail, **({"slowed_by": slowed_by} if slowed_by else {})}
    )


@dataclass(frozen=True)
class Waiting:
    """The accepted generations at this moment."""

    counts: dict[WaitReason, int]
    """Accepted generations by reason."""
    oldest: list[GenerationView]
    """Those accepted longest ago, each with what it waits for."""


def now(conn: Connection, *, limit: int) -> Waiting:
    """Count the accepted generations by reason, and read the `limit` oldest of them."""
    holds = Holds.read(conn)
    reason = holds.reason().label("current_reason")
    accepted = g.status == Status.ACCEPTED
    counts = conn.execute(select(reason, func.count()).where(accepted).group_by(reason))
    # Their ids first: all that wait would else be read whole, to be sorted.
    first = select(g.id).where(accepted).order_by(g.created_at, g.id).limit(limit)
    rows = conn.execute(
        select(*reads.COLUMNS, *holds.columns()).where(g.id.in_(first)).order_by(g.created_at, g.id)
    )
    return Waiting(
        {WaitReason(name): count for name, count in counts if name is not None},
        [holds.current(row) for row in rows],
    )
