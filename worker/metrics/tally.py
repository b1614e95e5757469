"""What a process counts by itself until it is written to the totals; safe for its threads."""

import threading
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable
from decimal import Decimal

from api_client import RequestSeen
from models.metrics import definitions as d
from models.metrics.definitions import SUM, Total
from models.metrics.totals import Sample

_Key = tuple[str, tuple[str, ...], int]


class Tally:
    """Counts and durations since they were last taken."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._values: defaultdict[_Key, float] = defaultdict(float)

    def count(self, total: Total, *labels: str) -> None:
        """One more."""
        with self._lock:
            self._values[total.name, labels, SUM] += 1

    def observe(self, total: Total, seconds: float, *labels: str) -> None:
        """One that took so long."""
        with self._lock:
            self._values[total.name, labels, bisect_left(total.buckets, seconds)] += 1
            self._values[total.name, labels, SUM] += seconds

    def request(self, request: RequestSeen) -> None:
        """The observer of an API client."""
        self.count(d.REQUESTS, request.endpoint, str(request.outcome))
        self.observe(d.REQUEST_SECONDS, request.seconds, request.endpoint)

    def take(self) -> list[Sample]:
        """All of it; from here on it is the caller's."""
        with self._lock:
            taken, self._values = self._values, defaultdict(float)
        return [Sample(*key, Decimal(str(value))) for key, value in taken.items()]

    def give_back(self, samples: Iterable[Sample]) -> None:
        """What was taken and could not be written."""
        with self._lock:
            for sample in samples:
                self._values[sample.name, sample.labels, sample.bucket] += float(sample.value)
