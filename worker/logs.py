"""What a process says while it works: one readable line for each event, and no secrets in it.

The API key, passwords, the queries of URLs and the secrets of callbacks never come through, whoever
logs them: they are cut from the finished line, traceback included.
"""

import logging
import os
import sys
import time
from collections.abc import Iterable
from typing import Any, TextIO

from api_client import redact
from worker.callback_address import hidden

_FORMAT = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"
_SECRETS = ("SEEDANCE_API_KEY", "SEEDANCE_WEBHOOK_SECRETS", "FLOWER_BASIC_AUTH")
_SHORTEST_SECRET = 6

# A line for every message that comes and every task that ends says nothing that the rows don't.
_CHATTY = ("celery.worker.strategy", "celery.app.trace", "alembic.runtime.migration")


class RedactingFormatter(logging.Formatter):
    """Readable lines in UTC, with secrets cut out."""

    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03dZ"

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        super().__init__(_FORMAT)
        self.converter = time.gmtime
        self._secrets = sorted(
            {s for s in secrets if len(s) >= _SHORTEST_SECRET}, key=len, reverse=True
        )

    def format(self, record: logging.LogRecord) -> str:
        """The line, or lines, of a record."""
        text = super().format(record)
        for secret in self._secrets:
            text = text.replace(secret, "…")
        return hidden(redact(text))


def configure(level: int | str = logging.INFO, *, stream: TextIO | None = None) -> None:
    """Make this process's logging readable; what was set up before is replaced."""
    handler = logging.StreamHandler(stream or sys.stderr)
    values = [os.environ.get(name, "") for name in _SECRETS]
    # Several may stand in one variable.
    handler.setFormatter(RedactingFormatter(word for value in values for word in value.split()))
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level)
    quiet = logging.WARNING if root.getEffectiveLevel() > logging.DEBUG else logging.NOTSET
    for name in _CHATTY:
        logging.getLogger(name).setLevel(quiet)


def configure_celery(loglevel: int | str | None = None, **_: Any) -> None:
    """Celery's signal `setup_logging`: connected, it leaves logging to us."""
    configure(logging.INFO if loglevel is None else loglevel)
