"""How many generations share transactions: by how fast the provider takes them."""

from worker.pace import MOST, Pace


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
