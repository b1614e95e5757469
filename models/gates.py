"""Holding instead of failing: while a gate is closed nothing new is sent, and nothing fails.

`api_key` closes on INVALID_API_KEY and `credit` on INSUFFICIENT_CREDIT; a probe of the balance
opens them. `backoff` closes for as long as Retry-After or backoff says, for every worker; when its
time is up it re-opens by and by, since the whole crowd at once would only be refused again.
"""

import uuid
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import Any

from sqlalchemy import ColumnElement, Connection, func, or_, select, update
from sqlalchemy.dialects.postgresql import insert

from models import storable
from models.base import table_of
from models.tables import BalanceSnapshot, Gate, SubmitAttempt
from models.transitions import in_seconds
from models.wait_reasons import Wait, WaitReason

_gates = table_of(Gate)
_balances = table_of(BalanceSnapshot)
_a = table_of(SubmitAttempt).c

REOPENED = 64
"""So many POSTs answered since the backoff gate's time was up, and it is as open as before."""

UNANSWERED = 60.0
"""Seconds after which a POST without an answer no longer counts as on its way: its worker died."""

SLOWEST_PROBES = 10.0
"""A gate that stays closed is probed less and less often, down to one in so many intervals."""

LONGEST_ASIDE = 60.0
"""At most so many seconds longer than the gate is closed, one stays away that is refused again
and again.
"""


class GateName(StrEnum):
    """The gates there are."""

    API_KEY = "api_key"
    CREDIT = "credit"
    BACKOFF = "backoff"


def wait_for(name: GateName, reason: str | None = None) -> Wait:
    """Return what a generation waits for that this gate holds."""
    why = {} if reason is None else {"reason": reason}
    if name is GateName.BACKOFF:
        return Wait(WaitReason.RATE, {"cause": "backoff", **why})
    return Wait(WaitReason.BREAKER, {"breaker": str(name), **why})


@dataclass(frozen=True)
class GateState:
    """A closed gate."""

    name: GateName
    reason: str
    closed_at: datetime
    opens_at: datetime | None
    refused_estimate: Decimal | None
    failures: int


@dataclass(frozen=True)
class Reopening:
    """The backoff gate's time is up: how the POSTs have fared since, over all workers."""

    reason: str
    well: int
    """How many were answered, be it with a refusal of the work itself."""
    pending: int
    """How many are on their way."""

    @property
    def at_a_time(self) -> int:
        """How many may be on their way together: one, and one more for each that was answered.

        So it doubles with each round of answers, from 1 on, as TCP's slow start does.
        """
        return 1 + self.well

    @property
    def allowed_now(self) -> int:
        """How many more may be sent now."""
        return max(0, self.at_a_time - self.pending)

    @property
    def done(self) -> bool:
        """Enough went well: it is open as before."""
        return self.well >= REOPENED

    @property
    def wait(self) -> Wait:
        """Return what a generation waits for that it leaves no room for."""
        detail = {"cause": "backoff", "reason": self.reason, "max_concurrent": self.at_a_time}
        return Wait(WaitReason.RATE, detail)

    def __str__(self) -> str:
        return f"re-opening after {self.reason}: {self.at_a_time} at a time"


@dataclass(frozen=True)
class Sending:
    """What may be sent now: the closed gates, and the credits known to be left."""

    closed: tuple[GateState, ...]
    remaining: Decimal | None

    def obstacle(self, estimate: Decimal) -> GateState | None:
        """The gate that holds a generation of this estimated cost back, if any does.

        After a 402 cheaper work than was refused still passes while the balance covers it: one
        dear generation must not hold up the rest (protocol.md, "Gates and limits").
        """
        for gate in self.closed:
            if gate.name is GateName.CREDIT and self._affordable(gate, estimate):
                continue
            return gate
        return None

    def _affordable(self, gate: GateState, estimate: Decimal) -> bool:
        return (
            self.remaining is not None
            and estimate <= self.remaining
            and gate.refused_estimate is not None
            and estimate < gate.refused_estimate
        )

    @property
    def ceiling(self) -> Decimal | None:
        """No estimate above this passes; None where there is no such bound.

        Below zero where nothing passes at all.
        """
        if any(gate.name is not GateName.CREDIT for gate in self.closed):
            return Decimal(-1)
        for gate in self.closed:
            if self.remaining is None or gate.refused_estimate is None:
                return Decimal(-1)
            return min(self.remaining, gate.refused_estimate - Decimal("0.0001"))
        return None


def sending(conn: Connection) -> Sending:
    """Read the gates. A backoff gate whose time has come counts as open."""
    rows = conn.execute(
        select(_gates).where(
            _gates.c.closed_at.is_not(None),
            or_(_gates.c.opens_at.is_(None), _gates.c.opens_at > func.now()),
        )
    ).all()
    closed = tuple(
        GateState(
            GateName(r.name), r.reason, r.closed_at, r.opens_at, r.refused_estimate, r.failures
        )
        for r in rows
    )
    remaining = None
    if any(gate.name is GateName.CREDIT for gate in closed):
        remaining = conn.execute(
            select(_balances.c.remain_credits).order_by(_balances.c.at.desc()).limit(1)
        ).scalar_one_or_none()
    return Sending(closed, remaining)


def any_closed() -> ColumnElement[bool]:
    """Whether any gate is closed, or re-opening: then each has to be looked at."""
    return select(_gates.c.name).where(_gates.c.closed_at.is_not(None)).exists()


def reopening(conn: Connection, *, alone: bool = False) -> Reopening | None:
    """How far the backoff gate has re-opened since its time was up; None if it is open or closed.

    `alone` locks it until the transaction ends: who is about to send counts, and then nobody else
    can do so at the same time.
    """
    query = select(_gates.c.reason, _gates.c.opens_at).where(
        _gates.c.name == str(GateName.BACKOFF), _gates.c.opens_at <= func.clock_timestamp()
    )
    gate = conn.execute(query.with_for_update() if alone else query).one_or_none()
    if gate is None:
        return None
    well, pending = conn.execute(
        select(
            func.count().filter(_a.outcome.in_(("submitted", "adopted", "refused"))),
            func.count().filter(_a.outcome.is_(None), _a.started_at > in_seconds(-UNANSWERED)),
        ).where(_a.started_at >= gate.opens_at)
    ).one()
    return Reopening(gate.reason or "a pause", well, pending)


def close(
    conn: Connection,
    name: GateName,
    reason: str,
    *,
    opens_in: float | None = None,
    probe_in: float | None = None,
    refused_estimate: Decimal | None = None,
) -> bool:
    """Close a gate, or keep it closed for longer. True if it was open before: log it then, once."""
    mine = _gates.c.name == str(name)
    # The row first, and locked: of two that close it in the same moment one finds it closed.
    conn.execute(
        insert(_gates).values(name=str(name)).on_conflict_do_nothing(index_elements=[_gates.c.name])
    )
    held = or_(_gates.c.opens_at.is_(None), _gates.c.opens_at > func.now())
    was_closed: bool = conn.execute(
        select((_gates.c.closed_at.is_not(None) & held).label("closed"))
        .where(mine)
        .with_for_update()
    ).scalar_one()
    opens_at = None if opens_in is None else in_seconds(opens_in)
    probe_at = None if probe_in is None else in_seconds(probe_in)
    conn.execute(
        update(_gates)
        .where(mine)
        .values(
            closed_at=func.coalesce(_gates.c.closed_at, func.now()),
            reason=storable.text(reason) or "",
            opens_at=func.greatest(_gates.c.opens_at, opens_at),
            # A probe that is planned stays planned: refusals neither put it off nor hurry it.
            probe_at=func.coalesce(_gates.c.probe_at, probe_at),
            # The cheapest that was refused: what is dearer would be refused as well.
            refused_estimate=func.least(_gates.c.refused_estimate, refused_estimate),
            # Many refusals of one moment are one closing.
            failures=_gates.c.failures + (0 if was_closed else 1),
        )
    )
    return not was_closed


def open_(conn: Connection, name: GateName, *, before: Any = None) -> bool:
    """Open a gate. True if it was closed: log it then, once.

    `before`: only if its time was up by then.
    """
    its_time = [] if before is None else [_gates.c.opens_at <= before]
    done = conn.execute(
        update(_gates)
        .where(_gates.c.name == str(name), _gates.c.closed_at.is_not(None), *its_time)
        .values(
            closed_at=None,
            reason=None,
            opens_at=None,
            probe_at=None,
            refused_estimate=None,
            opened_at=func.now(),
        )
    )
    return done.rowcount == 1


def take_probe(conn: Connection, *, every: float) -> list[GateName]:
    """Which gates this caller shall probe now: each probe is handed out once, to one worker.

    The next comes in `every` s, later the longer the gate has been closed: in a quarter of that
    time, up to `SLOWEST_PROBES` times `every`.
    """
    closed_for = func.extract("epoch", func.now() - _gates.c.closed_at)
    pause = func.least(every * SLOWEST_PROBES, func.greatest(every, closed_for / 4))
    rows = conn.execute(
        update(_gates)
        .where(_gates.c.closed_at.is_not(None), _gates.c.probe_at <= func.now())
        .values(probe_at=func.now() + func.make_interval(0, 0, 0, 0, 0, 0, pause))
        .returning(_gates.c.name)
    )
    return [GateName(name) for name in rows.scalars()]


def record_balance(
    conn: Connection,
    *,
    total: Decimal,
    used: Decimal,
    remain: Decimal,
    asked_at: datetime | None = None,
) -> list[GateName]:
    """Keep what the provider says of the account; returns the gates that this opened.

    `asked_at`, by the database's clock: a charge that was recorded before it is in the answer;
    one that was recorded since may not be. An answered balance shows that the key is good; enough
    credits for what was refused open the credit gate.
    """
    conn.execute(
        _balances.insert().values(
            at=func.now() if asked_at is None else asked_at,
            total_credits=total,
            used_credits=used,
            remain_credits=remain,
        )
    )
    opened = [GateName.API_KEY] if open_(conn, GateName.API_KEY) else []
    refused = conn.execute(
        select(
            _gates.c.refused_estimate,
            _gates.c.failures,
            func.extract("epoch", func.now() - _gates.c.closed_at).label("closed_for"),
        ).where(_gates.c.name == str(GateName.CREDIT), _gates.c.closed_at.is_not(None))
    ).first()
    # The account may refuse what its balance seems to cover (credits may be reserved): closed
    # again and again, it stays closed for longer each time.
    enough = (
        refused is not None
        and (refused.refused_estimate is None or remain >= refused.refused_estimate)
        and float(refused.closed_for) >= _stays_closed(refused.failures)
    )
    if enough and open_(conn, GateName.CREDIT):
        opened.append(GateName.CREDIT)
    return opened


def _stays_closed(failures: int) -> float:
    """Seconds that the credit gate stays closed at least: none at first, then up to 5 minutes."""
    return 0.0 if failures <= 1 else min(300.0, 5.0 * 2.0 ** min(failures - 1, 10))


def aside(conn: Connection, generation_id: uuid.UUID) -> float:
    """Seconds for which one that the provider put off stays away.

    Whoever was put off before lets others go first once the backoff gate's time is up: else one
    that is always refused would be tried each time, and close the gate to all the others.
    """
    refused = conn.execute(
        select(func.count()).where(_a.generation_id == generation_id, _a.outcome == "refused")
    ).scalar_one()
    if not refused:
        return 1.0
    opens_in = conn.execute(
        select(func.extract("epoch", _gates.c.opens_at - func.now())).where(
            _gates.c.name == str(GateName.BACKOFF), _gates.c.opens_at > func.now()
        )
    ).scalar_one_or_none()
    return float(opens_in or 0.0) + min(LONGEST_ASIDE, 2.0 ** min(refused, 10))


def failures(conn: Connection, name: GateName) -> int:
    """How often the gate was closed since it was last forgotten; what backing off grows with."""
    count = conn.execute(
        select(_gates.c.failures).where(_gates.c.name == str(name))
    ).scalar_one_or_none()
    return count or 0


def forget(conn: Connection, *, after: float) -> list[GateName]:
    """Forget how often a gate was closed, once it has been open for so many seconds.

    A backoff gate that nobody was held back by has re-opened by then; returned if that is now.
    """
    long_ago = in_seconds(-after)
    opened = [GateName.BACKOFF] if open_(conn, GateName.BACKOFF, before=long_ago) else []
    conn.execute(
        update(_gates)
        .where(
            _gates.c.closed_at.is_(None),
            (_gates.c.opened_at <= long_ago) | _gates.c.name.in_(opened),
            _gates.c.failures > 0,
        )
        .values(failures=0)
    )
    return opened
