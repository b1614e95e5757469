"""The request rate of a process without a store, on a clock of the test's own."""

import logging
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.flow_control.rules import RateLimit
from models.flow_control.state import FlowState
from worker.limiter import Limiter, NoTokenError


class Clock:
    """Time passes only by sleeping."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.naps: list[float] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.naps.append(seconds)
        self.now += seconds


class Account:
    """Flow control whose times pass with the clock."""

    def __init__(self, clock: Clock, state: FlowState | None = None) -> None:
        self._clock, self._since = clock, clock.now
        self.state = state or FlowState()

    def __call__(self) -> FlowState:
        return self.state.aged(self._clock.now - self._since)


@pytest.fixture
def clock() -> Clock:
    return Clock()


def local(clock: Clock, rate: str, state: FlowState | None = None) -> Limiter:
    flow = Account(clock, state)
    return Limiter(rate, "amqp://not-redis", flow=flow, clock=clock, sleep=clock.sleep)


def turns(limit: Limiter, clock: Clock, count: int, timeout: float = 1e9) -> list[float]:
    """The seconds from now at which that many turns come."""
    start, found = clock.now, []
    for _ in range(count):
        limit.wait(timeout=timeout)
        found.append(clock.now - start)
    return found


def test_requests_are_spaced_evenly(clock):
    assert turns(local(clock, "10/second"), clock, 5) == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])


def test_tenth_of_the_rate_is_sent_at_once(clock):
    """50/s: five at once, then one every 20 ms."""
    found = turns(local(clock, "50/second"), clock, 8)
    assert found == pytest.approx([0, 0, 0, 0, 0, 0.02, 0.04, 0.06], abs=1e-6)


def test_idle_time_earns_no_more_than_the_burst(clock):
    limit = local(clock, "50/second")
    turns(limit, clock, 20)
    clock.now += 3600
    assert turns(limit, clock, 6) == pytest.approx([0, 0, 0, 0, 0, 0.02], abs=1e-6)


@given(
    st.sampled_from(["5/second", "20/second", "50/second", "600/minute", "90/hour"]),
    st.lists(st.floats(0, 2), max_size=60),
)
def test_rate_is_never_exceeded_by_more_than_the_burst(rate, pauses):
    clock = Clock()
    limit = local(clock, rate)
    sent = []
    for pause in pauses:
        clock.now += pause
        limit.wait(timeout=1e9)
        sent.append(clock.now)
    burst = max(1.0, limit.configured / 10)
    for first, start in enumerate(sent):
        for last in range(first, len(sent)):
            allowed = burst + (sent[last] - start) * limit.configured
            assert last - first + 1 <= allowed + 1e-6


def test_without_room_in_time_it_gives_up_at_once_naming_rate_and_call(clock):
    limit = local(clock, "1/second")
    limit.wait()
    with pytest.raises(NoTokenError, match=r"no room under 1 requests/s for submit"):
        limit.wait("submit", timeout=0.5)
    assert clock.naps == [], "it does not wait for what will not come"


def test_turn_that_was_refused_is_not_reserved(clock):
    limit = local(clock, "1/second")
    limit.wait()
    for _ in range(20):
        with pytest.raises(NoTokenError):
            limit.wait(timeout=0.5)
    assert turns(limit, clock, 1) == pytest.approx([1.0])


def test_each_waiter_has_a_turn_of_its_own(clock):
    """Turns are reserved: those who wait at the same moment are not sent at the same moment."""
    slept: list[float] = []
    limit = Limiter("10/second", "memory://", clock=clock, sleep=slept.append)
    threads = [threading.Thread(target=limit.wait) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert sorted(slept) == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])


@pytest.mark.parametrize(
    ("rate", "per_second"),
    [("20/second", 20), ("600/minute", 10), ("100/2 hour", 100 / 7200), ("1/hour", 1 / 3600)],
)
def test_rates_as_the_setting_allows_them(clock, rate, per_second):
    limit = local(clock, rate)
    limit.wait(timeout=0)
    assert limit.configured == pytest.approx(per_second)
    assert limit.per_second == pytest.approx(per_second)


# --- what the provider's throttling taught ------------------------------------------------------


def test_discovered_rate_below_the_configured_one_is_used(clock):
    limit = local(clock, "20/second", FlowState(rate=RateLimit(2.0, 4.0, 0.0)))
    assert limit.per_second == 2.0
    first, second = turns(limit, clock, 2)
    assert (first, second) == (0.0, pytest.approx(0.5))


def test_discovered_rate_recovers_up_to_the_configured_one(clock):
    limit = local(clock, "20/second", FlowState(rate=RateLimit(2.0, 4.0, 0.0)))
    clock.now += 30
    assert limit.per_second == pytest.approx(4.0)
    clock.now += 600
    assert limit.per_second == 20.0


def test_no_turn_comes_before_retry_after_has_passed(clock):
    limit = local(clock, "20/second", FlowState(resume_in=3.0))
    [came] = turns(limit, clock, 1)
    assert 3.0 <= came <= 3.2


def test_waiters_are_spread_at_the_end_of_a_pause(clock):
    ends = set()
    for _ in range(10):
        clock.naps.clear()
        turns(local(clock, "20/second", FlowState(resume_in=3.0)), clock, 1)
        ends.add(round(clock.naps[0], 4))
    assert len(ends) > 5


def test_pause_longer_than_the_caller_can_wait_is_refused_at_once(clock):
    limit = local(clock, "20/second", FlowState(resume_in=30.0))
    with pytest.raises(NoTokenError, match="asked to send nothing, submit included"):
        limit.wait("submit", timeout=5)
    assert clock.naps == []


def test_pause_that_is_prolonged_meanwhile_is_waited_out(clock):
    states = [FlowState(resume_in=1.0), FlowState(resume_in=2.0), FlowState()]

    def flow() -> FlowState:
        return states.pop(0) if len(states) > 1 else states[0]

    limit = Limiter("20/second", "memory://", flow=flow, clock=clock, sleep=clock.sleep)
    [came] = turns(limit, clock, 1)
    assert came >= 3.0


def test_time_spent_in_a_pause_counts_against_the_timeout(clock):
    limit = local(clock, "1/hour", FlowState(resume_in=3.0))
    limit.wait(timeout=4)
    with pytest.raises(NoTokenError):
        limit.wait(timeout=4)


# --- what was measured --------------------------------------------------------------------------


def test_measured_rate_is_that_of_the_last_two_seconds(clock):
    limit = local(clock, "20/second")
    assert limit.measured() == 0.0
    turns(limit, clock, 60)
    assert limit.measured() == pytest.approx(20, abs=2)
    clock.now += 5
    assert limit.measured() == 0.0


def test_measured_rate_does_not_count_refused_turns(clock):
    limit = local(clock, "1/second")
    limit.wait()
    for _ in range(10):
        with pytest.raises(NoTokenError):
            limit.wait(timeout=0)
    assert limit.measured() == 1.0


def test_store_that_shares_nothing_is_no_store(clock, caplog):
    with caplog.at_level(logging.WARNING):
        limit = local(clock, "20/second")
        limit.wait()
    assert not limit.shared
    assert caplog.records == []
