"""Several pages at a time: how many, in which order, and what becomes of an error."""

import threading
from itertools import count
from typing import Any

import pytest

from worker import reading_ahead


@pytest.mark.parametrize(
    ("latency", "applying", "per_second", "expected"),
    [
        (0.01, 0.01, 1000, 1),  # quick answers are not worth a thread
        (0.3, 0.01, 1000, 8),  # at most so many
        (0.3, 0.1, 1000, 4),  # while one is applied three others travel
        (0.3, 0.01, 20, 6),  # the rate lets no more through
        (0.3, 0.01, 0.5, 1),
        (5.0, 0.0, 1000, 8),
    ],
)
def test_as_many_as_latency_hides_and_the_rate_lets_through(
    latency: float, applying: float, per_second: float, expected: int
):
    assert reading_ahead.width(latency, applying, per_second) == expected


class Shelf:
    """Pages that are their numbers, read by hand."""

    def __init__(self, wide: int, last: int = 20) -> None:
        self.wide, self.last = wide, last
        self.together = threading.Barrier(wide)
        self.read: list[int] = []

    def page(self, number: int) -> Any:
        if self.wide > 1:
            # None is answered before so many are asked for.
            self.together.wait(30)
        self.read.append(number)
        if number == 13:
            raise LookupError(number)
        return number


def test_pages_come_in_order_however_many_are_under_way():
    shelf = Shelf(3)
    with reading_ahead.reader(shelf.page) as pages:
        assert list(pages(range(1, 13), lambda: 3)) == list(range(1, 13))


def test_one_at_a_time_is_read_when_it_is_asked_for():
    shelf = Shelf(1)
    with reading_ahead.reader(shelf.page) as pages:
        answers = pages(count(1), lambda: 1)
        assert [next(answers), next(answers)] == [1, 2]
    assert shelf.read == [1, 2]


def test_an_error_comes_in_its_turn():
    shelf = Shelf(2)
    with reading_ahead.reader(shelf.page) as pages:
        answers = pages(range(9, 21), lambda: 2)
        assert [next(answers) for _ in range(4)] == [9, 10, 11, 12]
        with pytest.raises(LookupError):
            next(answers)


def test_what_is_over_asks_for_nothing_more():
    shelf = Shelf(1)
    wanted = iter([1, 1, 0])
    with reading_ahead.reader(shelf.page) as pages:
        assert list(pages(count(1), lambda: next(wanted))) == [1, 2]
