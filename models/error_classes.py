"""What kind of trouble an `error_code` is: a few classes, for filters, counts and decisions."""

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType

from sqlalchemy import ColumnElement, case, literal


class ErrorClass(StrEnum):
    """Whose matter it is."""

    REFUSED = "refused"
    """The provider refused what was asked for: moderation, copyright, privacy. Final."""
    INVALID = "invalid"
    """The request breaks a bound: its producer's matter."""
    REFERENCE = "reference"
    """A reference could not be read or uploaded."""
    CREDITS = "credits"
    """The account or a budget did not cover it."""
    DEADLINE = "deadline"
    """It was not sent in time."""
    OPERATOR = "operator"
    """An operator ended it."""
    SERVICE = "service"
    """Workers died of it, or its attempts were used up."""
    PROVIDER = "provider"
    """Anything else that the provider said."""


FINAL = frozenset({"CONTENT_MODERATION_FAILED", "COPYRIGHT_VIOLATION", "PRIVACY_VIOLATION"})
"""The provider's word on the content. Never repeated, reworded or routed around."""

_C = ErrorClass
CLASSES: Mapping[str, ErrorClass] = MappingProxyType(
    {
        **dict.fromkeys(sorted(FINAL), _C.REFUSED),
        "INVALID_PARAMETER": _C.INVALID,
        "MISSING_PARAMETER": _C.INVALID,
        "INVALID_REQUEST": _C.INVALID,
        "IDEMPOTENCY_CONFLICT": _C.INVALID,
        "INVALID_REFERENCE": _C.REFERENCE,
        "REFERENCE_UNAVAILABLE": _C.REFERENCE,
        "FILE_UPLOAD_FAILED": _C.REFERENCE,
        "INSUFFICIENT_CREDIT": _C.CREDITS,
        "CREDIT_DEDUCT_FAILED": _C.CREDITS,
        "BUDGET_EXCEEDED": _C.CREDITS,
        "DEADLINE_PASSED": _C.DEADLINE,
        "GIVEN_UP": _C.OPERATOR,
        "WORKER_LOST": _C.SERVICE,
        "SUBMIT_ATTEMPTS_EXHAUSTED": _C.SERVICE,
    }
)
"""The codes that have a class of their own; codes that are not here are the provider's."""


def class_of(code: str | None) -> ErrorClass | None:
    """The class of an error code; None without one."""
    return None if code is None else CLASSES.get(code, ErrorClass.PROVIDER)


def class_sql(code: ColumnElement[str]) -> ColumnElement[str | None]:
    """The same, of a column."""
    return case(
        (code.is_(None), None),
        *((code == known, literal(str(kind))) for known, kind in CLASSES.items()),
        else_=literal(str(ErrorClass.PROVIDER)),
    )
