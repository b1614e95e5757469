"""Budgets: how many credits a tenant may spend in a day, in a month, or at all (UTC).

Spent is what the ledger charged in the period. A `refuse` budget is asked at the door, and counts
all that the tenant has not ended; a `wait` budget is asked at admission, and counts what was let
in: what waits then goes on when the period ends, or when less was charged than estimated.
"""

import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, delete, func, select, text, update
from sqlalchemy.dialects.postgresql import insert

from models import transitions
from models.base import among, table_of
from models.ledger import Budget
from models.lifecycle import Status
from models.tables import LIVE_SQL, Generation
from models.wait_reasons import NO_WAIT, Wait, WaitReason, over_budget

g = table_of(Generation).c
_budgets = table_of(Budget)

RECHECK = 300.0
"""Seconds until an over-budget generation is looked at again, if its period is not over sooner."""


class Period(StrEnum):
    """What a budget is for."""

    DAY = "day"
    MONTH = "month"
    TOTAL = "total"


class Policy(StrEnum):
    """What happens to a request that is over it."""

    REFUSE = "refuse"
    WAIT = "wait"


@dataclass(frozen=True)
class BudgetView:
    """A budget as it was set. The amount is in credits."""

    tenant: str
    period: Period
    amount: Decimal
    policy: Policy


@dataclass(frozen=True)
class Room:
    """A budget and what is left of it now, in credits."""

    budget: BudgetView
    charged: Decimal
    """In the period, by the ledger."""
    under_way: Decimal
    """Estimates of what may still be charged."""
    since: datetime | None
    """When the period began; None for `total`."""
    ends_in: float | None
    """Seconds until the next one begins."""
    resets_at: datetime | None = None
    """When the next one begins; None for `total`."""

    @property
    def left(self) -> Decimal:
        """What something new may cost; below zero when more was spent than allowed."""
        return self.budget.amount - self.charged - self.under_way

    def less(self, cost: Decimal) -> "Room":
        """After something of this estimate was let in."""
        return replace(self, under_way=self.under_way + cost)

    def explain(self, cost: Decimal) -> str:
        """Return why something of this cost is over it, with the figures."""
        return over_budget(self.detail(cost))

    def detail(self, cost: Decimal) -> dict[str, Any]:
        """Return the figures of a generation of this cost that it doesn't cover."""
        b = self.budget
        return {
            "tenant": b.tenant,
            "period": str(b.period),
            "policy": str(b.policy),
            "limit": _plain(b.amount),
            "needed": _plain(cost),
            "charged": _plain(self.charged),
            "under_way": _plain(self.under_way),
            "left": _plain(max(self.left, Decimal(0))),
            "resets_at": None if self.resets_at is None else self.resets_at.isoformat(),
        }


class BudgetExceeded(Exception):
    """A request, or several of one call, cost more than the tenant's budget has left."""

    def __init__(self, room: Room, cost: Decimal) -> None:
        super().__init__(f"over budget: {room.explain(cost)}")
        self.room = room
        self.cost = cost


def _plain(amount: Decimal) -> str:
    return f"{amount.normalize():f}" if amount else "0"


_ROOMS = text(
    f"""
    SELECT b.tenant, b.period, b.amount, b.policy, p.since,
           p.until AS resets_at,
           extract(epoch FROM p.until - now())::float8 AS ends_in,
           (SELECT coalesce(sum(amount), 0) FROM ledger_entries l
            WHERE l.kind = 'charged' AND l.tenant = b.tenant
              AND l.at >= coalesce(p.since, '-infinity')) AS charged,
           (SELECT coalesce(sum(greatest(estimated_cost, credit_cost)), 0) FROM generations g
            WHERE g.tenant = b.tenant
              AND ({LIVE_SQL} OR (b.policy = 'refuse' AND g.status = 'accepted'))) AS under_way
    FROM budgets b
    CROSS JOIN LATERAL (SELECT
        CASE WHEN b.period <> 'total'
             THEN date_trunc(b.period, now() AT TIME ZONE 'UTC') AT TIME ZONE 'UTC' END AS since,
        CASE WHEN b.period <> 'total'
             THEN (date_trunc(b.period, now() AT TIME ZONE 'UTC')
                   + ('1 ' || b.period)::interval) AT TIME ZONE 'UTC' END AS until) p
    WHERE (CAST(:tenants AS text[]) IS NULL OR b.tenant = ANY(:tenants))
      AND (CAST(:policy AS text) IS NULL OR b.policy = :policy)
    ORDER BY b.tenant, b.period
    """  # noqa: S608  (built from constants of this package)
)


def rooms(
    conn: Connection, tenants: Iterable[str] | None = None, policy: Policy | None = None
) -> list[Room]:
    """Budgets, of these tenants and of this policy where named, with what is left of each."""
    found = conn.execute(
        _ROOMS,
        {
            "tenants": None if tenants is None else sorted(tenants),
            "policy": None if policy is None else str(policy),
        },
    )
    return [
        Room(
            BudgetView(r.tenant, Period(r.period), r.amount, Policy(r.policy)),
            r.charged,
            r.under_way,
            r.since,
            r.ends_in,
            r.resets_at,
        )
        for r in found
    ]


def hold(conn: Connection, tenants: Iterable[str]) -> list[str]:
    """Which of the tenants have a budget that refuses. Nobody else enqueues for them until this
    transaction ends: two requests that race must not both have the last credits.
    """
    held = conn.execute(refusing(among(_budgets.c.tenant, sorted(tenants)))).scalars()
    return list(dict.fromkeys(held))


def refusing(of: ColumnElement[bool]) -> Select[Any]:
    """Locks the budgets that refuse, of some tenants: their names."""
    return (
        select(_budgets.c.tenant)
        .where(of, _budgets.c.policy == str(Policy.REFUSE))
        .order_by(_budgets.c.tenant, _budgets.c.period)
        .with_for_update()
    )


def check(conn: Connection, costs: dict[str, Decimal]) -> None:
    """Refuse what was just stored, if a tenant is over budget with it. Raises BudgetExceeded.

    `costs`: what is new of each tenant; it counts as under way already.
    """
    for room in rooms(conn, costs, Policy.REFUSE):
        cost = costs[room.budget.tenant]
        if room.left < 0 and cost > 0:
            raise BudgetExceeded(room.less(-cost), cost)


def put_off(conn: Connection, generation_id: uuid.UUID, room: Room, cost: Decimal) -> None:
    """Keep it accepted with the budget's figures, and check again later."""
    seconds = RECHECK if room.ends_in is None else min(RECHECK, room.ends_in + 0.05)
    wait = Wait(WaitReason.BUDGET, room.detail(cost))
    transitions.stay(conn, generation_id, wait=wait, seconds=seconds)


# --- setting them -------------------------------------------------------------------------------


def put(conn: Connection, budget: BudgetView) -> None:
    """Set a budget, or change the one there is. Who waits for it is looked at at once."""
    values = {
        "amount": budget.amount,
        "policy": str(budget.policy),
    }
    new = insert(_budgets).values(tenant=budget.tenant, period=str(budget.period), **values)
    conn.execute(
        new.on_conflict_do_update(
            index_elements=[_budgets.c.tenant, _budgets.c.period],
            set_={**values, "changed_at": func.now()},
        )
    )
    _look_again(conn, budget.tenant)


def remove(conn: Connection, tenant: str, period: Period) -> bool:
    """Take a budget away. False if there is none."""
    done = conn.execute(
        delete(_budgets).where(_budgets.c.tenant == tenant, _budgets.c.period == str(period))
    )
    _look_again(conn, tenant)
    return done.rowcount == 1


def _look_again(conn: Connection, tenant: str) -> None:
    conn.execute(
        update(Generation)
        .where(
            g.tenant == tenant,
            g.status == Status.ACCEPTED,
            g.wait_reason == WaitReason.BUDGET,
        )
        .values(**NO_WAIT, due_at=func.now())
    )


def known(conn: Connection) -> Sequence[BudgetView]:
    """Every budget, by tenant and period."""
    return [room.budget for room in rooms(conn)]
