"""Circuit breakers of an account. While one is open, nothing is submitted and nothing fails.

`api_key` opens on INVALID_API_KEY and `credit` on INSUFFICIENT_CREDIT; a probe of the balance
closes them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from enum import StrEnum

from sqlalchemy import ColumnElement, Connection, func, select, update
from sqlalchemy.dialects.postgresql import insert

from models import storable
from models.base import table_of
from models.flow_control.table import DEFAULT_ACCOUNT, Breaker
from models.tables import BalanceSnapshot
from models.transitions.core import in_seconds

_breakers = table_of(Breaker)
b = _breakers.c
_balances = table_of(BalanceSnapshot)

SLOWEST_PROBES = 10.0
"""A breaker that stays open is probed less and less often, down to one in this many intervals."""

MAX_STAYS_OPEN = 300.0
"""Upper bound, in seconds, for the minimum open time of a breaker that trips repeatedly."""


class BreakerName(StrEnum):
    """The breakers of an account."""

    API_KEY = "api_key"
    CREDIT = "credit"


@dataclass(frozen=True)
class OpenBreaker:
    """A breaker that is open."""

    name: BreakerName
    reason: str
    opened_at: datetime
    refused_estimate: Decimal | None
    """The lowest estimated cost that the provider refused, in credits."""


@dataclass(frozen=True)
class Breakers:
    """The open breakers of an account, and the credits known to be left."""

    open: tuple[OpenBreaker, ...] = ()
    remaining: Decimal | None = None

    def obstacle(self, estimate: Decimal) -> OpenBreaker | None:
        """Return the breaker that blocks a generation of this estimated cost, or None.

        After a 402 cheaper work than was refused still passes while the balance covers it: one
        expensive generation must not block the rest.
        """
        for breaker in self.open:
            if breaker.name is BreakerName.CREDIT and self._affordable(breaker, estimate):
                continue
            return breaker
        return None

    def _affordable(self, breaker: OpenBreaker, estimate: Decimal) -> bool:
        return (
            self.remaining is not None
            and estimate <= self.remaining
            and breaker.refused_estimate is not None
            and estimate < breaker.refused_estimate
        )

    @property
    def ceiling(self) -> Decimal | None:
        """The highest estimate that passes; None: no bound; below zero: nothing passes."""
        if any(breaker.name is not BreakerName.CREDIT for breaker in self.open):
            return Decimal(-1)
        for breaker in self.open:
            if self.remaining is None or breaker.refused_estimate is None:
                return Decimal(-1)
            return min(self.remaining, breaker.refused_estimate - Decimal("0.0001"))
        return None


def read(conn: Connection, *, account: str = DEFAULT_ACCOUNT) -> Breakers:
    """Return the account's open breakers."""
    rows = conn.execute(
        select(b.name, b.reason, b.opened_at, b.refused_estimate)
        .where(b.account == account, b.opened_at.is_not(None))
        .order_by(b.name)
    ).all()
    opened = tuple(
        OpenBreaker(BreakerName(r.name), r.reason, r.opened_at, r.refused_estimate) for r in rows
    )
    remaining = None
    if any(breaker.name is BreakerName.CREDIT for breaker in opened):
        remaining = conn.execute(
            select(_balances.c.remain_credits).order_by(_balances.c.at.desc()).limit(1)
        ).scalar_one_or_none()
    return Breakers(opened, remaining)


def any_open() -> ColumnElement[bool]:
    """Return a condition: some breaker is open."""
    return select(b.name).where(b.opened_at.is_not(None)).exists()


def trip(
    conn: Connection,
    name: BreakerName,
    reason: str,
    *,
    probe_in: float,
    refused_estimate: Decimal | None = None,
    account: str = DEFAULT_ACCOUNT,
) -> bool:
    """Open a breaker, or keep it open. Returns True if it was closed: log it then, once."""
    mine = (b.account == account, b.name == str(name))
    # The row first, and locked: of two that open it in the same moment one finds it open.
    conn.execute(insert(_breakers).values(account=account, name=str(name)).on_conflict_do_nothing())
    was_open: bool = conn.execute(
        select(b.opened_at.is_not(None)).where(*mine).with_for_update()
    ).scalar_one()
    conn.execute(
        update(_breakers)
        .where(*mine)
        .values(
            opened_at=func.coalesce(b.opened_at, func.now()),
            reason=storable.text(reason) or "",
            # A planned probe stays planned: refusals neither delay nor hasten it.
            probe_at=func.coalesce(b.probe_at, in_seconds(probe_in)),
            # The cheapest that was refused: a higher estimate would be refused as well.
            refused_estimate=func.least(b.refused_estimate, refused_estimate),
            # Many refusals of one moment are one trip.
            trips=b.trips + (0 if was_open else 1),
        )
    )
    return not was_open


def close(conn: Connection, name: BreakerName, *, account: str = DEFAULT_ACCOUNT) -> bool:
    """Close a breaker. Returns True if it was open: log it then, once."""
    done = conn.execute(
        update(_breakers)
        .where(b.account == account, b.name == str(name), b.opened_at.is_not(None))
        .values(
            opened_at=None,
            reason=None,
            probe_at=None,
            refused_estimate=None,
            closed_at=func.now(),
        )
    )
    return done.rowcount == 1


def take_probe(conn: Connection, *, every: float) -> list[BreakerName]:
    """Return the breakers that this caller must probe now; each probe is given to one worker.

    The next follows in `every` s, later the longer the breaker has been open: in a quarter of that
    time, up to `SLOWEST_PROBES` times `every`.
    """
    open_for = func.extract("epoch", func.now() - b.opened_at)
    pause = func.least(every * SLOWEST_PROBES, func.greatest(every, open_for / 4))
    rows = conn.execute(
        update(_breakers)
        .where(b.opened_at.is_not(None), b.probe_at <= func.now())
        .values(probe_at=func.now() + func.make_interval(0, 0, 0, 0, 0, 0, pause))
        .returning(b.name)
    )
    return [BreakerName(name) for name in rows.scalars()]


def record_balance(
    conn: Connection,
    *,
    total: Decimal,
    used: Decimal,
    remain: Decimal,
    asked_at: datetime | None = None,
    account: str = DEFAULT_ACCOUNT,
) -> Sequence[BreakerName]:
    """Store the account's balance, and return the breakers that it closed.

    `asked_at`, by the database's clock: a charge that was recorded before it is in the answer; one
    that was recorded since may not be. An answered balance shows that the key is valid; enough
    credits for what was refused close the credit breaker.
    """
    conn.execute(
        _balances.insert().values(
            at=func.now() if asked_at is None else asked_at,
            total_credits=total,
            used_credits=used,
            remain_credits=remain,
        )
    )
    closed = [BreakerName.API_KEY] if close(conn, BreakerName.API_KEY, account=account) else []
    refused = conn.execute(
        select(
            b.refused_estimate,
            b.trips,
            func.extract("epoch", func.now() - b.opened_at).label("open_for"),
        ).where(b.account == account, b.name == str(BreakerName.CREDIT), b.opened_at.is_not(None))
    ).first()
    # The account may refuse what its balance seems to cover (credits may be reserved): tripped
    # again and again, the breaker stays open for longer each time.
    enough = (
        refused is not None
        and (refused.refused_estimate is None or remain >= refused.refused_estimate)
        and float(refused.open_for) >= _stays_open(refused.trips)
    )
    if enough and close(conn, BreakerName.CREDIT, account=account):
        closed.append(BreakerName.CREDIT)
    return closed


def _stays_open(trips: int) -> float:
    """Return the seconds that the credit breaker stays open: none at first, then up to 5 min."""
    return 0.0 if trips <= 1 else min(MAX_STAYS_OPEN, 5.0 * 2.0 ** min(trips - 1, 10))


def forget_trips(conn: Connection, *, after: float) -> None:
    """Forget how often a breaker opened, once it has been closed for that many seconds."""
    conn.execute(
        update(_breakers)
        .where(b.opened_at.is_(None), b.closed_at <= in_seconds(-after), b.trips > 0)
        .values(trips=0)
    )
