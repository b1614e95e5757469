"""Balance: record what the account holds; an answer may close the breakers."""

import logging
from datetime import datetime
from decimal import Decimal

from sqlalchemy import func, select

from api_client import ApiError, Balance
from models import schedule
from models.flow_control import breakers
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
        if common.report(rt, error) is None:
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
    """Store a balance, and close the breakers that it closes."""
    with rt.engine.begin() as conn:
        closed = breakers.record_balance(
            conn,
            total=balance.total_credits or Decimal(0),
            used=balance.used_credits or Decimal(0),
            remain=balance.remain_credits,
            asked_at=asked_at,
        )
        schedule.wake(conn)
        pulses.tell(conn, "balance")
    for name in closed:
        log.warning("breaker %s is closed again", name)
