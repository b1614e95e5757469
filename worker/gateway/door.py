"""How much a gateway takes in: so many callbacks a second, of one address only a few.

All of it is in memory and bounded: what is refused here costs no database.
"""

import hashlib

from limits import parse
from limits.storage import MemoryStorage
from limits.strategies import FixedWindowRateLimiter

_OF_ONE = parse("20/10second")
_ALL = "callbacks"


class Door:
    """Lets callbacks in, up to a rate."""

    def __init__(self, rate: str) -> None:
        self._all = parse(rate)
        self._limiter = FixedWindowRateLimiter(MemoryStorage())

    def lets_in(self, path: str) -> bool:
        """Whether a callback to this path may be looked up now.

        One address that floods uses up its own share, not that of the others.
        """
        # Forged paths come in any number: the rate of all bounds how many are remembered.
        one = hashlib.sha256(path.encode()).hexdigest()
        if not self._limiter.test(_OF_ONE, one):
            return False
        return self._limiter.hit(self._all, _ALL) and self._limiter.hit(_OF_ONE, one)
