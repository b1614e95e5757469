"""Telling those who wait: a NOTIFY with each transition of a generation that somebody waits for.

Only then. PostgreSQL lets one transaction at a time commit with a notification, to the end of its
write to disk: with one for every transition a fleet would commit in single file. So whoever waits
says so in the row, for a while, and the rows of nobody cost nothing.
"""

import uuid
from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import Connection, or_, select, update

from models.base import table_of
from models.tables import Generation
from models.transitions.core import MOVED, in_seconds

g = table_of(Generation).c

CHANNEL = MOVED


def wait_for(conn: Connection, ids: Sequence[uuid.UUID], *, seconds: float) -> None:
    """Ask to be told of these generations' transitions, for so long; ended ones tell nothing.

    A row that is being changed just now is left out: asked again later, and read meanwhile.
    """
    asked = (
        select(g.id)
        .where(
            g.id.in_(ids),
            g.finished_at.is_(None),
            or_(g.waited_until.is_(None), g.waited_until < in_seconds(seconds / 2)),
        )
        .order_by(g.id)
        .with_for_update(skip_locked=True)
        .cte("asked")
    )
    conn.execute(
        update(Generation).where(g.id == asked.c.id).values(waited_until=in_seconds(seconds))
    )


State = tuple[Any, ...]


def states(conn: Connection, ids: Iterable[uuid.UUID]) -> dict[uuid.UUID, State]:
    """Something for each generation that is another after each change that a waiter may see."""
    rows = conn.execute(
        select(
            g.id,
            g.status,
            g.remote_status,
            g.attempt,
            g.attention,
            g.cancel_requested_at,
            g.cancel_sent_at,
        ).where(g.id.in_(list(ids)))
    )
    return {row.id: tuple(row)[1:] for row in rows}
