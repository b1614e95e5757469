"""Whether what the service stands on is there. No address and no password is in what it says."""

import threading
import time
from collections.abc import Callable

from sqlalchemy import Engine, text

from worker import broker_access, migrate

_REMEMBER = 1.0
_PATIENCE = 3


class Readiness:
    """Database, migrations and broker, asked at most once a second however often it is wanted."""

    def __init__(self, engine: Engine, broker_url: str) -> None:
        self._checks: dict[str, Callable[[], str | None]] = {
            "database": lambda: _database(engine),
            "migrations": lambda: _migrations(engine),
            "broker": lambda: _broker(broker_url),
        }
        self._lock = threading.Lock()
        self._asked = float("-inf")
        self._known: dict[str, str] = {}

    def look(self) -> dict[str, str]:
        """What is wrong with each part, or `ok`."""
        with self._lock:
            if time.monotonic() - self._asked >= _REMEMBER:
                self._known = {name: _said(check) for name, check in self._checks.items()}
                self._asked = time.monotonic()
            return dict(self._known)


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
