"""Who makes a change, and why: told by the caller, by SEEDANCE_OPERATOR, or the system's user."""

import getpass
import os

from api_client import InvalidRequest
from models.operating.actions import By

OPERATOR = "SEEDANCE_OPERATOR"
_LONGEST_NAME = 200
_LONGEST_REASON = 500


def author(who: str | None = None, why: str | None = None) -> By:
    """The author of a change. Raises InvalidRequest for a name or reason that can't be kept."""
    name = who if who is not None else os.environ.get(OPERATOR) or _user()
    _check("by" if who is not None else OPERATOR, name, _LONGEST_NAME)
    if why is not None:
        _check("reason", why, _LONGEST_REASON)
    return By(name, why)


def _check(field: str, value: str, longest: int) -> None:
    if not value.strip() or len(value) > longest or not value.isprintable():
        raise InvalidRequest(field, value, f"printable text of 1 to {longest} characters")


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown user"
