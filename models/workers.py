"""The workers that are alive, and the release of what dead ones had claimed.

A worker's witness is its database session: it holds an advisory lock for as long as it lives, and
PostgreSQL releases the lock the moment the process or its connection is gone. Where a pooler lends
sessions for a transaction the witness is a heartbeat in the worker's row.

A release raises the fencing token, so a worker that was only cut off finds its claims lost and
stops. What is `submitting` becomes `uncertain`: its POST may be on the wire, and only the protocol
may say what became of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from sqlalchemy import (
    BigInteger,
    Connection,
    Identity,
    Text,
    and_,
    delete,
    func,
    or_,
    select,
    text,
    update,
)
from sqlalchemy.orm import Mapped, mapped_column

from models import transitions
from models.base import Base, Instant, table_of
from models.decisions import EARLY_SCAN
from models.lifecycle import Status
from models.observing.table import Observer
from models.tables import LIVE_SQL, Generation
from models.transitions.core import LOCK_ORDER, in_seconds

if TYPE_CHECKING:
    import psycopg

HEARTBEAT_EVERY = 2.0
"""Seconds between two heartbeats of a worker."""

HEARTBEAT_LOST = 8.0
"""Seconds without a heartbeat after which a worker behind a pooler counts as dead."""

SHOWN_ALIVE = 60.0
"""Seconds since its heartbeat for which a worker counts as alive in metrics."""

_LOCK_CLASS = 0x5EED


class Worker(Base):
    """One worker process, from the start of its dispatcher until it is found dead."""

    __tablename__ = "workers"

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    name: Mapped[str] = mapped_column(Text)
    # Whether its session holds a lock; otherwise its heartbeat is the witness.
    locked: Mapped[bool]
    started_at: Mapped[Instant] = mapped_column(server_default=func.now())
    seen_at: Mapped[Instant] = mapped_column(server_default=func.now())


_w = table_of(Worker)
g = table_of(Generation).c


def register(session: "psycopg.Connection[tuple[int]]", name: str, *, locked: bool) -> int:
    """Register a worker and return its id. `session` must stay open for as long as it lives."""
    with session.transaction():
        row = session.execute(
            "INSERT INTO workers (name, locked) VALUES (%s, %s) RETURNING id", (name, locked)
        ).fetchone()
        assert row is not None
        if locked:
            # Before the row can be seen: without its lock it would count as dead.
            session.execute("SELECT pg_advisory_lock(%s, %s)", (_LOCK_CLASS, _key(row[0])))
    return row[0]


def _key(worker_id: int) -> int:
    """Return the id as the 32 bits that the lock has room for."""
    return (worker_id + 2**31) % 2**32 - 2**31


def heartbeat(conn: Connection, worker_id: int) -> bool:
    """Show that the worker is alive. Returns False if it was taken for dead."""
    done = conn.execute(update(_w).where(_w.c.id == worker_id).values(seen_at=func.now()))
    return done.rowcount == 1


def deregister(conn: Connection, worker_id: int) -> None:
    """Remove a worker that stops in an orderly way; its tasks in progress are finished."""
    conn.execute(delete(_w).where(_w.c.id == worker_id))


@dataclass(frozen=True)
class Dead:
    """A worker that was found dead, and what was released."""

    name: str
    last_seen: datetime
    released: int
    """Generations that another worker can claim at once."""
    uncertain: int
    """Generations whose POST may have been sent."""


_GONE = or_(
    # The lock is free only after its owner's session has ended.
    _w.c.locked
    & func.pg_try_advisory_xact_lock(
        _LOCK_CLASS, text("((workers.id + 2147483648) % 4294967296 - 2147483648)::int")
    ),
    ~_w.c.locked & (_w.c.seen_at < in_seconds(-HEARTBEAT_LOST)),
)


def release_dead(conn: Connection, own_id: int | None) -> list[Dead]:
    """Find dead workers, and release their claims under raised fencing tokens.

    Claims that no worker had begun are released as well: their messages may have died with the
    worker that had fetched them. A message that is alive finds its token raised and is dropped.
    """
    dead = conn.execute(
        select(_w.c.id, _w.c.name, _w.c.seen_at)
        .where(_w.c.id.is_distinct_from(own_id), _GONE)
        .with_for_update(skip_locked=True)
    ).all()
    if not dead:
        return []
    ids = [row.id for row in dead]
    uncertain = _mark_uncertain(conn, ids)
    released = _release(conn, ids)
    # A pass over the task list that it may have been on ends with it.
    observers = table_of(Observer)
    conn.execute(
        update(observers)
        .where(observers.c.ended_at.is_(None), observers.c.held_until > func.now())
        .values(held_until=func.now(), next_at=func.now())
    )
    # A claim whose row another transaction holds is released the next time: the worker stays.
    left = select(g.claimed_by).where(
        text(LIVE_SQL),
        g.claimed_by.in_(ids),
        or_(
            g.status == Status.SUBMITTING,
            and_(g.due_at == g.leased_until, g.due_at > func.now()),
        ),
    )
    conn.execute(delete(_w).where(_w.c.id.in_(ids), _w.c.id.not_in(left)))
    first, *others = dead
    return [
        Dead(first.name, first.seen_at, released, uncertain),
        *(Dead(row.name, row.seen_at, 0, 0) for row in others),
    ]


def _release(conn: Connection, ids: Sequence[int]) -> int:
    theirs = (
        select(g.id)
        .where(
            text(LIVE_SQL),
            # Due when the claim ends, so nothing else has decided when it is due.
            g.due_at == g.leased_until,
            or_(g.claimed_by.in_(ids), g.claimed_by.is_(None)),
        )
        .order_by(*LOCK_ORDER)
        .with_for_update(skip_locked=True)
        .cte("theirs")
    )
    done = conn.execute(
        update(Generation)
        .where(g.id == theirs.c.id)
        .values(lease=g.lease + 1, due_at=func.now(), leased_until=None)
        .execution_options(synchronize_session=False)
    )
    return done.rowcount


def _mark_uncertain(conn: Connection, ids: Sequence[int]) -> int:
    rows = conn.execute(
        select(g.id, g.attempt)
        .where(g.status == Status.SUBMITTING, g.claimed_by.in_(ids))
        .order_by(*LOCK_ORDER)
        .with_for_update(skip_locked=True)
    ).all()
    moved = [
        transitions.doubt(
            conn,
            row.id,
            row.attempt,
            why="the worker that submitted it is gone",
            search_in=EARLY_SCAN,
        )
        for row in rows
    ]
    return sum(one is not None for one in moved)


def alive(conn: Connection) -> int:
    """Return how many workers have shown a heartbeat lately."""
    return conn.execute(
        select(func.count()).where(_w.c.seen_at > in_seconds(-SHOWN_ALIVE))
    ).scalar_one()
