"""Flow: how many generations were accepted, submitted and ended of late, and with which errors.

Counted from the latest lines of the history, which their ids find: a look costs the same however
much there is.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import Connection, text

from models.lifecycle import TERMINAL, Event, Status

SPAN = 3600.0
"""Seconds that are looked back on."""

LINES = 50_000
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
_COUNTS = text(
    f"""
    WITH lately AS MATERIALIZED (
        SELECT generation_id, event, to_status, at FROM generation_events
        WHERE id > (SELECT coalesce(max(id), 0) FROM generation_events) - {LINES}
          AND at > now() - make_interval(secs => {SPAN})
    )
    SELECT CASE WHEN event = '{Event.ACCEPT}' THEN '{ACCEPTED}'
                WHEN event IN ('{Event.SUBMIT}', '{Event.ADOPT}') THEN '{SUBMITTED}'
                WHEN to_status IN ({_ENDS}) THEN to_status END AS kind,
           CASE WHEN to_status IN ({_ENDS}) AND to_status <> '{Status.COMPLETED}'
                THEN (SELECT error_code FROM generations WHERE id = generation_id) END AS code,
           count(*) AS number,
           count(*) FILTER (WHERE at > now() - interval '1 min') AS minute,
           extract(epoch FROM now() - min(at))::float8 AS oldest
    FROM lately GROUP BY 1, 2
    """  # noqa: S608  (built from constants of this package)
)


def read(conn: Connection) -> Flow:
    """The flow of the last hour, or of what the latest lines of the history reach back to."""
    rows = conn.execute(_COUNTS).all()
    counts, minute, errors = Counter[str](), Counter[str](), Counter[str]()
    for row in rows:
        if row.kind is not None:
            counts[row.kind] += row.number
            minute[row.kind] += row.minute
        if row.code is not None:
            errors[row.code] += row.number
    span = min(SPAN, max((row.oldest for row in rows), default=0.0))
    return Flow(span, counts, +minute, dict(errors.most_common()))
