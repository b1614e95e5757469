"""Times as they are given on the command line."""

import re
from datetime import UTC, datetime, timedelta

from worker.cli.errors import BadInput

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def moment(option: str, given: str | None) -> datetime | None:
    """A date, a time in ISO 8601 (UTC if it names no zone), or so long ago. Raises BadInput."""
    if given is None:
        return None
    if ago := re.fullmatch(r"(\d{1,5})([smhdw])", given):
        return datetime.now(UTC) - timedelta(**{_UNITS[ago[2]]: int(ago[1])})
    try:
        at = datetime.fromisoformat(given)
    except ValueError:
        raise BadInput(
            f"{option} is {given!r}; allowed: a date, a time in ISO 8601, or such as 12h, 7d, 4w"
        ) from None
    return at if at.tzinfo else at.replace(tzinfo=UTC)


Option = tuple[str, str | None]
"""An option's name, and what was given."""


def span(since: Option, until: Option) -> tuple[datetime | None, datetime | None]:
    """Two options that bound a span. Raises BadInput where it is empty."""
    first, last = moment(*since), moment(*until)
    if first is not None and last is not None and last <= first:
        raise BadInput(f"{until[0]} is {until[1]!r}; allowed: a time after {since[0]} {since[1]!r}")
    return first, last
