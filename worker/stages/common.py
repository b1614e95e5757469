"""What stages share: reading the claimed row, holding sending back, and telling what was seen."""

import logging
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from typing import Any, TypeVar

from sqlalchemy import (
    BigInteger,
    Connection,
    Engine,
    Uuid,
    bindparam,
    column,
    false,
    func,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.sql.dml import ReturningUpdate
from structlog.contextvars import bind_contextvars

from api_client import ApiError, Disposition, Task
from models.base import table_of
from models.database import alone
from models.lifecycle import Observation
from models.schedule import backoff
from models.tables import Generation
from models.transitions import LOCK_ORDER, in_seconds
from models.wait_reasons import Wait
from worker import flow, tracing
from worker.runtime import Runtime

log = logging.getLogger(__name__)

g = table_of(Generation).c
T = TypeVar("T")

BACKOFF_BASE = 2.0
BACKOFF_CAP = 300.0


@dataclass(frozen=True)
class Row:
    """What the stages need of a claimed generation."""

    id: uuid.UUID
    lease: int
    status: str
    request: dict[str, Any]
    content: list[dict[str, Any]] | None
    estimated_cost: Decimal
    remote_task_id: str | None
    cancel_wished: bool
    cancel_sent: bool
    overdue: bool
    submitted_ago: float
    polls: int
    failures: int
    attention: str | None


MOST_TRIES = 30_000
"""As many as the column counts."""


def begin(rt: Runtime, generation_id: uuid.UUID, lease: int) -> Row | None:
    """Start on a claimed generation: count the try, which progress will take back, and load it.

    None if the claim has ended. A message that is lost counts nothing; a worker that dies leaves
    the count behind, and its id for `models.workers` to release the claim.
    """
    rows = begin_many(rt, [(generation_id, lease)])
    return rows[0] if rows else None


def begin_many(
    rt: Runtime, claims: Sequence[tuple[uuid.UUID, int]], *, skip_locked: bool = False
) -> list[Row]:
    """Start on several at once, as `begin` does: those that are still claimed, in their order.

    `skip_locked`: without the rows that another transaction is changing.
    """
    with alone(rt.engine) as conn:
        tracing.works_on(conn, [generation_id for generation_id, _ in claims])
        given = _parameter(claims, rt.membership.id)
        found = {row.id: row for row in conn.execute(_count_try(skip_locked), given)}
    for generation_id, lease in claims:
        if generation_id not in found:
            log.debug("generation %s: the message with lease %s is stale", generation_id, lease)
    rows = [_row(found[one]) for one, _ in claims if one in found]
    if len(rows) == 1:
        of = found[rows[0].id]
        bind_contextvars(attempt=of.attempt, remote_task=of.remote_task_id)
    return rows


_CLAIMED = (
    func.jsonb_to_recordset(bindparam("claims", type_=JSONB))
    .table_valued(column("id", Uuid), column("lease", BigInteger), name="claimed")
    .render_derived(with_types=True)
)


def _parameter(claims: Sequence[tuple[uuid.UUID, int]], worker_id: int | None) -> dict[str, Any]:
    claimed = [{"id": str(one), "lease": lease} for one, lease in claims]
    return {"claims": claimed, "worker_id": worker_id}


_COLUMNS = (
    g.id,
    g.lease,
    g.status,
    g.request,
    g.content,
    g.estimated_cost,
    g.remote_task_id,
    g.cancel_requested_at.is_not(None).label("cancel_wished"),
    g.cancel_sent_at.is_not(None).label("cancel_sent"),
    func.coalesce(g.deadline_at <= func.now(), false()).label("overdue"),
    func.coalesce(func.extract("epoch", func.now() - g.submitted_at), 0).label("ago"),
    g.polls,
    g.failures,
    g.attention,
    g.attempt,
)

_HELD = (
    select(g.id)
    .where(g.id == _CLAIMED.c.id, g.lease == _CLAIMED.c.lease, g.finished_at.is_(None))
    .order_by(*LOCK_ORDER)
)


@cache
def _count_try(skip_locked: bool) -> ReturningUpdate[Any]:
    locked = _HELD.with_for_update(of=table_of(Generation), skip_locked=skip_locked).cte("locked")
    return (
        update(table_of(Generation))
        .where(g.id == locked.c.id)
        .values(
            tries=func.least(g.tries + 1, MOST_TRIES),
            claimed_by=bindparam("worker_id", type_=BigInteger),
        )
        .returning(*_COLUMNS)
    )


def count_tries(
    conn: Connection,
    claims: Sequence[tuple[uuid.UUID, int]],
    worker_id: int | None,
    *,
    skip_locked: bool,
) -> set[uuid.UUID]:
    """Lock the rows that are still claimed, and increment their delivery count.

    `skip_locked`: without the rows that another transaction is changing.
    """
    given = _parameter(claims, worker_id)
    return {row.id for row in conn.execute(_count_try(skip_locked), given)}


_LOAD = select(*_COLUMNS).where(
    g.id == bindparam("of_id"), g.lease == bindparam("held"), g.finished_at.is_(None)
)


def load(conn: Connection, generation_id: uuid.UUID, lease: int) -> Row | None:
    """The row, if it is still claimed under this lease."""
    r = conn.execute(_LOAD, {"of_id": generation_id, "held": lease}).one_or_none()
    return None if r is None else _row(r)


def _row(r: Any) -> Row:
    return Row(
        r.id,
        r.lease,
        r.status,
        r.request,
        r.content,
        r.estimated_cost,
        r.remote_task_id,
        r.cancel_wished,
        r.cancel_sent,
        r.overdue,
        float(r.ago),
        r.polls,
        r.failures,
        r.attention,
    )


_REFUSED = frozenset({"22", "23", "54"})
"""Classes of SQLSTATE that speak of the data: malformed, against a constraint, too large."""


def refused_as_data(error: DBAPIError) -> bool:
    """Whether the database refused what was written, rather than failing itself."""
    return (getattr(error.orig, "sqlstate", None) or "")[:2] in _REFUSED


def renew(engine: Engine, generation_id: uuid.UUID, lease: int, seconds: float) -> bool:
    """Move the lease's end; False if it was lost."""
    with engine.begin() as conn:
        done = conn.execute(
            update(Generation)
            .where(g.id == generation_id, g.lease == lease, g.finished_at.is_(None))
            .values(due_at=in_seconds(seconds), leased_until=in_seconds(seconds))
        )
    return done.rowcount == 1


def surely(engine: Engine, write: Callable[[Connection], T], *, within: float) -> T:
    """Write what must not be lost, again and again while the database can't be reached.

    An answer that holds a task id is worth waiting for; should it be lost all the same, the
    task list has it. Raises the last error after `within` seconds.
    """
    deadline = time.monotonic() + within
    failures = 0
    while True:
        try:
            with engine.begin() as conn:
                return write(conn)
        except (OperationalError, InterfaceError, PoolTimeout) as error:
            pause = backoff(failures, base=0.1, cap=2.0)
            if time.monotonic() + pause > deadline:
                raise
            failures += 1
            log.warning("a result can't be written, trying again: %s", type(error).__name__)
            time.sleep(pause)


def report(rt: Runtime, error: ApiError) -> Wait | None:
    """Report the answer to a request other than a submit to flow control.

    A rejected key or missing credits open a breaker; throttling slows every request of the fleet.
    Returns what work waits for; None if the answer says nothing about the account.
    """
    if error.disposition is Disposition.HOLD:
        return flow.trip(rt.engine, error, probe_every=rt.settings.probe_every)
    if flow.is_throttling(error):
        return flow.throttled(rt.engine, rt.flow, error, measured=rt.limiter.measured())
    return None


def observation(task: Task) -> Observation:
    """A task of the provider in the words of the lifecycle."""
    return Observation(
        task_id=task.task_id,
        status=task.status,
        seed=task.seed,
        model=task.model,
        resolution=task.resolution,
        ratio=task.ratio,
        duration=task.duration,
        generate_audio=task.generate_audio,
        credit_cost=task.credit_cost,
        error_code=task.error_code,
        error_message=task.error_message,
        video_url=task.video_url,
        last_frame_url=task.last_frame_url,
        created_at=task.created_at,
        updated_at=task.updated_at,
    )
