"""A process's share of threads for side work."""

import threading
from collections import Counter


class SideSlots:
    """So many threads at most, and never all of them for one kind, where there are several.

    What hangs by the dozen (downloads from a storage that stalls) leaves a thread to the others.
    """

    def __init__(self, most: int, *, kinds: int = 2) -> None:
        """`kinds` is how many kinds there are: one alone may take all."""
        self._most = most
        self._most_of_one = most if kinds < 2 else max(1, most - 1)
        self._taken: Counter[str] = Counter()
        self._lock = threading.Lock()

    def take(self, kind: str) -> bool:
        """Take one for work of this kind, if there is one for it."""
        with self._lock:
            if self._free(kind) <= 0:
                return False
            self._taken[kind] += 1
            return True

    def free(self, kind: str) -> int:
        """How many there are for this kind now."""
        with self._lock:
            return self._free(kind)

    def _free(self, kind: str) -> int:
        room = self._most - self._taken.total()
        return min(room, self._most_of_one - self._taken[kind])

    def give_back(self, kind: str) -> None:
        """The work is done."""
        with self._lock:
            self._taken[kind] -= 1
