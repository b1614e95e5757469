"""The provider's envelope: `{"code": "200", "message": "Success", "result": {…}}`.

An error may come as HTTP 200 with another code (section "HTTP Status Mapping": most do), and a
success may come without a usable result. So the code is always looked at, as text.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final

_LONGEST_MESSAGE: Final = 500
_LONGEST_CODE: Final = 64


@dataclass(frozen=True, slots=True)
class Envelope:
    """What an answer's body says. `code` is "" where it isn't the provider's envelope."""

    code: str = ""
    message: str = ""
    result: Any = None
    task_id: str | None = None
    """A task id, wherever it stands: beside an error as well."""


def loads(text: str | bytes) -> Any:
    """JSON with exact numbers: credits never pass through a float. Raises ValueError."""
    try:
        return json.loads(text, parse_float=Decimal, parse_constant=_refuse)
    except (RecursionError, ArithmeticError) as error:
        raise ValueError(f"unreadable JSON: {type(error).__name__}") from None


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def decode(body: bytes) -> Envelope:
    """Never raises: what can't be read is an answer without an envelope."""
    try:
        parsed = loads(body)
    except ValueError:
        return Envelope()
    if not isinstance(parsed, dict):
        return Envelope()
    code = parsed.get("code")
    if isinstance(code, bool) or not isinstance(code, str | int):
        return Envelope(task_id=_task_id(parsed))
    message = parsed.get("message")
    return Envelope(
        code=_text(code)[:_LONGEST_CODE],
        message=message[:_LONGEST_MESSAGE] if isinstance(message, str) else "",
        result=parsed.get("result"),
        task_id=_task_id(parsed.get("result")) or _task_id(parsed),
    )


def _task_id(value: Any) -> str | None:
    found = value.get("task_id") if isinstance(value, dict) else None
    if isinstance(found, bool) or not isinstance(found, str | int):
        return None
    return _text(found) or None


def _text(value: str | int) -> str:
    try:
        return str(value).strip()
    except ValueError:  # an integer of thousands of digits
        return ""
