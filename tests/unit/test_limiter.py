"""The request rate on a clock of the test's own; no store, no waiting."""

import logging

import pytest

from worker import limiter
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


class Store:
    """Stands where the shared strategy would: gives tokens, refuses, or is away."""

    def __init__(self, *answers: bool | Exception) -> None:
        self.answers = list(answers)
        self.asked = 0

    def hit(self, item: object, key: str, cost: int = 1) -> bool:
        self.asked += 1
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.fixture
def clock() -> Clock:
    return Clock()


def with_store(monkeypatch, clock: Clock, store: Store, rate: str = "1/hour") -> Limiter:
    monkeypatch.setattr(Limiter, "_connect", lambda self, url, options: store)
    return Limiter(rate, "redis://nowhere/0", clock=clock, sleep=clock.sleep)


def local(clock: Clock, rate: str) -> Limiter:
    return Limiter(rate, "amqp://not-redis", clock=clock, sleep=clock.sleep)


def test_more_takes_what_there_is_and_does_not_wait(clock):
    limit = local(clock, "5/hour")
    limit.wait(timeout=0)
    assert limit.more(0) == 0
    assert limit.more(3) == 3
    assert limit.more(3) == 1
    assert limit.more(3) == 0
    assert clock.naps == []


def test_tokens_up_to_the_rate_come_at_once(clock):
    limit = local(clock, "5/hour")
    for _ in range(5):
        limit.wait(timeout=0)
    assert clock.naps == []


def test_beyond_the_rate_it_waits_and_then_gives_up_naming_the_call(clock):
    limit = local(clock, "1/hour")
    limit.wait()
    with pytest.raises(NoTokenError, match=r"1 per 1 hour for submit in 3 s"):
        limit.wait("submit", timeout=3)
    assert 0 < sum(clock.naps) <= 3
    assert max(clock.naps) <= 0.25


def test_without_time_it_does_not_wait_at_all(clock):
    limit = local(clock, "1/hour")
    limit.wait()
    with pytest.raises(NoTokenError):
        limit.wait(timeout=0)
    assert clock.naps == []


def test_waiters_are_spread(clock):
    limit = local(clock, "1/hour")
    limit.wait()
    with pytest.raises(NoTokenError):
        limit.wait(timeout=5)
    assert len(set(clock.naps)) > len(clock.naps) // 2


def test_the_shared_store_decides_while_it_answers(monkeypatch, clock):
    store = Store(True)
    limit = with_store(monkeypatch, clock, store)
    for _ in range(10):
        limit.wait(timeout=0)
    assert store.asked == 10


def test_it_waits_for_the_shared_store_to_have_room(monkeypatch, clock):
    limit = with_store(monkeypatch, clock, Store(False, False, True))
    limit.wait(timeout=5)
    assert len(clock.naps) == 2


def test_with_the_store_away_each_process_keeps_the_rate_by_itself(monkeypatch, clock, caplog):
    store = Store(ConnectionError("redis://:password@nowhere"))
    limit = with_store(monkeypatch, clock, store, "2/hour")
    with caplog.at_level(logging.WARNING):
        limit.wait(timeout=0)
        limit.wait(timeout=0)
        with pytest.raises(NoTokenError):
            limit.wait(timeout=0)
    assert store.asked == 1, "a store that is away is not asked for each request"
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "password" not in caplog.text


def test_the_store_is_tried_again_after_a_while(monkeypatch, clock):
    store = Store(ConnectionError(), True)
    limit = with_store(monkeypatch, clock, store, "1/hour")
    limit.wait(timeout=0)
    clock.now += limiter._RETRY_SHARED - 0.1
    with pytest.raises(NoTokenError):
        limit.wait(timeout=0)
    clock.now += 0.2
    for _ in range(5):
        limit.wait(timeout=0)
    assert store.asked == 6


@pytest.mark.parametrize("rate", ["20/second", "600/minute", "100/2 hour"])
def test_rates_as_the_setting_allows_them(clock, rate):
    local(clock, rate).wait(timeout=0)
