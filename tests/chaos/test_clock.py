"""Clocks of workers are wrong by minutes. Due times and stamps come from the database's clock."""

import pytest

from tests.chaos.conftest import MakeArena


@pytest.mark.parametrize("shift", [300.0, -300.0])
def test_a_worker_whose_clock_is_minutes_off(shift: float, make_arena: MakeArena):
    # Each looks for itself: the task list is read by whoever comes first.
    arena = make_arena(SEEDANCE_OBSERVE_FROM="0")
    arena.fleet.add_worker(CHAOS_CLOCK_SHIFT=str(shift))
    arena.workers(1)
    arena.ask_mixed(12)

    seconds = arena.at_rest()

    # Nobody waited for minutes, and the odd one did its share.
    assert seconds < 60
    log = arena.fleet.workers[0].text()
    assert "is completed" in log
    left = arena.check()
    created = [event["at"] for row in left.rows for event in row.events]
    assert (max(created) - min(created)).total_seconds() < 60


@pytest.mark.parametrize("shift", [300.0, -300.0])
def test_the_task_list_is_read_by_a_clock_that_is_minutes_off(shift: float, make_arena: MakeArena):
    arena = make_arena()
    arena.fleet.add_worker(CHAOS_CLOCK_SHIFT=str(shift))
    arena.ask_mixed(12)

    assert arena.at_rest() < 60
    assert arena.sim.received("list") > 0
    assert '"stage": "observe"' in arena.fleet.workers[0].text()
    arena.check()


def test_a_clock_ahead_takes_no_more_than_its_share_of_the_request_rate(make_arena: MakeArena):
    arena = make_arena(SEEDANCE_RATE_LIMIT="10/second", SEEDANCE_OBSERVE_FROM="0")
    arena.fleet.add_worker(CHAOS_CLOCK_SHIFT="300")
    arena.workers(1)
    arena.ask(14, wishes="seconds=300")

    arena.at_rest()

    looked = arena.fleet.workers[1].text().count("is completed")
    assert looked >= 2, "the worker with the right clock got no token"
    arena.check()
