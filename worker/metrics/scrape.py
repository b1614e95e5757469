"""Answers a scrape: at most one reading at a time, at most one a second, never a hang."""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from hmac import compare_digest
from typing import get_args

from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from api_client.request import ModelName
from models.metrics import present, totals
from models.metrics.totals import Classes
from worker.metrics.collector import exposition
from worker.settings import Settings
from worker.upkeep.intervals import expected_within

log = logging.getLogger(__name__)

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

PATIENCE = 8.0
"""Seconds that a scrape waits for a reading; Prometheus gives up after ten by default."""

STATEMENT = "5s"
REMEMBER = 1.0
"""Seconds for which a reading serves further scrapes."""


@dataclass(frozen=True)
class Answer:
    """An HTTP answer: a status and a text."""

    status: int
    body: bytes


def classes(settings: Settings) -> Classes:
    """What labels may say under these settings."""
    return Classes(get_args(ModelName), dict(settings.metrics_tenants))


class BehindError(Exception):
    """So much is to be counted that it takes several scrapes: nobody did for long."""


def catch_up(engine: Engine, which: Classes, *, within: float, most: int = totals.MOST) -> None:
    """Count what is new. Raises BehindError with more to do after so many seconds."""
    deadline = time.monotonic() + within
    while True:
        with engine.begin() as conn:
            conn.exec_driver_sql(f"SET LOCAL statement_timeout = '{STATEMENT}'")
            more = totals.fold(conn, which, most=most)
        if not more:
            return
        if time.monotonic() > deadline:
            raise BehindError


def collect(engine: Engine, settings: Settings) -> bytes:
    """Count what is new, then read all as of one moment. Raises SQLAlchemyError, BehindError."""
    which = classes(settings)
    started = time.monotonic()
    catch_up(engine, which, within=PATIENCE / 2)
    with engine.connect().execution_options(isolation_level="REPEATABLE READ") as conn:
        conn.exec_driver_sql(f"SET LOCAL statement_timeout = '{STATEMENT}'")
        counted = totals.read(conn, which)
        state = present.read(conn, which)
    within = expected_within(settings)
    seconds = time.monotonic() - started
    return exposition(counted, state, expected_within=within, seconds=seconds)


class Scrapes:
    """Serves scrapes, whatever state the database is in."""

    def __init__(
        self, read: Callable[[], bytes], *, patience: float = PATIENCE, remember: float = REMEMBER
    ) -> None:
        self._read, self._patience, self._remember = read, patience, remember
        self._changed = threading.Condition()
        self._reading = False
        self._known: list[Answer] = []
        """The latest answer; empty while one is awaited."""
        self._until = 0.0

    def answer(self) -> Answer:
        """The figures; 503 where they can't be had in time."""
        deadline = time.monotonic() + self._patience
        with self._changed:
            if time.monotonic() >= self._until:
                self._known.clear()
            if not self._known and not self._reading:
                self._reading = True
                threading.Thread(target=self._run, name="scrape", daemon=True).start()
            while not self._known:
                left = deadline - time.monotonic()
                if left <= 0:
                    return Answer(503, b"the database does not answer in time\n")
                self._changed.wait(left)
            return self._known[0]

    def _run(self) -> None:
        answer = Answer(503, b"the figures can't be read\n")
        try:
            answer = Answer(200, self._read())
        except SQLAlchemyError as error:
            kind = type(error).__name__
            log.warning("the figures can't be read: %s", kind)
            answer = Answer(503, f"the database can't be read: {kind}\n".encode())
        except BehindError:
            answer = Answer(503, b"history is still being counted, as nobody has for long\n")
        finally:
            with self._changed:
                self._known[:], self._reading = [answer], False
                self._until = time.monotonic() + self._remember
                self._changed.notify_all()


def scrapes(settings: Settings, engine: Engine) -> Scrapes:
    """Scrapes of this database."""
    return Scrapes(lambda: collect(engine, settings))


def bears(authorization: str | None, token: str) -> bool:
    """Whether a request's `Authorization` header has the token."""
    kind, _, given = (authorization or "").partition(" ")
    return kind.lower() == "bearer" and compare_digest(given.strip().encode(), token.encode())
