"""How long tasks of a kind usually take: when a first look at one pays.

A process collects what it saw end, adds it to the table now and then, and reads the table back.
What is lost with a process is a few samples.
"""

import logging
import threading
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Engine, select, text
from sqlalchemy.exc import SQLAlchemyError

from models.base import table_of
from models.observing.table import UsualTime

log = logging.getLogger(__name__)

Kind = tuple[str, str, int]
"""Model, resolution, duration in seconds."""

KEPT = 100
"""The latest so many of a kind count."""

FEWEST = 5
"""With fewer samples nothing is known."""

EARLY = 0.1
"""So large a share of tasks is seen to end by the first look; then looks come with polling."""

A_LITTLE_EARLIER = 0.95
"""What is measured includes the wait for the look itself: without this it would creep up."""

FRESH_FOR = 30.0
"""Seconds between two exchanges with the table."""

LONGEST = 900.0
"""Seconds until the first look, at most, whatever was learned."""

_ADD = text(
    """
    INSERT INTO usual_times AS u (model, resolution, duration, recent)
    VALUES (:model, :resolution, :duration, CAST(:recent AS double precision[]))
    ON CONFLICT (model, resolution, duration) DO UPDATE
    SET recent = (excluded.recent || u.recent)[1:100], updated_at = now()
    """
)


def kind_of(request: Mapping[str, Any]) -> Kind | None:
    """The kind of a stored request; None for one without the three fields."""
    try:
        return str(request["model"]), str(request["resolution"]), int(request["duration"])
    except (KeyError, TypeError, ValueError):
        return None


def first_look(recent: Sequence[float], *, otherwise: float) -> float:
    """Seconds from the submission to the first look, given how long the latest tasks took.

    `otherwise`: while too little is known, and the soonest.
    """
    if len(recent) < FEWEST:
        return otherwise
    early = sorted(recent)[int(EARLY * len(recent))]
    return min(LONGEST, max(otherwise, early * A_LITTLE_EARLIER))


class UsualTimes:
    """One process's share: what it saw, and what all have seen. Safe for threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._exchanging = threading.Lock()
        self._seen: dict[Kind, list[float]] = defaultdict(list)
        self._known: dict[Kind, list[float]] = {}
        self._exchanged = float("-inf")

    def note(self, kind: Kind | None, seconds: float) -> None:
        """A task of this kind was seen completed so long after its submission."""
        if kind is not None and seconds >= 0:
            with self._lock:
                self._seen[kind] = [*self._seen[kind][1 - KEPT :], seconds]

    def first_look(self, kind: Kind | None, *, otherwise: float) -> float:
        """Seconds from the submission of such a request to the first look."""
        known = self._known.get(kind, []) if kind is not None else []
        return first_look(known, otherwise=otherwise)

    def exchange(self, engine: Engine, *, every: float = FRESH_FOR) -> None:
        """Add to the table and read it, every so many seconds, by one thread at a time.

        Never raises: without it looks come by polling alone.
        """
        if time.monotonic() - self._exchanged < every:
            return
        if not self._exchanging.acquire(blocking=False):
            return
        try:
            self._exchanged = time.monotonic()
            with self._lock:
                seen, self._seen = self._seen, defaultdict(list)
            with engine.begin() as conn:
                # One order for all: two processes can't deadlock.
                for (model, resolution, duration), recent in sorted(seen.items()):
                    conn.execute(
                        _ADD,
                        {
                            "model": model,
                            "resolution": resolution,
                            "duration": duration,
                            "recent": recent[::-1],
                        },
                    )
                u = table_of(UsualTime).c
                rows = conn.execute(select(u.model, u.resolution, u.duration, u.recent))
                known = {(r.model, r.resolution, r.duration): list(r.recent) for r in rows}
            self._known = known
        except SQLAlchemyError as error:
            log.info("usual times can't be exchanged: %s", type(error).__name__)
        finally:
            self._exchanging.release()
