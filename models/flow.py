"""Flow: how many generations were accepted, submitted and ended of late, and with which errors.

Counted from the latest lines of the history, which their ids find: a look costs the same however
much there is.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import Connection, text

from models.lifecycle import TERMINAL, Event, Status

SPAN = 3600.0
"""Seconds that are looked back on."""

LINES = 100_000
"""So many lines of the history are read at most: with more in the span, it gets shorter."""

ACCEPTED = "accepted"
SUBMITTED = "submitted"
KINDS = (ACCEPTED, SUBMITTED, *(str(status) for status in Status if status in TERMINAL))
"""What is counted."""


@dataclass(frozen=True)
class Flow:
    """What happened of late."""

    span: float
    """Seconds that `counts` and `errors` look back on."""
    counts: Mapping[str, int]
    """By `KINDS`, in the span."""
    minute: Mapping[str, int]
    """The same, of the last minute."""
    errors: Mapping[str, int]
    """How many ended with each `error_code` in the span, the most frequent first."""

    def per_minute(self, kind: str) -> float:
        """On average over the span, of a minute at least."""
        return self.counts.get(kind, 0) / max(1.0, self.span / 60)


_ENDS = ", ".join(repr(str(status)) for status in sorted(TERMINAL))
_LATELY = f"""
    lately AS MATERIALIZED (
        SELECT generation_id, event, to_status, at FROM generation_events
        WHERE id > (SELECT coalesce(max(id), 0) FROM generation_events) - {LINES}
          AND at > now() - make_interval(secs => {SPAN})
    )
"""  # noqa: S608  (built from constants of this package)

_COUNTS = text(
    f"""
    WITH {_LATELY}
    SELECT CASE WHEN event = '{Event.ACCEPT}' THEN '{ACCEPTED}'
                WHEN event IN ('{Event.SUBMIT}', '{Event.ADOPT}') THEN '{SUBMITTED}'
                WHEN to_status IN ({_ENDS}) THEN to_status END AS kind,
           count(*) AS number,
           count(*) FILTER (WHERE at > now() - interval '1 min') AS minute,
           extract(epoch FROM now() - min(at))::float8 AS oldest
    FROM lately GROUP BY 1
    """  # noqa: S608
)

_ERRORS = text(
    f"""
    WITH {_LATELY}
    SELECT g.error_code, count(*) AS number
    FROM lately JOIN generations g ON g.id = generation_id
    WHERE to_status IN ({_ENDS}) AND g.error_code IS NOT NULL
    GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT 20
    """  # noqa: S608
)


def read(conn: Connection) -> Flow:
    """The flow of the last hour, or of what the latest lines of the history reach back to."""
    rows = conn.execute(_COUNTS).all()
    errors = conn.execute(_ERRORS)
    return Flow(
        min(SPAN, max((row.oldest for row in rows), default=0.0)),
        {row.kind: row.number for row in rows if row.kind},
        {row.kind: row.minute for row in rows if row.kind and row.minute},
        {row.error_code: row.number for row in errors},
    )
