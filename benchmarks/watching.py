"""Waiting for what a contender does, with an end."""

import time
from collections.abc import Callable

EVERY = 0.25


def reached(
    value: Callable[[], int],
    wanted: int,
    seconds: float,
    meanwhile: Callable[[], None] | None = None,
) -> bool:
    """Whether a count came to so much within so many seconds; `meanwhile` runs once a second."""
    deadline = time.monotonic() + seconds
    next_call = 0.0
    while value() < wanted:
        now = time.monotonic()
        if now > deadline:
            return False
        if meanwhile is not None and now >= next_call:
            meanwhile()
            next_call = now + 1.0
        time.sleep(EVERY)
    return True
