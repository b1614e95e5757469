"""What the simulator remembers of the requests it saw."""

from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

# Of no interest, or a secret.
_DROPPED = frozenset(
    {"host", "content-length", "accept", "accept-encoding", "connection", "x-api-key"}
)


@dataclass(slots=True)
class Submit:
    """One submit as it came in, whatever became of it."""

    time: float
    api_key: str | None
    headers: dict[str, str]
    body: Any
    fault: str | None = None
    outcome: str = "in progress"
    task_id: str | None = None

    def view(self) -> dict[str, Any]:
        """As the admin API shows it."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(slots=True)
class EndpointCount:
    """Counters of one endpoint."""

    received: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)


class Records:
    """Counters for each endpoint, the latest requests, and every submit."""

    def __init__(self) -> None:
        self.counts: dict[str, EndpointCount] = {}
        self.latest: deque[tuple[float, str, str | None, str, str | None]] = deque(maxlen=20_000)
        self.submits: deque[Submit] = deque(maxlen=200_000)
        self.key_leaks = 0
        self._header_sets: dict[tuple[tuple[str, str], ...], dict[str, str]] = {}

    def received(self, endpoint: str) -> EndpointCount:
        """A request has come in."""
        count = self.counts.get(endpoint)
        if count is None:
            count = self.counts[endpoint] = EndpointCount()
        count.received += 1
        return count

    def done(
        self, endpoint: str, outcome: str, *, time: float, fault: str | None, about: str | None
    ) -> None:
        """A request has ended."""
        count = self.counts[endpoint]
        count.outcomes[outcome] += 1
        if fault is not None:
            count.faults[fault] += 1
        self.latest.append((time, endpoint, about, outcome, fault))

    def headers(self, headers: Mapping[str, str]) -> dict[str, str]:
        """The headers worth keeping; equal sets are kept once."""
        kept = tuple((n, v) for n, v in headers.items() if n.lower() not in _DROPPED)
        if len(self._header_sets) > 10_000:
            self._header_sets.clear()
        return self._header_sets.setdefault(kept, dict(kept))

    def view(self, log: int = 0) -> dict[str, Any]:
        """As the admin API shows it."""
        shown: dict[str, Any] = {
            "endpoints": {
                name: {
                    "received": count.received,
                    "outcomes": dict(count.outcomes),
                    "faults": dict(count.faults),
                }
                for name, count in self.counts.items()
            },
            "key_leaks": self.key_leaks,
        }
        if log:
            shown["log"] = [
                {
                    "time": time,
                    "endpoint": endpoint,
                    "about": about,
                    "outcome": outcome,
                    "fault": fault,
                }
                for time, endpoint, about, outcome, fault in list(self.latest)[-log:]
            ]
        return shown
