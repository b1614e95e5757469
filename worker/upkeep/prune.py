"""Prune: remove what nobody needs any more, in small batches.

Only what has ended goes, each kind after a period of its own; the ledger stays. A batch is a short
transaction that passes over rows that somebody holds, and a run is bounded: what is left is for the
next one.
"""

import logging
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from sqlalchemy import ColumnElement, Connection, delete, exists, func, literal, or_, select

from models.artifacts import Artifact
from models.base import Base, table_of
from models.metrics import pulses
from models.notices import Notice, NoticeReceiver, State
from models.tables import (
    BalanceSnapshot,
    Generation,
    GenerationEvent,
    RejectedMessage,
    StrayTask,
    Upload,
)
from worker.metrics.scrape import BehindError, catch_up, classes
from worker.runtime import Runtime
from worker.settings import Settings

log = logging.getLogger(__name__)

BATCH = 500
_DAY = 86_400.0
RUN_SECONDS = 300.0
"""How long one run may take. A first run over years of rows is spread over many."""

FORGET_PROCESSES = 86_400.0
"""Seconds after which a process that tells no more is forgotten."""

g = table_of(Generation).c
e = table_of(GenerationEvent).c
u = table_of(Upload).c
a = table_of(Artifact).c
s = table_of(StrayTask).c
n = table_of(Notice).c
r = table_of(NoticeReceiver).c

Batch = Callable[[Connection], int]


def run(rt: Runtime) -> int:
    """Delete what is older than its period. Returns how many rows, without their dependents."""
    deadline = time.monotonic() + RUN_SECONDS
    try:
        catch_up(rt.engine, classes(rt.settings), within=RUN_SECONDS)
    except BehindError:
        log.warning("nothing is pruned yet: its history is not counted (seedance metrics)")
        return 0
    removed = 0
    for name, batch in _batches(rt.settings).items():
        count = _repeat(rt, batch, deadline)
        if count:
            log.info("pruned %d of %s", count, name)
        removed += count
    with rt.engine.begin() as conn:
        pulses.forget(conn, after=FORGET_PROCESSES)
        pulses.tell(conn, "prune")
    return removed


def _repeat(rt: Runtime, batch: Batch, deadline: float) -> int:
    removed = 0
    while time.monotonic() < deadline:
        with rt.engine.begin() as conn:
            count = batch(conn)
        removed += count
        if count < BATCH:
            break
    return removed


def _batches(settings: Settings) -> dict[str, Batch]:
    """For each table what a batch of it is. Those without a period are kept for ever."""
    ended, events = settings.retain_generations, settings.retain_events
    batches: dict[str, Batch] = {
        "rejected messages": _older(RejectedMessage, settings.retain_rejected),
        "balance snapshots": _older(BalanceSnapshot, settings.retain_balances),
        "uploads": lambda conn: _uploads(conn, settings.upload_valid),
        "notices": lambda conn: _notices(conn, settings.retain_notices),
        "failing receivers": _receivers,
    }
    if events:
        batches["events"] = lambda conn: _events(conn, events)
    if ended:
        batches["generations"] = lambda conn: _generations(conn, ended)
        batches["results never stored"] = _unstored
        batches["stray tasks"] = lambda conn: _strays(conn, ended)
    return batches


def _ago(seconds: float) -> ColumnElement[Any]:
    return func.now() - timedelta(seconds=seconds)


def _older(model: type[RejectedMessage] | type[BalanceSnapshot], seconds: float) -> Batch:
    # The first balance stays: what was charged is held against the provider's count since then.
    first = select(func.min(BalanceSnapshot.id)).scalar_subquery()
    kept = [model.id != first] if model is BalanceSnapshot else []
    old = select(model.id).where(model.at < _ago(seconds), *kept).limit(BATCH)
    return lambda conn: conn.execute(delete(model).where(model.id.in_(old))).rowcount


def _generations(conn: Connection, seconds: float) -> int:
    """Ended generations, with their events and attempts.

    By the time of acceptance, which has an index: nothing ends before it was accepted.
    """
    old = (
        select(g.id)
        .where(
            g.created_at < _ago(seconds),
            g.finished_at < _ago(seconds),
            # Its producer is still to be told.
            ~exists().where(n.generation_id == g.id, n.status == State.PENDING),
            # Its results can still be stored, for which its remote task must be known.
            ~exists().where(
                a.generation_id == g.id, a.due_at.is_not(None), a.available_until > func.now()
            ),
        )
        .order_by(g.created_at)
        .limit(BATCH)
        .with_for_update(skip_locked=True)
    )
    return _delete(conn, Generation, g.id.in_(old))


def _events(conn: Connection, seconds: float) -> int:
    """The history of generations that ended so long ago, but for how they ended."""
    old = (
        select(e.id)
        .join(Generation, g.id == e.generation_id)
        .where(
            g.created_at < _ago(seconds),
            g.finished_at < _ago(seconds),
            or_(e.to_status.is_(None), e.to_status != g.status),
        )
        .limit(BATCH)
    )
    return _delete(conn, GenerationEvent, e.id.in_(old))


def _unstored(conn: Connection) -> int:
    """Results that were not stored, of generations that are gone. What was stored stays told."""
    old = (
        select(a.generation_id, a.kind)
        .where(
            or_(a.due_at.is_not(None), a.lost_at.is_not(None)),
            ~exists().where(g.id == a.generation_id),
        )
        .limit(BATCH)
        .with_for_update(skip_locked=True)
        .cte("old")
    )
    gone = delete(Artifact).where(a.generation_id == old.c.generation_id, a.kind == old.c.kind)
    return conn.execute(gone).rowcount


def _uploads(conn: Connection, valid: float) -> int:
    """Uploads that have long ceased to be valid, and claims that nobody came back to."""
    old = (
        select(u.sha256, u.content_type)
        .where(
            func.coalesce(u.valid_until, u.claimed_until, literal(None)) < _ago(valid),
            or_(u.claimed_until.is_(None), u.claimed_until < _ago(valid)),
        )
        .limit(BATCH)
        .with_for_update(skip_locked=True)
        .cte("old")
    )
    gone = delete(Upload).where(u.sha256 == old.c.sha256, u.content_type == old.c.content_type)
    return conn.execute(gone).rowcount


def _notices(conn: Connection, seconds: float) -> int:
    """Notices that were delivered or set aside so long ago."""
    old = (
        select(n.id)
        .where(n.status != State.PENDING, n.settled_at < _ago(seconds))
        .limit(BATCH)
        .with_for_update(skip_locked=True)
    )
    return _delete(conn, Notice, n.id.in_(old))


def _receivers(conn: Connection) -> int:
    """Receivers that failed, and that nothing is meant for any more."""
    idle = (
        select(r.receiver)
        .where(
            r.retry_at < _ago(_DAY),
            ~exists().where(n.receiver == r.receiver, n.status == State.PENDING),
        )
        .limit(BATCH)
        .with_for_update(skip_locked=True)
    )
    return _delete(conn, NoticeReceiver, r.receiver.in_(idle))


def _strays(conn: Connection, seconds: float) -> int:
    """Remote tasks that the list has not shown for so long, of generations that are gone."""
    old = (
        select(s.task_id)
        .where(s.last_seen_at < _ago(seconds), ~exists().where(g.id == s.generation_id))
        .limit(BATCH)
        .with_for_update(skip_locked=True)
    )
    return _delete(conn, StrayTask, s.task_id.in_(old))


def _delete(conn: Connection, model: type[Base], *which: ColumnElement[bool]) -> int:
    return conn.execute(delete(model).where(*which)).rowcount
