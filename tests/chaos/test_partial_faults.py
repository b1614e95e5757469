"""The provider refuses some submits, and the fleet continues with the others."""

import time

import pytest

from tests.chaos import liveness
from tests.chaos.conftest import Arena, MakeArena

pytestmark = pytest.mark.timeout(300)

CALM = 20
HEALTHY = 60
STAGE = 20.0
"""Seconds of partial faults: the orders arrive in the first five, then there is time for the
longest wait that the invariant allows."""


def test_poisoned_requests_and_10_percent_refused_delay_no_healthy_work(make_arena: MakeArena):
    arena = make_arena()
    _run(arena, refused=0.1, poisoned=5)
    left = arena.check()
    assert all(row.status == "completed" for row in left.rows)


def test_50_percent_refused_delay_no_healthy_work(make_arena: MakeArena):
    arena = make_arena()
    _run(arena, refused=0.5, poisoned=0)
    arena.check()


def _run(arena: Arena, *, refused: float, poisoned: int) -> None:
    """Measure calm waits, then let orders arrive under partial faults, then end the faults."""
    arena.workers(2)
    arena.strikes.stage("calm")
    arena.ask(CALM, wishes="seconds=60")
    arena.submitted(CALM)

    arena.strikes.stage("partial")
    end = time.monotonic() + STAGE
    arena.ask(poisoned, poisoned=True)
    arena.sim.fault("submit", "service_busy", probability=refused)
    for _ in range(10):
        arena.ask(HEALTHY // 10, wishes="seconds=60")
        time.sleep(0.5)
    # Poisoned requests have no task.
    while len(arena.sim.tasks()) < CALM + HEALTHY and time.monotonic() < end:
        time.sleep(0.2)
    arena.strikes.stage("all")
    arena.sim.clear_faults()
    arena.at_rest(120.0)

    found = liveness.measure(arena.remains())
    print(f"\nhealthy waits: {found.summary()}")  # noqa: T201  (the figure is asked for)
    assert len(found.judged) >= HEALTHY
