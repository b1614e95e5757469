"""Prune: remove what nobody needs any more, in small batches."""

import logging

from sqlalchemy import delete, func, select, text

from models.tables import BalanceSnapshot, RejectedMessage
from worker.runtime import Runtime

log = logging.getLogger(__name__)

BATCH = 1_000
KEEP_BALANCES = "90 days"


def run(rt: Runtime) -> int:
    """Delete old balance snapshots and messages that were set aside. Returns how many rows."""
    aside = func.now() - text(f"interval '{rt.settings.retain_rejected} seconds'")
    removed = _prune(rt, RejectedMessage, aside)
    return removed + _prune(rt, BalanceSnapshot, func.now() - text(f"interval '{KEEP_BALANCES}'"))


def _prune(
    rt: Runtime, table: type[RejectedMessage] | type[BalanceSnapshot], before: object
) -> int:
    removed = 0
    # The first balance stays: what was charged is held against the provider's count since then.
    first = select(func.min(BalanceSnapshot.id)).scalar_subquery()
    kept = [table.id != first] if table is BalanceSnapshot else []
    while True:
        old = select(table.id).where(table.at < before, *kept).limit(BATCH)
        with rt.engine.begin() as conn:
            count = conn.execute(delete(table).where(table.id.in_(old))).rowcount
        removed += count
        if count < BATCH:
            break
    if removed:
        log.info("pruned %d rows of %s", removed, table.__tablename__)
    return removed
