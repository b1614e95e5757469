"""How fast the provider takes submissions, as one process sees it, and what follows from that."""

import contextlib
import math
import threading
from collections.abc import Iterator

WITHIN = 0.5
"""Seconds in which all POSTs of one transaction's intents should have gone: an intent grows old."""

AT_ONCE = 0.1
"""Seconds of POSTs for which no further thread is worth its message and transactions."""

MOST = 16
"""Intents of one transaction, at most: so many may be in doubt when a worker dies."""

PROCESSOR = 0.005
"""Seconds of a processor for one POST, about, with its share of the statements. Threads of one
process take turns at one: more of them than a POST lasts times as long only make each other late.
"""

_LEAST = 0.0001
"""Seconds under which POSTs are told apart no more."""

_DOWN = 0.8
_UP = 1.02
"""How far the estimate follows a POST that was quicker or slower. In balance where one POST in
twelve is quicker: what our own threads and processes add to the others is not the provider's, and
must not make batches smaller, and by that the machine busier.
"""

_SURELY_DOWN = 0.5
_SURELY_UP = 1.5
"""The same for less than half as long, and for longer than any busy machine makes it."""


class Pace:
    """A running estimate of how long the provider takes for a POST.

    Where that is long each generation has its own transactions, and its own thread; where it is
    milliseconds, the transactions are what costs, and are shared, by few threads.
    """

    def __init__(self) -> None:
        self._seconds = WITHIN
        self._turns = threading.Condition()
        self._inside = self._running = self._ended = 0

    def took(self, seconds: float) -> None:
        """A POST was answered after so long."""
        # Two threads at once may lose one of two samples.
        if seconds < self._seconds:
            down = _SURELY_DOWN if seconds < self._seconds / 2 else _DOWN
            self._seconds = max(seconds, down * self._seconds)
        else:
            up = _SURELY_UP if seconds > WITHIN / 2 else _UP
            self._seconds = min(seconds, up * max(self._seconds, _LEAST))

    @property
    def most(self) -> int:
        """How many one thread submits, at most, with one transaction of intents."""
        return self._in(WITHIN)

    @property
    def least(self) -> int:
        """How many are given to one thread though others are free."""
        return self._in(AT_ONCE)

    @property
    def threads(self) -> int:
        """How many threads of this process should submit at a time, at most."""
        return max(1, math.ceil(self._seconds / PROCESSOR))

    def room(self) -> int:
        """For how many more messages of submissions there is work for these threads soon."""
        return 8 * self.threads - self._inside

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """Submit in here. While nobody's turn ends it is begun beside the others: they wait for
        the provider, then, not for a processor.
        """
        with self._turns:
            self._inside += 1
            ended = -1
            while self._running >= self.threads and self._ended != ended:
                ended = self._ended
                self._turns.wait(WITHIN)
            self._running += 1
        try:
            yield
        finally:
            with self._turns:
                self._ended += 1
                self._inside -= 1
                self._running -= 1
                self._turns.notify()

    def _in(self, seconds: float) -> int:
        return max(1, min(MOST, int(seconds / max(self._seconds, _LEAST))))
