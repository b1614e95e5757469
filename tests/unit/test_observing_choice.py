"""The task list or a GET for each: the arithmetic of the choice."""

import pytest

from models.observing import choice


@pytest.mark.parametrize("soon", [*range(12), 99, 100, 101, 5_000])
def test_so_many_gets_outweigh_the_list_for_just_so_many_tasks(soon):
    most = choice.outweighed(soon)
    assert choice.engage(soon, most, least=1) is (soon > 2), "two pages are read at least"
    assert not choice.engage(soon, most + 1, least=1)
