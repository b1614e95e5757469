"""Writes what a process has counted to the totals, every so many seconds and at its end.

Upserts of a few rows: a process that is killed takes its last seconds of counts with it, and
nothing else.
"""

import logging
import threading

from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from models.metrics import totals
from worker.metrics.tally import Tally

log = logging.getLogger(__name__)


class Reporter:
    """A thread that writes a tally away."""

    def __init__(self, engine: Engine, tally: Tally, *, every: float) -> None:
        self._engine, self._tally, self._every = engine, tally, every
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="reporter", daemon=True)

    def start(self) -> None:
        """Begin; does nothing but wait, most of the time."""
        self._thread.start()

    def stop(self) -> None:
        """Write the last of it and end."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=5)

    def write(self) -> bool:
        """Write what there is. False if that failed: it is kept for the next time."""
        samples = self._tally.take()
        if not samples:
            return True
        try:
            with self._engine.begin() as conn:
                totals.add(conn, samples)
        except SQLAlchemyError as error:
            self._tally.give_back(samples)
            log.debug("the counts of this process wait: %s", type(error).__name__)
            return False
        return True

    def _run(self) -> None:
        while not self._stop.wait(self._every):
            self.write()
        self.write()
