"""What a transition puts into the outbox, in its own transaction.

A producer's `notify` stands in the row: `{"on": "end" | "change", "webhook": address, "task": name,
"queue": name}`. The move says of each row whether anybody wants to be told; where nobody does, no
statement is sent.
"""

import uuid
from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, case, text

from models.base import table_of
from models.lifecycle import TERMINAL, Status
from models.tables import Generation

g = table_of(Generation).c


def wanted(target: Status) -> ColumnElement[bool]:
    """Whether a generation's producer wants to be told of a move to `target`; may be null."""
    if target in TERMINAL:
        return g.notify.is_not(None)
    on: ColumnElement[Any] = g.notify["on"].astext
    return on == "change"


def numbered(target: Status) -> ColumnElement[int]:
    """What `generations.notified` is after a move to `target`.

    Counted in the row, whose lock lets one transition at a time by: so numbers have no gaps and
    no doubles.
    """
    return case((wanted(target), g.notified + 1), else_=g.notified)


# The receiver is what fails as one: a server (scheme, host, port), or a queue.
_WRITE = text(
    """
    INSERT INTO notices (generation_id, target, sequence, type, receiver, data)
    SELECT g.id, way.target, g.notified, 'generation.' || g.status, way.receiver,
           jsonb_build_object('status', g.status,
                              -- as text: a number in JSON is read as a float
                              'credit_cost', CAST(g.credit_cost AS text),
                              'error_code', g.error_code, 'error_message', g.error_message,
                              'has_video', g.video_url IS NOT NULL)
    FROM generations g CROSS JOIN LATERAL (VALUES
        ('webhook', lower(substring(g.notify ->> 'webhook' from '^[^:]+://[^/?#]+'))),
        ('task', 'queue:' || (g.notify ->> 'queue'))
    ) AS way (target, receiver)
    WHERE g.id = ANY(:ids) AND g.notify -> way.target IS NOT NULL
    """
)


def write(conn: Connection, ids: Sequence[uuid.UUID]) -> None:
    """Put out a notice of what these generations have just become, to each of their targets.

    In the transaction that moved them.
    """
    if ids:
        conn.execute(_WRITE, {"ids": list(ids)})
