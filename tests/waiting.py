"""Waiting for a condition in what other threads, processes and servers do."""

import time
from collections.abc import Callable
from typing import Any

PATIENCE = 60.0
"""Seconds until a condition counts as not reached; machines are slow and busy."""


def wait_for(
    condition: Callable[[], Any], what: str = "the condition", timeout: float = PATIENCE
) -> Any:
    """Wait until the condition is true, and return what it returned."""
    deadline = time.monotonic() + timeout
    while not (result := condition()):
        assert time.monotonic() < deadline, f"not within {timeout:g} s: {what}"
        time.sleep(0.01)
    return result
