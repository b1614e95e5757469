"""Whether a process gets on, told by a file's age: asking costs a container runtime a `stat`.

A worker is ill when its dispatcher stands still, or all its threads do, though database and broker
answer. An outage of theirs makes nobody ill: started again, a worker could do no more.
"""

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import psycopg

from models.database import dsn
from worker import broker_access

log = logging.getLogger(__name__)

FILE = "SEEDANCE_HEARTBEAT_FILE"

STILL = 30.0
"""Seconds after which a file that nobody touched is looked into; a statement ends in as many."""

STUCK = 1800.0
"""Seconds after which a task counts as stuck: a large upload or download may well take minutes."""

_PATIENCE = 5

busy: dict[int, float] = {}
"""Since when (`time.monotonic()`) each thread of the pool is at its task."""


def task_begins() -> None:
    """This thread is at a task from now on."""
    busy[threading.get_ident()] = time.monotonic()


def task_ends() -> None:
    """This thread is free."""
    busy.pop(threading.get_ident(), None)


def given_file() -> Path | None:
    """The file that the environment asks for."""
    named = os.environ.get(FILE)
    return Path(named) if named else None


def touch(file: Path | None) -> None:
    """Say that the process gets on. A file that can't be written makes nobody ill but itself."""
    if file is not None:
        with contextlib.suppress(OSError):
            file.touch()


def forget(file: Path | None) -> None:
    """The process begins: what one before it said in the same container is no longer true."""
    if file is not None:
        with contextlib.suppress(OSError):
            file.unlink()


def all_stuck(threads: int, since: Mapping[int, float], now: float) -> bool:
    """Whether every thread of a pool has been at the same task for too long."""
    began = list(since.values())
    return len(began) >= threads and all(now - one > STUCK for one in began)


class Heartbeat:
    """A worker's: the dispatcher beats; where it doesn't, an outage may be the reason."""

    def __init__(
        self, file: Path, threads: int, outage: Callable[[], bool], *, still: float = STILL
    ) -> None:
        self._file = file
        self._threads = threads
        self._outage = outage
        self._still = still
        self._last: float | None = None
        self._ill = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="heartbeat", daemon=True)

    def start(self) -> None:
        """Begin to watch for outages."""
        self._thread.start()

    def stop(self) -> None:
        """Watch no more."""
        self._stop.set()

    def beat(self) -> None:
        """The dispatcher has come round."""
        if not all_stuck(self._threads, busy, time.monotonic()):
            self._touch()

    def _touch(self) -> None:
        self._last, self._ill = time.monotonic(), False
        touch(self._file)

    def _watch(self) -> None:
        while not self._stop.wait(self._still / 3):
            if self._last is None or time.monotonic() - self._last < self._still:
                continue
            if self._outage():
                self._touch()
            elif not self._ill:
                self._ill = True
                log.error("this worker stands still, though database and broker answer")


def outage(database_url: str, broker_url: str) -> bool:
    """Whether database or broker is away, or frozen."""
    return not (_database_answers(database_url) and _broker_answers(broker_url))


def _database_answers(url: str) -> bool:
    try:
        # A connection of its own: those of the pool may be what hangs.
        with psycopg.connect(
            dsn(url), connect_timeout=_PATIENCE, application_name="seedance-health"
        ):
            return True
    except psycopg.Error:
        return False


def _broker_answers(url: str) -> bool:
    try:
        broker_access.reach(url, patience=_PATIENCE)
    except Exception:  # noqa: BLE001  (brokers raise what they like)
        return False
    return True
