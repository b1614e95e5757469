"""The tables of `tests/protections` are true: each text stands where it says, each test exists."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import get_args

import pytest

from tests.protections.inventory import INVENTORY, Proven
from tests.protections.protection import ROOT, Protection
from tests.protections.removals import PROTECTIONS
from worker.crash_points import CrashPoint

NAMES = {one.name for one in PROTECTIONS}


@cache
def _tests_of(file: str) -> frozenset[str]:
    """The tests of a file: `test_x`, or `TestClass::test_x`."""
    return frozenset(_named(ast.parse((ROOT / file).read_text()).body))


def _named(body: list[ast.stmt], within: str = "") -> Iterator[str]:
    for node in body:
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            yield within + node.name
        elif isinstance(node, ast.ClassDef):
            yield from _named(node.body, f"{node.name}::")


def missing(tests: tuple[str, ...]) -> list[str]:
    """Those of the tests that do not exist."""
    found = []
    for test in tests:
        file, _, rest = test.partition("::")
        name = rest.partition("[")[0]
        if not (ROOT / file).is_file() or name not in _tests_of(file):
            found.append(test)
    return found


@pytest.mark.parametrize("one", PROTECTIONS, ids=lambda one: one.name)
def test_a_protection_stands_where_it_is_said_to(one: Protection, tmp_path: Path):
    for edit in one.edits:
        copy = tmp_path / edit.file
        if not copy.exists():
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_text((ROOT / edit.file).read_text())
        edit.apply(tmp_path)
    for edit in one.edits:
        if edit.file.endswith(".py"):
            ast.parse((tmp_path / edit.file).read_text())
    assert isinstance(one.tests, tuple)
    assert missing(one.tests) == []


def test_names_are_used_once():
    assert len(NAMES) == len(PROTECTIONS)


@pytest.mark.parametrize("one", INVENTORY, ids=lambda one: f"{one.where}: {one.what}"[:70])
def test_what_must_be_tested_is(one: Proven):
    assert one.tests
    assert missing(one.tests) == []
    assert set(one.removals) <= NAMES


def test_every_crash_point_has_its_test_and_a_removal_that_it_notices():
    proven = {one.what: one for one in INVENTORY if one.where == "crash point"}
    assert set(proven) == set(get_args(CrashPoint))
    noticed = {test for p in PROTECTIONS for test in p.tests}
    for point, one in proven.items():
        assert one.removals, point
        assert set(one.tests) & noticed, point
