"""The threat page: each point names the tests that show it, and they exist."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "threats.md").read_text()
POINTS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in PAGE.splitlines()
    if line.startswith("|") and not line.startswith(("|---", "| it could", "| they could"))
]


@cache
def names_in(path: str) -> frozenset[str]:
    tree = ast.parse((ROOT / path).read_text())
    return frozenset(node.name for node in tree.body if isinstance(node, ast.FunctionDef))


def test_there_are_points():
    assert len(POINTS) > 25


@pytest.mark.parametrize("point", POINTS, ids=lambda point: point[0][:40])
def test_each_point_names_tests_that_exist(point):
    threat, stop, shown = point
    assert threat
    assert stop
    named = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", shown)
    assert named
    assert re.sub(r"`tests/[\w/]+\.py::test_\w+`[, ]*", "", shown) == ""
    for path, test in named:
        assert test in names_in(path), f"{path} has no {test}"
