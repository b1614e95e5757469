"""How often beat has each part of upkeep done, and when it is missed."""

from collections.abc import Mapping

from worker.settings import Settings

CATCH_UP = 300.0
PRUNE = 3600.0

_MISSED = 3
_GRACE = 900.0
"""Seconds that a run may take, or wait for a worker, beside those that were missed."""


def expected_within(settings: Settings) -> Mapping[str, float]:
    """For each part that tells of its success, the seconds within which it should again."""
    every = {
        "reconcile": settings.reconcile_every,
        "balance": settings.balance_every,
        "prune": PRUNE,
    }
    return {what: _MISSED * seconds + _GRACE for what, seconds in every.items()}
