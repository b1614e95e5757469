"""What a callback's body may tell. Its form is undocumented, so all of it is a guess and a hint."""

import json
import re
from typing import Any

MOST_BYTES = 64 * 1024
"""What is read of a body. The hint is the call itself, so a larger one counts all the same."""

_NAMES = ("task_id", "taskId", "id")
_INSIDE = ("result", "data", "task")
_TASK_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,199}")
_MOST_DIGITS = 18


def task_id(body: bytes) -> str | None:
    """The id of the remote task that a body seems to speak of; None if it says none."""
    try:
        read = json.loads(body)
    except (ValueError, RecursionError):
        return None
    if not isinstance(read, dict):
        return None
    inside = (read.get(name) for name in _INSIDE)
    for place in (read, *(one for one in inside if isinstance(one, dict))):
        for name in _NAMES:
            if (found := _as_id(place.get(name))) is not None:
                return found
    return None


def _as_id(value: Any) -> str | None:
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value) if abs(value) < 10**_MOST_DIGITS else ""
    return value if isinstance(value, str) and _TASK_ID.fullmatch(value) else None
