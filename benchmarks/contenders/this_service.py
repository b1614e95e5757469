"""This service: its producer API. What works is `seedance worker`, and `seedance beat`."""

from collections.abc import Iterable
from typing import Any

from worker import producer


def enqueue(request: dict[str, Any]) -> None:
    """One request."""
    producer.enqueue(request)


def enqueue_many(requests: Iterable[dict[str, Any]]) -> None:
    """Many, in one transaction."""
    producer.enqueue_many(requests)
