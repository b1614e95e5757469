"""Keeping what came from the broker and is no request; told once, by its reason, never its body."""

import json
import logging
from collections.abc import Mapping
from typing import Any

from sqlalchemy import insert
from sqlalchemy.exc import SQLAlchemyError

from models.tables import RejectedMessage
from worker.runtime import Runtime, runtime
from worker.settings import SettingsError

log = logging.getLogger(__name__)

MOST_BYTES = 1024 * 1024
"""So much of a body is kept."""


def store(rt: Runtime, reason: str, body: Any, headers: Mapping[str, Any] | None = None) -> None:
    """Write it to `rejected_messages`. Raises what the database raises."""
    log.error("a message was set aside: %s (see the table rejected_messages)", reason)
    raw = body if isinstance(body, bytes) else json.dumps(body, default=str).encode()
    shown = {_plain(str(name)): _plain(str(value))[:500] for name, value in (headers or {}).items()}
    with rt.engine.begin() as conn:
        conn.execute(
            insert(RejectedMessage).values(
                reason=_plain(reason)[:1000], headers=shown or None, body=raw[:MOST_BYTES]
            )
        )


def keep(reason: str, body: Any, headers: Mapping[str, Any] | None = None) -> None:
    """Write it, or say that it is lost: it must never come back to kill the worker again."""
    raw = body if isinstance(body, bytes) else str(body).encode(errors="replace")
    try:
        store(runtime(), reason, raw, headers)
    except (SQLAlchemyError, SettingsError, OSError) as error:
        log.error(  # noqa: TRY400  (the reason counts, not where we stand)
            "a message of %d bytes is lost: %s; it could not be kept: %s",
            len(raw),
            reason[:300],
            type(error).__name__,
        )


def _plain(text: str) -> str:
    """Text that PostgreSQL can hold."""
    return text.replace("\x00", "").encode(errors="replace").decode()
