"""What the tables can hold of what a provider or a producer sends.

PostgreSQL refuses NUL and halves of surrogate pairs in text, and numbers beyond a column's range.
An odd value in an answer must cost itself, not the answer: else the row could never move again.
"""

from datetime import UTC, datetime
from decimal import Decimal

MOST_CREDITS = Decimal(10) ** 10
_INT4 = 2**31
_INT8 = 2**63

NO_SEED_OF_OURS = -_INT8
"""Stands for a seed beyond what the table holds: shown, and certainly not one of ours."""

EARLIEST = datetime(1970, 1, 2, tzinfo=UTC)
LATEST = datetime(9000, 1, 1, tzinfo=UTC)


def text(value: str | None) -> str | None:
    """Without NUL, and with half characters replaced."""
    if value is None:
        return None
    return value.replace("\x00", "").encode("utf-8", "replace").decode("utf-8")


def credits(value: Decimal | int | None) -> Decimal | None:  # noqa: A001  (the provider's word)
    """An amount that can have been charged; None for any other."""
    amount = None if value is None else Decimal(value)
    if amount is None or not amount.is_finite() or not 0 <= amount < MOST_CREDITS:
        return None
    return amount


def seed(value: int | None) -> int | None:
    """A seed in the table's range, or `NO_SEED_OF_OURS`."""
    return value if value is None or -_INT8 <= value < _INT8 else NO_SEED_OF_OURS


def integer(value: int | None) -> int | None:
    """A whole number of four bytes; None beyond."""
    return value if value is not None and -_INT4 <= value < _INT4 else None


def instant(value: datetime | None) -> datetime | None:
    """A time that both Python and PostgreSQL can show in any zone; None beyond."""
    return value if value is not None and EARLIEST <= value <= LATEST else None
