"""How fast the provider takes submissions, as one process sees it."""

WITHIN = 0.5
"""Seconds in which all POSTs of one transaction's intents should have gone: an intent grows old."""

AT_ONCE = 0.1
"""Seconds of POSTs for which no further thread is worth its message and transactions."""

MOST = 16
"""Intents of one transaction, at most: so many may be in doubt when a worker dies."""

_QUICKER = 0.3
_SLOWER = 0.05
"""Weights of a new sample. What a busy machine adds to some POSTs is not the provider's: it must
not make batches smaller, and by that the machine busier."""


class Pace:
    """A running mean of how long a POST takes.

    Where that is long each generation has its own transactions, and its own thread; where it is
    milliseconds, the transactions are what costs, and are shared.
    """

    def __init__(self) -> None:
        self._seconds = WITHIN

    def took(self, seconds: float) -> None:
        """A POST was answered after so long."""
        # Two threads at once may lose one of two samples.
        weight = _QUICKER if seconds < self._seconds else _SLOWER
        self._seconds += weight * (seconds - self._seconds)

    @property
    def most(self) -> int:
        """How many one thread submits, at most, with one transaction of intents."""
        return self._in(WITHIN)

    @property
    def least(self) -> int:
        """How many are given to one thread though others are free."""
        return self._in(AT_ONCE)

    def _in(self, seconds: float) -> int:
        return max(1, min(MOST, int(seconds / max(self._seconds, 1e-6))))
