"""Whether what the service stands on is there. No address and no password is in what it says."""

import threading
import time
from collections.abc import Callable

from sqlalchemy import Engine, text

from worker import broker_access, migrate

_REMEMBER = 1.0
_PATIENCE = 3
WITHIN = 8.0
"""Seconds until what has not answered is said to hang."""


class Readiness:
    """Database, migrations and broker, asked at most once a second however often it is wanted."""

    def __init__(self, engine: Engine, broker_url: str, *, within: float = WITHIN) -> None:
        self._within = within
        self._parts = {
            "database": _Part(lambda: _database(engine)),
            "migrations": _Part(lambda: _migrations(engine)),
            "broker": _Part(lambda: _broker(broker_url)),
        }

    def look(self) -> dict[str, str]:
        """What is wrong with each part, or `ok`. What hangs is said to, and holds up nobody."""
        until = time.monotonic() + self._within
        for part in self._parts.values():
            part.ask()
        return {name: part.said(until) for name, part in self._parts.items()}


class _Part:
    """One of them, asked by one thread at a time, however long that hangs."""

    def __init__(self, check: Callable[[], str | None]) -> None:
        self._check = check
        self._changed = threading.Condition()
        self._asking = False
        self._asked = float("-inf")
        self._known = ""

    def ask(self) -> None:
        with self._changed:
            if self._asking or time.monotonic() - self._asked < _REMEMBER:
                return
            self._asking = True
        threading.Thread(target=self._ask, name="readiness", daemon=True).start()

    def said(self, until: float) -> str:
        with self._changed:
            answered = self._changed.wait_for(
                lambda: not self._asking, max(0.0, until - time.monotonic())
            )
            return self._known if answered else "does not answer in time"

    def _ask(self) -> None:
        known = _said(self._check)
        with self._changed:
            self._known, self._asking, self._asked = known, False, time.monotonic()
            self._changed.notify_all()


def _said(check: Callable[[], str | None]) -> str:
    try:
        return check() or "ok"
    except Exception as error:  # noqa: BLE001  (whatever it is, that part is not ready)
        # Its name alone: the text of such errors has addresses in it.
        return f"not reached ({type(error).__name__})"


def _database(engine: Engine) -> str | None:
    with engine.connect() as conn:
        conn.execute(text("SELECT 1"))
    return None


def _migrations(engine: Engine) -> str | None:
    found = migrate.revision(engine)
    # A newer database is one of a deployment under way.
    if found.up_to_date or found.newer:
        return None
    return f"at {found.current or 'nothing'}, has to be at {found.head}: run `seedance migrate`"


def _broker(url: str) -> str | None:
    broker_access.reach(url, patience=_PATIENCE)
    return None
