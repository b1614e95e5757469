"""One rate for all workers through Valkey, and a local one without it."""

import logging

import pytest

from worker.embedded_valkey import EmbeddedValkey
from worker.limiter import Limiter, NoTokenError


def taken(limiter: Limiter, most: int) -> int:
    """How many tokens come without waiting."""
    for got in range(most):
        try:
            limiter.wait(timeout=0)
        except NoTokenError:
            return got
    return most


def test_two_workers_share_one_rate(broker_url):
    one, two = Limiter("6/hour", broker_url), Limiter("6/hour", broker_url)
    assert taken(one, 4) == 4
    assert taken(two, 10) == 2
    assert taken(one, 10) == 0


def test_a_waiter_gets_its_token_when_there_is_room_again(broker_url):
    limiter = Limiter("2/second", broker_url)
    assert taken(limiter, 3) == 2
    limiter.wait(timeout=5)


def test_without_valkey_each_worker_limits_itself_and_goes_on(tmp_path, caplog):
    with EmbeddedValkey(tmp_path / "valkey", durable=False) as server:
        url = server.url(0)
        one, two = Limiter("3/hour", url), Limiter("3/hour", url)
        assert taken(one, 1) + taken(two, 1) == 2
    with caplog.at_level(logging.WARNING, logger="worker.limiter"):
        assert taken(one, 10) == 3
        assert taken(two, 10) == 3
    assert len(caplog.records) == 2, "once for each worker, not for each request"


def test_a_valkey_that_was_never_there_stops_nobody(caplog):
    limiter = Limiter("2/hour", "redis://127.0.0.1:1/0")
    with caplog.at_level(logging.WARNING, logger="worker.limiter"):
        assert taken(limiter, 5) == 2
    with pytest.raises(NoTokenError):
        limiter.wait("submit", timeout=0.01)
