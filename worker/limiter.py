"""The request rate, shared by all workers through Valkey; local to the process without it."""

import logging
import random
import time
from collections.abc import Callable
from typing import Any

from limits import RateLimitItem, parse
from limits.storage import MemoryStorage, storage_from_string
from limits.strategies import MovingWindowRateLimiter, SlidingWindowCounterRateLimiter

from worker import broker_address

log = logging.getLogger(__name__)

_KEY = "seedance-api"
_RETRY_SHARED = 5.0


class NoTokenError(Exception):
    """The rate limit left no room within the time that the caller can wait."""


class Limiter:
    """Hands out tokens for requests to the provider.

    `store_url`: a normalised address (`worker.broker_address`); one that leads to no Valkey or
    Redis shares nothing.

    While the shared store can't be reached each process keeps the limit by itself: the rate may
    then be exceeded by as many times as there are workers, which the provider answers with
    RATE_LIMIT_EXCEEDED, and that is held by the backoff gate. Work goes on.
    """

    def __init__(
        self,
        rate: str,
        store_url: str,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._item: RateLimitItem = parse(rate)
        self._local = MovingWindowRateLimiter(MemoryStorage())
        self._store = broker_address.as_store(store_url)
        self._counter: SlidingWindowCounterRateLimiter | None = None
        self._shared_from = 0.0
        self._clock = clock
        self._sleep = sleep

    @property
    def shared(self) -> bool:
        """Whether there is a store to share the rate through, answering or not."""
        return self._store is not None

    @property
    def per_second(self) -> float:
        """Requests a second that it lets through."""
        return float(self._item.amount) / self._item.get_expiry()

    def wait(self, endpoint: str = "", *, timeout: float = 10.0) -> None:
        """Take a token, waiting for it up to `timeout` seconds. Raises NoTokenError."""
        deadline = self._clock() + timeout
        while not self._hit():
            pause = random.uniform(0.5, 1.0) * min(  # noqa: S311  (spreads load)
                0.25, self._item.get_expiry() / self._item.amount
            )
            if self._clock() + pause > deadline:
                raise NoTokenError(f"no room under {self._item} for {endpoint} in {timeout:g} s")
            self._sleep(pause)

    def more(self, count: int) -> int:
        """Take up to so many more tokens, without waiting. Returns how many there were."""
        if count > 0 and self._hit(count):
            return count
        return next((taken for taken in range(count) if not self._hit()), count)

    def _hit(self, cost: int = 1) -> bool:
        if self._store is not None and self._clock() >= self._shared_from:
            try:
                return self._connect(*self._store).hit(self._item, _KEY, cost=cost)
            except Exception as error:  # noqa: BLE001  (whatever the store says: work goes on)
                self._shared_from = self._clock() + _RETRY_SHARED
                log.warning(
                    "the shared rate limit can't be reached (%s): limiting this process alone",
                    type(error).__name__,
                )
        return self._local.hit(self._item, _KEY, cost=cost)

    def _connect(self, url: str, options: dict[str, Any]) -> SlidingWindowCounterRateLimiter:
        if self._counter is None:
            patience = {"socket_timeout": 2, "socket_connect_timeout": 1}
            storage = storage_from_string(url, **patience, **options)
            # Counted by the store's clock alone: by stamps of the workers', as a moving window
            # keeps them, one that is ahead would take every token from those that are right.
            self._counter = SlidingWindowCounterRateLimiter(storage)
        return self._counter
