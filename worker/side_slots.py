"""A process's share of threads for side work."""

import threading
from collections import Counter


class SideSlots:
    """So many threads at most, and never all of them for one kind, where there are several.

    What hangs by the dozen (downloads from a storage that stalls) leaves a thread to the others.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._taken: Counter[str] = Counter()
        self._lock = threading.Lock()

    def take(self, kind: str) -> bool:
        """Take one for work of this kind, if there is one for it."""
        with self._lock:
            room = self._taken.total() < self._most
            if not room or self._taken[kind] >= max(1, self._most - 1):
                return False
            self._taken[kind] += 1
            return True

    def give_back(self, kind: str) -> None:
        """The work is done."""
        with self._lock:
            self._taken[kind] -= 1
