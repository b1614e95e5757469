"""One request rate for all workers through Valkey, and a local one without it."""

import itertools
import logging
import multiprocessing
import threading
import time

import pytest

from models.flow_control.rules import RateLimit
from models.flow_control.state import FlowState
from worker.embedded_valkey import EmbeddedValkey
from worker.limiter import Limiter, NoTokenError


def taken(limiter: Limiter, most: int) -> int:
    """How many turns come without waiting."""
    for got in range(most):
        try:
            limiter.wait(timeout=0)
        except NoTokenError:
            return got
    return most


def test_two_workers_share_one_rate(broker_url):
    """60/s: a burst of six, whoever takes it."""
    slept: list[float] = []
    one, two = (Limiter("60/second", broker_url, sleep=slept.append) for _ in range(2))
    for limiter in itertools.islice(itertools.cycle((one, two)), 20):
        limiter.wait(timeout=5)
    assert len(slept) >= 13, "both took from one burst"
    assert max(slept) > 0.15, "the last has the turn after all the others"


def test_burst_is_a_tenth_of_the_rate(broker_url):
    limiter = Limiter("1000/hour", broker_url)
    assert taken(limiter, 10) == 1
    fast = Limiter("30/second", broker_url)
    assert taken(fast, 1) == 0, "the same bucket"


def test_turn_without_time_is_not_reserved(broker_url):
    limiter = Limiter("2/second", broker_url)
    assert taken(limiter, 1) == 1
    assert sum(taken(limiter, 1) for _ in range(50)) <= 1
    started = time.monotonic()
    limiter.wait(timeout=5)
    assert time.monotonic() - started < 1.2


def test_waiter_has_its_turn_when_there_is_room_again(broker_url):
    limiter = Limiter("4/second", broker_url)
    started = time.monotonic()
    for _ in range(4):
        limiter.wait(timeout=5)
    assert 0.7 <= time.monotonic() - started < 2


def test_discovered_rate_holds_for_the_shared_bucket(broker_url):
    """One worker knows of the throttling, and spaces its turns by it."""
    slow = FlowState(rate=RateLimit(1.0, 2.0, 0.0))
    limiter = Limiter("1000/second", broker_url, flow=lambda: slow)
    assert taken(limiter, 5) == 1
    with pytest.raises(NoTokenError, match=r"under 1 requests/s"):
        limiter.wait(timeout=0.1)


def test_pause_holds_every_request(broker_url):
    limiter = Limiter("1000/second", broker_url, flow=lambda: FlowState(resume_in=60.0))
    with pytest.raises(NoTokenError, match="send nothing"):
        limiter.wait(timeout=5)
    assert limiter.measured() == 0.0


def test_measured_rate_is_that_of_the_fleet(broker_url):
    one, two = (Limiter("1000/second", broker_url) for _ in range(2))
    _at_the_beginning_of_a_second()
    for _ in range(10):
        one.wait()
        two.wait()
    assert one.measured() == two.measured() == 20.0


def _at_the_beginning_of_a_second() -> None:
    time.sleep(1.05 - time.time() % 1)


def test_threads_together_do_not_exceed_the_rate(broker_url):
    sent: list[float] = []
    limiters = [Limiter("50/second", broker_url) for _ in range(3)]

    def send(limiter: Limiter) -> None:
        for _ in range(8):
            limiter.wait(timeout=10)
            sent.append(time.monotonic())

    threads = [threading.Thread(target=send, args=(one,)) for one in limiters for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(sent) == 72
    _check_rate(sent, rate=50, burst=5)


def _send(url: str, rate: str, count: int, start: float) -> list[float]:
    limiter = Limiter(rate, url)
    while time.time() < start:
        time.sleep(0.001)
    sent = []
    for _ in range(count):
        limiter.wait(timeout=20)
        sent.append(time.time())
    return sent


def test_processes_together_do_not_exceed_the_rate(broker_url):
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        pool.starmap(_send, [(broker_url, "1000/second", 1, 0.0)] * 3)  # they have started
        start = time.time() + 1
        parts = pool.starmap(_send, [(broker_url, "30/second", 20, start)] * 3)
    _check_rate([at for part in parts for at in part], rate=30, burst=3)


def _check_rate(sent: list[float], *, rate: float, burst: float) -> None:
    """All together took as long as the rate asks, and hardly longer.

    A thread may wake up late, and two of them then come close together: only sums are bounded.
    """
    took = max(sent) - min(sent)
    ideal = (len(sent) - burst) / rate
    assert took >= ideal - 0.15, (took, ideal)
    assert took <= ideal * 1.5 + 1, (took, ideal)


# --- without the store --------------------------------------------------------------------------


def test_without_valkey_each_worker_keeps_the_rate_alone(tmp_path, caplog):
    with EmbeddedValkey(tmp_path / "valkey", durable=False) as server:
        url = server.url(0)
        one, two = Limiter("1/hour", url), Limiter("1/hour", url)
        assert taken(one, 1) + taken(two, 1) == 1
    with caplog.at_level(logging.WARNING, logger="worker.limiter"):
        assert taken(one, 10) == 1
        assert taken(two, 10) == 1
        assert one.measured() == two.measured() == 1.0
    assert len(caplog.records) == 2, "once for each worker, not for each request"


def test_valkey_that_was_never_there_stops_no_request(caplog):
    limiter = Limiter("1/hour", "redis://:password@127.0.0.1:1/0")
    with caplog.at_level(logging.WARNING, logger="worker.limiter"):
        assert taken(limiter, 5) == 1
    with pytest.raises(NoTokenError):
        limiter.wait("submit", timeout=0.01)
    assert "password" not in caplog.text
    assert limiter.shared


def test_store_that_comes_back_is_used_again(tmp_path):
    now = [1000.0]
    with EmbeddedValkey(tmp_path / "valkey", durable=False) as server:
        url, port = server.url(0), server
        limiter = Limiter("1/hour", url, clock=lambda: now[0])
        other = Limiter("1/hour", url)
        assert taken(limiter, 1) == 1
    assert taken(limiter, 2) == 1, "alone"
    with port:
        now[0] += 4.9
        assert taken(limiter, 2) == 0, "the store is not asked for each request"
        assert taken(other, 2) == 1
        now[0] += 3600 * 2
        assert taken(limiter, 1) == 0, "asked again, and the other has taken the turn"
