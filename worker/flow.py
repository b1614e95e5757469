"""An account's flow control as this process knows it, and what answers of the provider report."""

import logging
import threading
import time
from collections.abc import Callable
from decimal import Decimal

from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from api_client import ApiError, InsufficientCredit, InvalidApiKey
from models import schedule
from models.flow_control import breakers, evidence, state
from models.flow_control.breakers import BreakerName
from models.flow_control.state import FlowState
from models.wait_reasons import Wait, WaitReason

log = logging.getLogger(__name__)

MAX_AGE = 1.0
"""Seconds after which a process reads the state again, when it next sends a request."""


class FlowMonitor:
    """Caches the state, so that a poll or a list page costs no query of its own."""

    def __init__(self, engine: Engine, clock: Callable[[], float] = time.monotonic) -> None:
        self._engine = engine
        self._clock = clock
        # One value, so that no thread sees a state with the time of another.
        self._known = (FlowState(), float("-inf"))
        self._reading = threading.Lock()

    def now(self) -> FlowState:
        """Return the state, at most `MAX_AGE` seconds old; older if the database is away."""
        if self._clock() - self._known[1] > MAX_AGE and self._reading.acquire(blocking=False):
            try:
                with self._engine.connect() as conn:
                    self.update(state.read(conn))
            except SQLAlchemyError as error:
                # Aged as well, or a pause would last for as long as the database is away.
                self.update(self._aged())
                log.warning("flow control can't be read: %s", type(error).__name__)
            finally:
                self._reading.release()
        return self._aged()

    def update(self, fresh: FlowState) -> None:
        """Take over a state that was just read."""
        self._known = (fresh, self._clock())

    def _aged(self) -> FlowState:
        known, read_at = self._known
        return known.aged(self._clock() - read_at)


def is_throttling(error: ApiError) -> bool:
    """Return whether the provider asks for fewer requests, of whatever kind."""
    if error.endpoint == "storage":
        return False  # another host, with limits of its own
    return is_rate_limit(error) or error.retry_after is not None


def is_rate_limit(error: ApiError) -> bool:
    """Return whether the provider refused the request for the number of requests."""
    bare_429 = error.http_status == 429 and not error.code
    return error.code == "RATE_LIMIT_EXCEEDED" or bare_429


def throttled(engine: Engine, monitor: FlowMonitor, error: ApiError, *, measured: float) -> Wait:
    """Lower the fleet's request rate after throttling. Returns what requests wait for."""
    with engine.begin() as conn:
        before = state.read(conn)
        fresh = evidence.throttled(
            conn,
            # A busy service may ask to wait; only 429 says that there were too many requests.
            measured=measured if is_rate_limit(error) else None,
            retry_after=error.retry_after,
            reason=error.code or str(error)[:200],
        )
        schedule.wake(conn)
    monitor.update(fresh)
    lowered = before.rate is None or (fresh.rate and fresh.rate.refused != before.rate.refused)
    if fresh.rate is not None and lowered:
        log.warning(
            "the provider throttles (%s): %.3g requests/s from now on, none for %.1f s",
            error.code or error,
            fresh.rate.now,
            fresh.resume_in,
        )
    return Wait(WaitReason.RATE, {"cause": "throttled"})


def trip(
    engine: Engine, error: ApiError, *, probe_every: float, estimate: Decimal | None = None
) -> Wait | None:
    """Open the breaker that an answer asks for. Returns what work waits for; None: no breaker."""
    match error:
        case InvalidApiKey():
            name, probe_in = BreakerName.API_KEY, probe_every
        case InsufficientCredit():
            # The probe at once: the balance decides what still passes.
            name, probe_in = BreakerName.CREDIT, 0.0
        case _:
            return None
    with engine.begin() as conn:
        newly = breakers.trip(
            conn,
            name,
            f"{error.code}: {error.message}",
            probe_in=probe_in,
            refused_estimate=estimate if name is BreakerName.CREDIT else None,
        )
    if newly:
        log.warning("breaker %s is open: %s; nothing new is sent, nothing fails", name, error)
    return Wait(WaitReason.BREAKER, {"breaker": str(name)})
