"""One listener for all that wait in a process: told of transitions, and reading now and then.

A connection of its own LISTENs. What is never told, because the listener was away, a row was locked
or a proxy passes no notifications on, is found by reading all that is waited for in one query.
"""

import contextlib
import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence

import psycopg
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from models import telling
from models.database import direct_dsn
from models.schedule import backoff

log = logging.getLogger(__name__)

ASKED = 60.0
"""For so many seconds a row is asked to tell; renewed as long as somebody waits."""

LOOK_EVERY = 2.0
"""Seconds between two readings of all that is waited for, should nobody tell."""

_TURN = 0.5
_LINGER = 5.0
_START = 5.0

Poke = Callable[[], None]


class Follower:
    """Pokes those who wait for a generation when it has changed. Its thread runs while any do."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._lock = threading.Lock()
        self._pokes: dict[uuid.UUID, list[Poke]] = {}
        self._seen: dict[uuid.UUID, telling.State] = {}
        self._thread: threading.Thread | None = None
        self._started = threading.Event()

    @contextlib.contextmanager
    def following(self, ids: Sequence[uuid.UUID], poke: Poke) -> Iterator[None]:
        """Call `poke`, from another thread, whenever one of the generations may have changed.

        Read after entering: what changed before is not told.
        """
        self.add(ids, poke)
        try:
            self.ask(ids)
            yield
        finally:
            self.remove(ids, poke)

    def ask(self, ids: Sequence[uuid.UUID]) -> None:
        """Ask to be told, once the listener listens: what the caller then reads is not missed."""
        self._started.wait(_START)
        with self._engine.begin() as conn:
            telling.wait_for(conn, ids, seconds=ASKED)

    def add(self, ids: Iterable[uuid.UUID], poke: Poke) -> None:
        """Begin to poke. Blocks for no more than a moment."""
        with self._lock:
            for one in ids:
                self._pokes.setdefault(one, []).append(poke)
            if self._thread is None:
                self._started.clear()
                self._thread = threading.Thread(target=self._run, name="follower", daemon=True)
                self._thread.start()

    def remove(self, ids: Iterable[uuid.UUID], poke: Poke) -> None:
        """Poke no more. Blocks for no more than a moment."""
        with self._lock:
            for one in ids:
                pokes = self._pokes.get(one, [])
                if poke in pokes:
                    pokes.remove(poke)
                if not pokes:
                    self._pokes.pop(one, None)
                    self._seen.pop(one, None)

    def _poke(self, ids: Iterable[uuid.UUID]) -> None:
        with self._lock:
            pokes = [poke for one in ids for poke in self._pokes.get(one, [])]
        for poke in pokes:
            poke()

    def _wanted(self) -> list[uuid.UUID]:
        with self._lock:
            return list(self._pokes)

    def _over(self) -> bool:
        """Whether the thread may end, as nobody waits; then the next who does starts another."""
        with self._lock:
            if not self._pokes:
                self._thread = None
            return not self._pokes

    def _run(self) -> None:
        failures = 0
        while True:
            try:
                with self._listening() as conn:
                    failures = 0
                    if self._listen(conn):
                        return
            except (psycopg.Error, SQLAlchemyError, OSError) as error:
                failures += 1
                log.warning("waiting goes on by reading: %s", type(error).__name__)
            self._started.set()
            self._poke(self._wanted())  # whoever reads now sees for himself what is wrong
            if self._over():
                return
            time.sleep(backoff(failures, base=0.2, cap=LOOK_EVERY))

    @contextlib.contextmanager
    def _listening(self) -> Iterator[psycopg.Connection]:
        with psycopg.connect(
            direct_dsn(self._engine.url),
            autocommit=True,
            connect_timeout=5,
            application_name="seedance-follower",
        ) as conn:
            conn.execute(f"LISTEN {telling.CHANNEL}")
            yield conn

    def _listen(self, conn: psycopg.Connection) -> bool:
        """Hand on what is told, and read in between. True once nobody waits any more."""
        self._started.set()
        looked = idle_since = time.monotonic()
        while True:
            for told in conn.notifies(timeout=_TURN, stop_after=1):
                with contextlib.suppress(ValueError):
                    self._poke([uuid.UUID(told.payload)])
            now = time.monotonic()
            if self._wanted():
                idle_since = now
            elif now - idle_since > _LINGER and self._over():
                return True
            if now - looked >= LOOK_EVERY:
                looked = now
                self._look()

    def _look(self) -> None:
        ids = self._wanted()
        if not ids:
            return
        with self._engine.begin() as conn:
            telling.wait_for(conn, ids, seconds=ASKED)
            found = telling.states(conn, ids)
        with self._lock:
            changed = [one for one in found if self._seen.get(one) != found[one]]
            self._seen = found
        self._poke(changed)
