"""The mark that makes a remote task recognisable: its seed, and the fields the list echoes.

protocol.md: a seed drawn by the service is fresh for each attempt; a producer's own seed is not
a mark, so rows that share it (and every other echoed field) are never in doubt together.
"""

import hashlib
import json
import secrets
from collections.abc import Mapping
from typing import Any

SEED_BOUND = 2**31
"""Drawn seeds are 0 ≤ seed < 2³¹."""

ECHOED = ("model", "resolution", "ratio", "duration", "generate_audio")
"""The request's fields that a task object shows again (the provider's document, "Query Task
Status"); the prompt and the references are not among them."""


NOT_A_SEED = (None, -1)
"""How a task shows that it tells no seed; −1 means random."""


def producer_seed(request: Mapping[str, Any]) -> int | None:
    """The seed that the producer fixed; −1 means random and counts as not given."""
    seed = request.get("seed")
    return None if seed is None or seed == -1 else int(seed)


def draw_seed() -> int:
    """A fresh random seed; its uniqueness is for the table to keep."""
    return secrets.randbelow(SEED_BOUND)


def fingerprint(request: Mapping[str, Any], seed: int) -> str:
    """What tells one remote task from another in the task list, hashed.

    `request` is the normalised submit body, with every default filled in.
    """
    shown = [request.get(name) for name in ECHOED] + [seed]
    return hashlib.sha256(json.dumps(shown).encode()).hexdigest()[:32]
