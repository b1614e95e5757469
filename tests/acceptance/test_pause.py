"""A pause while a service is busy: it holds in all workers at once, and outlives them."""

import time
from collections.abc import Callable
from typing import Any

import pytest

from models import schedule
from models.operating import pauses
from models.operating.actions import By
from tests.waiting import wait_for

ANA = By("ana", "maintenance")


@pytest.fixture
def environment(environment: dict[str, str]) -> dict[str, str]:
    """A flow that lasts for as long as the test looks at it."""
    quiet = {"SEEDANCE_POLL_MIN": "60", "SEEDANCE_POLL_MAX": "60"}
    return (
        environment | quiet | {"SEEDANCE_MAX_IN_FLIGHT": "200", "SEEDANCE_RATE_LIMIT": "20/second"}
    )


def test_a_pause_holds_in_all_workers_at_once_and_outlives_them(service: Any, sim: Any) -> None:
    sim.configure(speed=0)  # nothing ends, so that slots and requests are of submitting alone
    workers = [service.worker(), service.worker()]
    for worker in workers:
        service.ready(worker)
    ids = [service.enqueue(f"cat {n}") for n in range(120)]
    wait_for(lambda: len(sim.submits()) >= 20, "work is in full flow")

    with service.rt.engine.begin() as conn:
        pauses.pause(conn, None, ANA)
    # What had passed its last check is on the wire for a moment; nothing comes after it.
    settled = _steady(lambda: len(sim.submits()), seconds=2.0)
    assert settled < 100, "something was left to hold"
    for worker in workers:
        worker.terminate()
    service.ready(service.worker())
    assert _steady(lambda: len(sim.submits()), seconds=2.0) == settled

    with service.rt.engine.begin() as conn:
        assert pauses.resume(conn, None, ANA) is not None
        schedule.wake(conn)
    wait_for(lambda: len(sim.submits()) > settled, "it goes on by itself", 10)
    wait_for(lambda: len(sim.submits()) >= len(ids), "all are sent", 60)
    assert len(sim.submits()) == len(ids), "each once"


def _steady(value: Callable[[], int], *, seconds: float) -> int:
    """The value, once it has not changed for so long."""
    last, since = value(), time.monotonic()
    deadline = since + 20
    while time.monotonic() - since < seconds:
        assert time.monotonic() < deadline, f"still changing: {last}"
        now = value()
        if now != last:
            last, since = now, time.monotonic()
        time.sleep(0.1)
    return last
