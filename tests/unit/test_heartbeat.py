"""What a heartbeat stands for: an outage makes nobody ill, standing still does."""

import threading

import pytest

from tests.waiting import wait_for
from worker import heartbeat
from worker.heartbeat import STUCK, Heartbeat, all_stuck


@pytest.mark.parametrize(
    ("since", "stuck"),
    [
        ({}, False),
        ({1: 0.0}, False),  # another thread is free
        ({1: 0.0, 2: 0.0}, True),
        ({1: 0.0, 2: STUCK}, False),  # this one has just begun
    ],
)
def test_all_threads_have_to_be_at_it_for_too_long(since, stuck):
    assert all_stuck(2, since, STUCK + 1) is stuck


def test_a_thread_counts_while_it_is_at_its_task():
    begun, go = threading.Event(), threading.Event()

    def work() -> None:
        heartbeat.task_begins()
        begun.set()
        go.wait(30)
        heartbeat.task_ends()

    thread = threading.Thread(target=work)
    thread.start()
    assert begun.wait(30)
    assert thread.ident in heartbeat.busy
    go.set()
    thread.join()
    assert thread.ident not in heartbeat.busy


def test_a_beat_touches_the_file_but_not_while_all_threads_are_stuck(tmp_path, monkeypatch):
    file = tmp_path / "beat"
    one = Heartbeat(file, 1, lambda: False)
    monkeypatch.setattr(heartbeat, "busy", {1: float("-inf")})
    one.beat()
    assert not file.exists()
    monkeypatch.setattr(heartbeat, "busy", {})
    one.beat()
    assert file.exists()


@pytest.mark.parametrize("away", [True, False])
def test_standing_still_is_excused_by_an_outage_alone(tmp_path, away):
    file, asked = tmp_path / "beat", []

    def outage() -> bool:
        asked.append(1)
        return away

    one = Heartbeat(file, 1, outage, still=0.05)
    one.beat()
    file.unlink()
    one.start()
    try:
        wait_for(lambda: len(asked) >= 3, "the servers are asked")
        if away:
            wait_for(file.exists, "it is touched in place of the dispatcher")
        else:
            assert not file.exists()
    finally:
        one.stop()


def test_before_the_first_beat_nothing_is_excused(tmp_path):
    one = Heartbeat(tmp_path / "beat", 1, lambda: pytest.fail("asked"), still=0.01)
    one.start()
    one._thread.join(0.2)
    one.stop()
    assert not (tmp_path / "beat").exists()
