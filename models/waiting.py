"""Why each generation is delayed at this moment. Nothing here writes.

The row has the reason that it was delayed for itself. Nothing is written to the many that wait
behind a pause or a breaker or for a slot: their reason is read from pauses and breakers.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
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

from models import reads, schedule
from models.base import table_of
from models.flow_control import breakers, report, state
from models.flow_control.breakers import Breakers
from models.flow_control.state import FlowState
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
    breakers: Breakers
    flow: FlowState

    @staticmethod
    def read(conn: Connection) -> "Holds":
        """Read the pauses, the open breakers and flow control."""
        return Holds(pauses.known(conn), breakers.read(conn), state.read(conn))

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
            (self._blocked(), WaitReason.BREAKER),
            (true() if self._rate() is not None else false(), WaitReason.RATE),
        ):
            yield condition, literal(str(reason)), False
        yield g.wait_reason == WaitReason.CREDITS, g.wait_reason, True
        yield and_(own, delayed), g.wait_reason, True

    def _paused(self) -> ColumnElement[bool]:
        named = [pause.tenant for pause in self.pauses]
        if not named:
            return false()
        return true() if None in named else g.tenant.in_(named)

    def _blocked(self) -> ColumnElement[bool]:
        ceiling = self.breakers.ceiling
        return false() if ceiling is None else g.estimated_cost > ceiling

    def _rate(self) -> Wait | None:
        """Return what delays every submit, where throttling or an outage does."""
        detail: dict[str, Any] = {"reason": self.flow.reason} if self.flow.reason else {}
        if self.flow.resume_in > 0:
            return Wait(WaitReason.RATE, {"cause": "throttled", **detail})
        if self.flow.outage_age is not None:
            return Wait(WaitReason.RATE, {"cause": "outage", **detail})
        return None

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
            case WaitReason.BREAKER:
                opened = self.breakers.obstacle(view.estimated_cost)
                if opened is None:
                    return None
                return Wait(reason, {"breaker": str(opened.name), "reason": opened.reason})
            case WaitReason.RATE:
                return self._rate()
            case _:
                return Wait(reason)


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
    slowed_by = [str(limit) for limit in report.limits(conn, state.read(conn))]
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
