"""Workers and beats die, are missing, or are there twice."""

import signal
import time

import pytest

from models.lifecycle import IN_DOUBT, Status
from tests.chaos.conftest import Arena, MakeArena, wait_for
from tests.chaos.plan import TIMES

LEASE = float(TIMES["SEEDANCE_LEASE"])
SETTLE = sum(
    float(TIMES[f"SEEDANCE_{name}"])
    for name in ("SEND_BUDGET", "LATE_CREATION", "LIST_LAG", "SETTLE_MARGIN")
)
SLACK = 6.0
"""Seconds for a tick, a message and a busy machine."""


def test_after_all_workers_were_killed_everything_moves_within_one_lease(make_arena: MakeArena):
    """What was in doubt moves when it is settled: before that nobody may touch it."""
    arena = make_arena()
    arena.sim.fault("get", "delay_after", probability=0.5, seconds=1.0)
    arena.sim.fault("submit", "delay_after", times=3, after=15, seconds=1.0)
    arena.workers(3)
    arena.ask(24, wishes="seconds=600")
    wait_for(lambda: _running(arena) >= 15, "they run")

    arena.fleet.supervised = False
    killed_at = time.monotonic()
    arena.strikes.kill_all_workers()
    held = {row.id: row for row in arena.sql("SELECT id, status, lease FROM generations")}
    arena.fleet.supervised = True
    wait_for(lambda: any(worker.ready() for worker in arena.fleet.workers), "one is back")
    back = time.monotonic() - killed_at
    moved: dict[object, float] = {}

    def all_moved() -> bool:
        for row in arena.sql("SELECT id, lease, finished_at FROM generations"):
            if row.lease > held[row.id].lease or row.finished_at is not None:
                moved.setdefault(row.id, time.monotonic() - killed_at)
        return len(moved) == len(held)

    wait_for(all_moved, "all have moved")
    doubtful = [at for one, at in moved.items() if held[one].status in IN_DOUBT]
    others = [at for one, at in moved.items() if held[one].status not in IN_DOUBT]
    print(  # noqa: T201  (the figure is asked for)
        f"\nafter kill -9 of all workers: the first is back after {back:.1f} s; the last of"
        f" {len(others)} generations moves after {max(others):.1f} s (lease {LEASE:g} s), the last"
        f" of {len(doubtful)} in doubt after {max(doubtful, default=0):.1f} s (settled after"
        f" {SETTLE:g} s)"
    )
    assert max(others) <= max(LEASE, back) + SLACK
    assert max(doubtful, default=0.0) <= max(SETTLE, back) + SLACK
    arena.sim.clear_faults()
    arena.at_rest()
    arena.check()


def _running(arena: Arena) -> int:
    [row] = arena.sql("SELECT count(*) AS n FROM generations WHERE status = 'running'")
    return int(row.n)


def test_sigterm_in_the_middle_of_uploads_hands_the_work_on_at_once(make_arena: MakeArena):
    """With a lease of ten minutes: whoever had to wait for its end would never be done."""
    # No upload is given up for slowness either, and sent again.
    arena = make_arena(SEEDANCE_LEASE="600", SEEDANCE_HTTP_TIMEOUT="20")
    arena.sim.fault("put", "delay_before", seconds=0.8)
    arena.workers(2)
    for number in range(8):
        arena.ask(1, path=arena.picture(f"b{number}-r{number}.jpg"))
    arena.ask(8, wishes="seconds=300")
    wait_for(lambda: arena.sim.received("put") >= 2, "uploads are on their way")

    arena.fleet.supervised = False
    stopped_at = time.monotonic()
    leaving = arena.fleet.workers[0]
    arena.strikes.stop_worker(0)
    wait_for(lambda: leaving.returncode is not None, "the worker has left")
    left_after = time.monotonic() - stopped_at
    rest = arena.at_rest()

    print(  # noqa: T201  (the figure is asked for)
        f"\nSIGTERM amid uploads: the worker has left after {left_after:.1f} s, all its work is"
        f" done by the other {rest:.1f} s later"
    )
    assert leaving.returncode == 0
    left = arena.check()
    assert all(row.status == Status.COMPLETED for row in left.rows)
    assert sum(upload["puts"] for upload in left.uploads) == 8


@pytest.mark.parametrize("beats", [0, 2])
def test_without_a_beat_and_with_two(beats: int, make_arena: MakeArena):
    arena = make_arena(SEEDANCE_RECONCILE_EVERY="1", SEEDANCE_BALANCE_EVERY="1")
    for _ in range(beats):
        arena.fleet.add_beat()
    arena.workers(2)
    arena.ask_mixed(8)
    arena.sim.change_account(arena.sim.api_key, enabled=False)
    arena.ask_mixed(6)
    opened = "SELECT 1 FROM breakers WHERE opened_at IS NOT NULL"
    wait_for(lambda: arena.sql(opened), "a breaker opens")
    arena.sim.change_account(arena.sim.api_key, enabled=True)

    arena.at_rest()

    lists = arena.sim.received("list")
    assert beats == 0 or lists >= 3
    assert "nobody" not in arena.fleet.workers[0].text()
    arena.check()


def test_two_dispatchers_on_every_tick(make_arena: MakeArena):
    arena = make_arena(SEEDANCE_TICK="0.02")
    arena.workers(2)
    arena.ask_mixed(16)
    arena.at_rest()
    left = arena.check()
    # Each generation was admitted once, whoever came first.
    for row in left.rows:
        admitted = [event for event in row.events if event["event"] == "admit"]
        assert len(admitted) == 1, row


@pytest.mark.parametrize("pool", ["threads", "prefork"])
def test_a_poison_generation_ends_failed_and_takes_no_other_along(pool: str, make_arena: MakeArena):
    """Whichever process begins it dies at once, as for want of memory."""
    arena = make_arena(SEEDANCE_MAX_TRIES="3", SEEDANCE_LEASE="3")
    for _ in range(2):
        arena.fleet.add_worker(pool=pool, CHAOS_POISON="poison-r0.jpg")
    arena.fleet.wait_ready(60)
    arena.ask(1, path=arena.picture("poison-r0.jpg"))
    arena.ask(10, wishes="seconds=400")
    arena.ask(2, path=arena.picture("good-r11.jpg"))

    arena.at_rest()

    left = arena.check()
    poisoned, *others = left.rows
    assert (poisoned.status, poisoned.error_code) == (Status.FAILED, "WORKER_LOST")
    assert [row.status for row in others] == [Status.COMPLETED] * 12
    if pool == "threads":
        deaths = [n for n in arena.journal.of("restart") if f"{-signal.SIGKILL}" in n.detail]
        assert len(deaths) >= 2
