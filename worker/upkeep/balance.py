"""Balance: record what the account holds; an answer may open the gates."""

import logging
from decimal import Decimal

from api_client import ApiError, Balance, Disposition
from models import gates, schedule
from worker.runtime import Runtime
from worker.stages import common

log = logging.getLogger(__name__)


def run(rt: Runtime) -> Balance | None:
    """Ask for the balance and record it. None if the provider did not say."""
    try:
        balance = rt.client.balance(retry=False)
    except ApiError as error:
        if error.disposition is Disposition.HOLD:
            common.hold(rt, error)
        else:
            log.warning("the balance can't be read: %s", error)
        return None
    record(rt, balance)
    return balance


def record(rt: Runtime, balance: Balance) -> None:
    """Keep a balance, and open the gates that it opens."""
    with rt.engine.begin() as conn:
        opened = gates.record_balance(
            conn,
            total=balance.total_credits or Decimal(0),
            used=balance.used_credits or Decimal(0),
            remain=balance.remain_credits,
        )
        if opened:
            schedule.wake(conn)
    for name in opened:
        log.warning("gate %s is open again", name)
