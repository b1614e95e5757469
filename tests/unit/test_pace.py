"""How many generations share transactions, and how many threads: by how fast the provider is."""

import threading

import pytest

from worker import pace as module
from worker.pace import MOST, Pace


@pytest.fixture
def quick():
    """POSTs take a millisecond: one thread is enough."""
    pace = Pace()
    for _ in range(60):
        pace.took(0.001)
    return pace


class Visitor:
    """A thread that takes a turn, and stays until it is let go."""

    def __init__(self, pace):
        self._pace, self.inside, self.let_go = pace, threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self):
        with self._pace.turn():
            self.inside.set()
            assert self.let_go.wait(30)

    def leave(self):
        self.let_go.set()
        self._thread.join(30)
        assert not self._thread.is_alive()


def test_before_anything_is_known_each_goes_by_itself():
    assert Pace().most == Pace().least == 1


def test_where_posts_are_quick_many_share_and_there_is_a_bound():
    pace = Pace()
    for _ in range(60):
        pace.took(0.002)
    assert pace.most == MOST


def test_where_posts_become_slow_each_goes_by_itself_again():
    pace = Pace()
    for _ in range(60):
        pace.took(0.0)
    assert pace.most == pace.least == MOST
    for _ in range(20):
        pace.took(1.0)
    assert pace.most == 1


def test_posts_that_a_busy_machine_drew_out_change_little():
    pace = Pace()
    for _ in range(60):
        pace.took(0.005)
    for _ in range(3):
        pace.took(0.1)
    assert pace.most == MOST


def test_in_between_as_many_as_half_a_second_takes():
    pace = Pace()
    for _ in range(60):
        pace.took(0.1)
    assert pace.most in (4, 5)
    assert pace.least == 1


def test_one_post_in_ten_that_no_thread_drew_out_tells_how_long_they_take():
    pace = Pace()
    for _ in range(60):
        for _ in range(9):
            pace.took(0.06)
        pace.took(0.005)
    assert pace.most == pace.least == MOST


def test_before_anything_is_known_all_threads_submit(quick):
    assert Pace().threads == 100
    assert quick.threads == 1


def test_where_posts_are_quick_threads_take_turns(quick, monkeypatch):
    monkeypatch.setattr(module, "WITHIN", 30.0)
    first = Visitor(quick)
    assert first.inside.wait(30)
    second = Visitor(quick)
    while quick.room() == 7:
        second.inside.wait(0.001)  # until it is counted
    assert not second.inside.is_set()
    first.leave()
    assert second.inside.wait(30)
    second.leave()
    assert quick.room() == 8


def test_where_posts_take_long_nobody_waits_for_a_turn():
    pace = Pace()
    visitors = [Visitor(pace) for _ in range(8)]
    for one in visitors:
        assert one.inside.wait(30)
    for one in visitors:
        one.leave()


def test_a_turn_that_does_not_end_holds_nobody_up_for_long(quick, monkeypatch):
    monkeypatch.setattr(module, "WITHIN", 0.01)
    first, second = Visitor(quick), Visitor(quick)
    assert first.inside.wait(30)
    assert second.inside.wait(30), "they wait for the provider, not for a processor"
    first.leave()
    second.leave()


def test_a_turn_that_fails_is_over(quick):
    with pytest.raises(KeyError), quick.turn():
        raise KeyError
    assert quick.room() == 8
