"""Not spending what is not there: the provider charges at the end, so parallel work can overdraw.

Judged at admission, which one process does at a time (`schedule.admit`): whatever was let in and
has not ended counts with its estimate, from before its intent to its charge, so two intents that
race were both counted before either. What does not fit stays `accepted`, and says so.
"""

import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from sqlalchemy import Connection, Row, text

from models import budgets
from models.operating.pauses import paused_sql
from models.tables import LIVE_SQL
from models.wait_reasons import MAY_BE_SHORT_SQL, WaitReason

FAIR_AFTER = 600.0
"""Seconds after which a generation that waits for credits has them saved up for it."""

_TOLD_AT_ONCE = 200


@dataclass(frozen=True)
class Funds:
    """What the account holds, as far as is known, and what is spoken for; in credits."""

    remain: Decimal | None
    """As the provider told it last; None if it never did."""
    age: float | None
    """Seconds since it was asked."""
    charged: Decimal
    """Charged since then, by the ledger."""
    under_way: Decimal
    """Estimates of all that was let in and has not ended: it may yet be charged."""
    stuck: Decimal
    """The part of that which waits for an operator: nobody knows how long."""

    @property
    def free(self) -> Decimal | None:
        """What something new may cost; None where nothing is known."""
        return None if self.remain is None else self.remain - self.charged - self.under_way

    @property
    def in_the_end(self) -> Decimal | None:
        """What would be free if all that is under way ended and cost nothing."""
        return None if self.remain is None else self.remain - self.charged - self.stuck


_FUNDS = text(
    f"""
    WITH told AS (SELECT at, remain_credits FROM balance_snapshots ORDER BY at DESC LIMIT 1)
    SELECT t.remain_credits AS remain,
           extract(epoch FROM now() - t.at)::float8 AS age,
           (SELECT coalesce(sum(amount), 0) FROM ledger_entries
            WHERE kind = 'charged' AND at > t.at) AS charged,
           live.all_of_it + second.cost AS under_way,
           live.stuck + second.cost AS stuck
    FROM (SELECT coalesce(sum(cost), 0) AS all_of_it,
                 coalesce(sum(cost) FILTER (WHERE attention IS NOT NULL), 0) AS stuck
          FROM (SELECT greatest(estimated_cost, credit_cost) AS cost, attention
                FROM generations WHERE {LIVE_SQL}) x) live
    CROSS JOIN (SELECT coalesce(sum(credit_cost), 0) AS cost FROM stray_tasks
                WHERE generation_id IS NOT NULL AND kind = 'second'
                AND status NOT IN ('completed', 'failed', 'cancelled', 'expired')) second
    LEFT JOIN told t ON true
    """  # noqa: S608  (built from constants of this package)
)


def funds(conn: Connection) -> Funds:
    """Read the account: the latest snapshot, less what happened since."""
    row = conn.execute(_FUNDS).one()
    return Funds(row.remain, row.age, row.charged or Decimal(0), row.under_way, row.stuck)


@dataclass(frozen=True)
class Senior:
    """A generation that has waited for credits for so long that they are saved up for it."""

    id: uuid.UUID
    estimate: Decimal


class Purse:
    """What one admission may still spend; emptied by what it takes."""

    def __init__(self, known: Funds | None, senior: Senior | None = None) -> None:
        """Without funds there is no bound but budgets."""
        self.funds = known
        self.left = None if known is None else known.free
        self.refused = False
        """Whether something was not let in for want of credits."""
        self._senior = senior
        self._rooms: dict[str, list[budgets.Room]] = {}

    @property
    def unknown(self) -> bool:
        """The provider never told what the account holds."""
        return self.funds is not None and self.funds.remain is None

    def ceiling(self, other: Decimal | None) -> Decimal | None:
        """The lower one of another bound and of what may be spent at all."""
        return min((c for c in (other, self.left) if c is not None), default=None)

    def take(self, conn: Connection, rows: Iterable[Row[Any]]) -> list[uuid.UUID]:
        """Those of the rows that can be paid, in their order. Who is over budget is put off."""
        listed = list(rows)
        unseen = {row.tenant for row in listed} - self._rooms.keys()
        if unseen:
            self._rooms |= {tenant: [] for tenant in unseen}
            for room in budgets.rooms(conn, unseen, budgets.Policy.WAIT):
                self._rooms[room.budget.tenant].append(room)
        return [row.id for row in listed if self._takes(conn, row)]

    def _takes(self, conn: Connection, row: Row[Any]) -> bool:
        cost = row.estimated_cost
        for room in self._rooms[row.tenant]:
            if cost > room.left:
                budgets.put_off(conn, row.id, room, cost)
                return False
        if self.left is not None:
            kept = self._senior is not None and self._senior.id != row.id
            if cost > self.left - (self._senior.estimate if kept and self._senior else 0):
                self.refused = True
                return False
            self.left -= cost
        self._rooms[row.tenant] = [room.less(cost) for room in self._rooms[row.tenant]]
        if self._senior is not None and self._senior.id == row.id:
            self._senior = None
        return True


_SHORT = f"wait_reason = '{WaitReason.CREDITS}'"

_TELL = text(
    f"""
    WITH short AS (
        SELECT id, estimated_cost > :free AS is_short FROM generations
        WHERE status = 'accepted' AND blocked_by IS NULL AND NOT {paused_sql("generations.tenant")}
          AND CASE WHEN estimated_cost > :free
              THEN due_at <= now() AND {MAY_BE_SHORT_SQL}
              ELSE {_SHORT} END
        ORDER BY (wait_reason IS NULL) DESC, priority DESC, created_at
        LIMIT {_TOLD_AT_ONCE} FOR UPDATE SKIP LOCKED
    )
    UPDATE generations g SET
        wait_reason = CASE WHEN is_short THEN '{WaitReason.CREDITS}' END,
        wait_detail = CASE WHEN is_short THEN jsonb_build_object(
            'needed', CAST(trim_scale(g.estimated_cost) AS text),
            'free', CAST(trim_scale(:free) AS text),
            'on_account', CAST(trim_scale(:there) AS text),
            'under_way', CAST(trim_scale(:under_way) AS text)) END
    FROM short WHERE g.id = short.id
    """  # noqa: S608
)

_ANYBODY = text(
    f"SELECT EXISTS (SELECT FROM generations WHERE status = 'accepted'"  # noqa: S608
    f" AND {_SHORT})"
)

_SENIOR = text(
    f"""
    SELECT id, estimated_cost FROM generations
    WHERE status = 'accepted' AND {_SHORT}
      AND NOT {paused_sql("generations.tenant")}
      AND created_at <= now() - make_interval(secs => :after)
      AND estimated_cost <= :in_the_end
    ORDER BY priority DESC, created_at LIMIT 1
    """  # noqa: S608
)


@dataclass(frozen=True)
class Told:
    """Who waits for credits."""

    anybody: bool
    senior: Senior | None
    """For whom they are saved up."""
    age: float | None
    """Seconds since the balance was asked for; None if it was never told."""


def tell(conn: Connection, *, fair_after: float = FAIR_AFTER) -> Told:
    """Let who waits for credits say so, with the figures, and choose for whom they are saved up.

    That is the first of those that have waited for long, if the account can cover it at all:
    while cheaper ones keep passing a dear one would else never find enough. What nobody could
    pay even in the end holds nobody up.
    """
    known = funds(conn)
    if known.remain is None or known.free is None:
        return Told(anybody=False, senior=None, age=None)
    conn.execute(
        _TELL,
        {
            "free": max(known.free, Decimal(0)),
            "there": known.remain - known.charged,
            "under_way": known.under_way,
        },
    )
    row = conn.execute(_SENIOR, {"after": fair_after, "in_the_end": known.in_the_end}).one_or_none()
    anybody = conn.execute(_ANYBODY).scalar_one()
    return Told(anybody, None if row is None else Senior(row.id, row.estimated_cost), known.age)
