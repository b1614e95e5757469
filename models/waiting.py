"""Why a generation waits, told from the state of this moment. Nothing here writes.

The row keeps only what held it back itself. Of the many that wait behind a pause or a gate, or for
a slot, nothing is written, so that it is told here.
"""

from dataclasses import dataclass, replace
from enum import StrEnum

from sqlalchemy import (
    ColumnElement,
    Connection,
    and_,
    case,
    false,
    func,
    literal,
    or_,
    select,
    true,
)

from models import gates, reads, schedule
from models.base import table_of
from models.budgets import WAITS as BUDGET
from models.credit import SHORT
from models.gates import Sending
from models.lifecycle import AWAITS_DECISION, Status
from models.operating import pauses
from models.operating.pauses import PauseView
from models.reads import GenerationView
from models.tables import Generation

g = table_of(Generation).c


class Wait(StrEnum):
    """The kinds of reasons, for filters and counts."""

    DECISION = "decision"
    """An operator's."""
    PAUSE = "pause"
    EQUAL = "equal"
    """An equal generation with the same seed goes first."""
    GATE = "gate"
    CREDITS = "credits"
    BUDGET = "budget"
    LATER = "later"
    """It was put off for a moment: its reference, the request rate, a lost answer; the row says."""
    SLOT = "slot"
    """Nothing but its turn."""


@dataclass(frozen=True)
class Holds:
    """What holds generations back at this moment, beside what their rows say."""

    pauses: tuple[PauseView, ...]
    sending: Sending

    @staticmethod
    def read(conn: Connection) -> "Holds":
        """As it is now."""
        return Holds(pauses.known(conn), gates.sending(conn))

    def kind(self) -> ColumnElement[str | None]:
        """Of a row: the first thing that it waits for; null where it waits for nothing."""
        own = g.waits_for.is_not(None)
        short, over = g.waits_for.startswith(SHORT), g.waits_for.startswith(BUDGET)
        kinds: list[tuple[ColumnElement[bool], Wait]] = [
            (g.waits_for == AWAITS_DECISION, Wait.DECISION),
            (and_(g.status != Status.ACCEPTED, own), Wait.LATER),
            (self._paused(), Wait.PAUSE),
            (g.blocked_by.is_not(None), Wait.EQUAL),
            (self._gated(), Wait.GATE),
            (short, Wait.CREDITS),
            (and_(over, g.due_at > func.now()), Wait.BUDGET),
            (and_(own, g.due_at > func.now()), Wait.LATER),
        ]
        return case(
            (and_(g.status != Status.ACCEPTED, ~own), None),
            *((condition, literal(str(kind))) for condition, kind in kinds),
            else_=literal(str(Wait.SLOT)),
        )

    def _paused(self) -> ColumnElement[bool]:
        named = [pause.tenant for pause in self.pauses]
        if not named:
            return false()
        return true() if None in named else g.tenant.in_(named)

    def _gated(self) -> ColumnElement[bool]:
        ceiling = self.sending.ceiling
        return false() if ceiling is None else g.estimated_cost > ceiling

    def reason(self, view: GenerationView, kind: Wait | None) -> str | None:
        """In words, for a generation of which `kind` was read with these holds."""
        match kind:
            case None:
                return None
            case Wait.PAUSE:
                mine = (p for p in self.pauses if p.tenant in (None, view.tenant))
                return str(next(mine))
            case Wait.EQUAL:
                return f"generation {view.blocked_by}: equal, with the same seed, and goes first"
            case Wait.GATE:
                gate = self.sending.obstacle(view.estimated_cost)
                return None if gate is None else f"gate {gate.name}, closed by {gate.reason}"
            case Wait.SLOT:
                return "a free slot"
            case _:
                return view.waits_for

    def told(self, view: GenerationView, kind: str | None) -> GenerationView:
        """The generation with the reason of this moment."""
        return replace(view, waits_for=self.reason(view, None if kind is None else Wait(kind)))


def why(conn: Connection, view: GenerationView) -> str | None:
    """What a generation waits for, in words; for one that waits for its turn, what is before it."""
    holds = Holds.read(conn)
    kind = conn.execute(select(holds.kind()).where(g.id == view.id)).scalar_one_or_none()
    if kind == Wait.SLOT:
        return ", ".join((_turn(conn, view), *reads.slowed(conn)))
    return holds.reason(view, None if kind is None else Wait(kind))


def told(conn: Connection, view: GenerationView) -> GenerationView:
    """A generation with the reason of this moment, briefly: who is before it is not counted."""
    holds = Holds.read(conn)
    kind = conn.execute(select(holds.kind()).where(g.id == view.id)).scalar_one_or_none()
    return holds.told(view, kind)


def _turn(conn: Connection, view: GenerationView) -> str:
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
    return f"a free slot: {schedule.in_flight(conn)} in flight, {ahead} waiting before it"


@dataclass(frozen=True)
class Waiting:
    """Who waits at this moment."""

    counts: dict[Wait, int]
    """Of what is accepted, by reason."""
    oldest: list[GenerationView]
    """Those accepted longest ago; `waits_for` says why."""


def now(conn: Connection, *, limit: int) -> Waiting:
    """Who waits to be let in, for what, and the `limit` of them that were accepted longest ago."""
    holds = Holds.read(conn)
    kind = holds.kind().label("kind")
    accepted = g.status == Status.ACCEPTED
    counts = conn.execute(select(kind, func.count()).where(accepted).group_by(kind))
    # Their ids first: all that wait would else be read whole, to be sorted.
    first = select(g.id).where(accepted).order_by(g.created_at, g.id).limit(limit)
    rows = conn.execute(
        select(*reads.COLUMNS, kind).where(g.id.in_(first)).order_by(g.created_at, g.id)
    )
    return Waiting(
        {Wait(name): count for name, count in counts if name is not None},
        [holds.told(reads.view_of(row), row.kind) for row in rows],
    )
