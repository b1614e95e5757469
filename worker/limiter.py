"""The request rate of the whole fleet: every request to the provider waits here for its turn.

Requests are spaced evenly (a leaky bucket, GCRA), by one clock: the shared store's. The rate is the
configured one, or the lower one that the provider's throttling taught (`models.flow_control`).
Without a store each process keeps the rate on its own.
"""

import logging
import random
import threading
import time
from collections.abc import Callable
from typing import Any

from limits import RateLimitItem, parse
from limits.storage import storage_from_string

from models.flow_control.state import FlowState
from worker import broker_address

log = logging.getLogger(__name__)

_KEY = "seedance-api"
_RETRY_STORE = 5.0
_BURST_SHARE = 10
"""A tenth of the rate may be sent at once."""

# KEYS: the time at which the bucket is empty, the count of this second, that of the one before.
# ARGV: microseconds between two requests, requests that may be sent at once, the longest wait.
# Returns the wait in microseconds, and reserves the turn unless the wait is too long.
_RESERVE = """
local t = redis.call('TIME')
local now = t[1] * 1000000 + t[2]
local empty = math.max(tonumber(redis.call('GET', KEYS[1]) or '0'), now)
local wait = math.max(0, empty - (ARGV[2] - 1) * ARGV[1] - now)
if wait > tonumber(ARGV[3]) then return string.format('%.0f', wait) end
local left = math.ceil((empty + ARGV[1] - now) / 1000) + 1000
redis.call('SET', KEYS[1], string.format('%.0f', empty + ARGV[1]), 'PX', left)
local count = KEYS[1] .. ':' .. string.format('%.0f', math.floor((now + wait) / 1000000))
redis.call('INCR', count)
redis.call('PEXPIRE', count, math.ceil(wait / 1000) + 5000)
return string.format('%.0f', wait)
"""

# The larger of the counts of this second and of the last one.
_MEASURE = """
local now = redis.call('TIME')[1]
local this = tonumber(redis.call('GET', KEYS[1] .. ':' .. now) or '0')
local last = tonumber(redis.call('GET', KEYS[1] .. ':' .. (now - 1)) or '0')
return math.max(this, last)
"""


class NoTokenError(Exception):
    """The rate limit left no room within the time that the caller can wait."""


class Limiter:
    """Spaces requests to the provider.

    `store_url`: a normalised address (`worker.broker_address`); one that leads to no Valkey or
    Redis shares nothing. `flow`: returns the account's flow control, as this process knows it.

    While the store can't be reached each process keeps the rate on its own: it may then be exceeded
    by as many times as there are workers, which the provider answers with throttling.
    """

    def __init__(
        self,
        rate: str,
        store_url: str,
        *,
        flow: Callable[[], FlowState] = FlowState,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._item: RateLimitItem = parse(rate)
        self._configured = float(self._item.amount) / self._item.get_expiry()
        self._store = broker_address.as_store(store_url)
        self._scripts: tuple[Any, Any] | None = None
        self._store_from = 0.0
        self._flow = flow
        self._clock = clock
        self._sleep = sleep
        self._local = _LocalBucket(clock)

    @property
    def shared(self) -> bool:
        """Whether there is a store to share the rate through, answering or not."""
        return self._store is not None

    @property
    def configured(self) -> float:
        """The highest rate, as it is set, in requests per second."""
        return self._configured

    @property
    def per_second(self) -> float:
        """The rate that holds now, in requests per second."""
        learned = self._flow().rate
        return self._configured if learned is None else min(self._configured, learned.now)

    def wait(self, endpoint: str = "", *, timeout: float = 10.0) -> None:
        """Wait for a turn, up to `timeout` seconds. Raises NoTokenError.

        While the provider asks to send nothing (Retry-After) there is none.
        """
        deadline = self._clock() + timeout
        while (pause := self._flow().resume_in) > 0:
            # Spread out, so that the end of the pause is no burst.
            self._pause(pause + random.uniform(0.0, 0.2), deadline, endpoint)  # noqa: S311
        rate = self.per_second
        left = max(0.0, deadline - self._clock())
        turn = self._reserve(rate, left)
        if turn > left:
            raise NoTokenError(f"no room under {rate:.3g} requests/s for {endpoint}")
        if turn > 0:
            self._sleep(turn)

    def measured(self) -> float:
        """Return how many requests a second the fleet has sent just now."""
        counted = self._in_store(lambda _, measure: float(measure(keys=[_KEY])))
        return self._local.measured() if counted is None else counted

    def _pause(self, seconds: float, deadline: float, endpoint: str) -> None:
        if self._clock() + seconds > deadline:
            raise NoTokenError(f"the provider asked to send nothing, {endpoint} included")
        self._sleep(seconds)

    def _reserve(self, rate: float, longest: float) -> float:
        burst = max(1.0, min(self._item.amount, rate) / _BURST_SHARE)
        spacing = 1.0 / rate
        arguments = [round(spacing * 1e6), burst, round(longest * 1e6)]
        wait = self._in_store(lambda reserve, _: float(reserve(keys=[_KEY], args=arguments)) / 1e6)
        return self._local.reserve(spacing, burst, longest) if wait is None else wait

    def _in_store(self, ask: Callable[[Any, Any], float]) -> float | None:
        """Return the store's answer; None where there is no store, or it can't be reached."""
        if self._store is None or self._clock() < self._store_from:
            return None
        try:
            return ask(*self._connected(*self._store))
        except Exception as error:  # noqa: BLE001  (whatever the store says: work continues)
            self._store_from = self._clock() + _RETRY_STORE
            log.warning(
                "the shared rate limit can't be reached (%s): this process keeps the rate alone",
                type(error).__name__,
            )
            return None

    def _connected(self, url: str, options: dict[str, Any]) -> tuple[Any, Any]:
        if self._scripts is None:
            patience = {"socket_timeout": 2, "socket_connect_timeout": 1}
            storage: Any = storage_from_string(url, **patience, **options)
            client = storage.get_connection()
            self._scripts = client.register_script(_RESERVE), client.register_script(_MEASURE)
        return self._scripts


class _LocalBucket:
    """The same bucket for this process alone."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._empty = 0.0
        self._counts: dict[int, int] = {}

    def reserve(self, spacing: float, burst: float, longest: float) -> float:
        with self._lock:
            now = self._clock()
            empty = max(self._empty, now)
            wait = max(0.0, empty - (burst - 1) * spacing - now)
            if wait <= longest:
                self._empty = empty + spacing
                second = int(now + wait)
                self._counts = {s: n for s, n in self._counts.items() if s >= int(now) - 1}
                self._counts[second] = self._counts.get(second, 0) + 1
            return wait

    def measured(self) -> float:
        with self._lock:
            second = int(self._clock())
            return float(max(self._counts.get(second, 0), self._counts.get(second - 1, 0)))
