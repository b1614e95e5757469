"""What a check found."""

from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """How bad it is. Only what is WRONG stops work."""

    OK = "ok"
    WARN = "warn"
    WRONG = "wrong"


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    name: str
    level: Level
    found: str
    mend: str | None = None


@dataclass(frozen=True)
class Findings:
    """What a group of checks found."""

    checks: tuple[Check, ...]
    ahead: float | None = None
    """Seconds that the other side's clock is ahead of this machine's, where it told."""


def ok(name: str, found: str) -> Check:
    """All is well."""
    return Check(name, Level.OK, found)


def warn(name: str, found: str, mend: str) -> Check:
    """Work goes on, for now."""
    return Check(name, Level.WARN, found, mend)


def wrong(name: str, found: str, mend: str) -> Check:
    """Nothing works while that is so."""
    return Check(name, Level.WRONG, found, mend)
