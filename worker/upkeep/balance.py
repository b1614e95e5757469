"""Balance: record what the account holds; an answer may open the gates."""

import logging
from datetime import datetime
from decimal import Decimal

from sqlalchemy import func, select

from api_client import ApiError, Balance, Disposition
from models import gates, schedule
from models.metrics import pulses
from worker.runtime import Runtime
from worker.stages import common

log = logging.getLogger(__name__)


def run(rt: Runtime) -> Balance | None:
    """Ask for the balance and record it. None if the provider did not say."""
    asked_at = now(rt)
    try:
        balance = rt.client.balance(retry=False)
    except ApiError as error:
        if error.disposition is Disposition.HOLD:
            common.hold(rt, error)
        else:
            log.warning("the balance can't be read: %s", error)
        return None
    record(rt, balance, asked_at=asked_at)
    return balance


def now(rt: Runtime) -> datetime:
    """The database's time, to be taken before asking."""
    with rt.engine.connect() as conn:
        at: datetime = conn.execute(select(func.clock_timestamp())).scalar_one()
        return at


def record(rt: Runtime, balance: Balance, *, asked_at: datetime) -> None:
    """Keep a balance, and open the gates that it opens. What waits for credits looks again."""
    with rt.engine.begin() as conn:
        opened = gates.record_balance(
            conn,
            total=balance.total_credits or Decimal(0),
            used=balance.used_credits or Decimal(0),
            remain=balance.remain_credits,
            asked_at=asked_at,
        )
        schedule.wake(conn)
        pulses.tell(conn, "balance")
    for name in opened:
        log.warning("gate %s is open again", name)
