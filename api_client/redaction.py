"""Keep secrets out of text: presigned and signed URLs are as good as keys while they live.

`redact` drops the query, the fragment and any user name of every URL in a text. It is used for
reprs, for messages of exceptions and for what the HTTP library logs.
"""

from __future__ import annotations

import logging
import re
from typing import Any

# What may hold an address: a run of text without spaces. Cut out by a pattern that can't
# backtrack, since prompts of any length pass through here.
_WORD = re.compile(r"""[^\s"<>]+""")
_QUERY = re.compile(r"[?#]")
_TELLING = ("?", "#", "://")


def redact(text: str) -> str:
    """`https://h/p?token=x` becomes `https://h/p?…`; text without URLs is returned as it is.

    The path-and-query form in which HTTP libraries print addresses (`/p?token=x`) counts as well.
    """
    if not any(mark in text for mark in _TELLING):
        return text
    return _WORD.sub(_cut, text)


def _cut(match: re.Match[str]) -> str:
    word = match.group()
    query = _QUERY.search(word)
    if query and query.end() < len(word) and "/" in word[: query.start()]:
        word = f"{word[: query.start()]}?…"
    scheme, separator, rest = word.partition("://")
    host, slash, path = rest.partition("/")
    if "@" in host:
        word = f"{scheme}{separator}…@{host.rpartition('@')[2]}{slash}{path}"
    return word


def redact_all(value: Any) -> Any:
    """The same for every string inside dicts, lists and tuples (a copy; keys are left alone)."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, dict):
        return {key: redact_all(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(redact_all(item) for item in value)
    return value


def shown(value: Any, limit: int = 80) -> str:
    """A value for a message: its repr, without queries, and short."""
    try:
        text = repr(redact_all(value))
    except Exception:  # noqa: BLE001 - anybody's __repr__, or a number too long to be written
        text = f"something of type {type(value).__name__}"
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


class QueryFilter(logging.Filter):
    """Drops queries from log records, as long as `active()` says that they are ours."""

    def __init__(self, active: Any) -> None:
        super().__init__()
        self._active = active

    def filter(self, record: logging.LogRecord) -> bool:
        if self._active():
            record.msg, record.args = redact(record.getMessage()), None
            # A foreign traceback would carry the URL in its message.
            record.exc_info = record.exc_text = None
        return True
