"""The tests are shared among processes so that none misses what its file set up once."""

from pathlib import Path

import pytest

from tests.sharing import ONE_BY_ONE, folder

TESTS = Path(__file__).parents[1]


@pytest.mark.parametrize("name", ONE_BY_ONE)
def test_what_is_handed_out_singly_sets_up_nothing_for_a_whole_file(name: str):
    files = list((TESTS / name).glob("*.py"))
    assert files
    for file in files:
        for scope in ("module", "class", "package"):
            assert f'scope="{scope}"' not in file.read_text(), file.name


def test_a_tests_folder():
    assert folder("tests/chaos/test_clock.py::test_x[a/b::c]") == "chaos"
