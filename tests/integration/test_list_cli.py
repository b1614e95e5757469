"""`seedance list` against a database."""

import json

import pytest

from models import intake
from tests.integration.conftest import new_generation, text_request
from worker.cli import run


@pytest.fixture
def listing(rt, environment, monkeypatch, tmp_path, capsys):
    """Call it with three generations there: what it printed, and what it said beside that."""
    monkeypatch.chdir(tmp_path)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with rt.engine.begin() as conn:
        for n in range(3):
            intake.accept(conn, new_generation(text_request(f"cat {n}")))

    def call(*argv):
        capsys.readouterr()
        assert run(["list", *argv]) == 0
        return capsys.readouterr()

    return call


def test_who_sees_a_part_is_told_so(listing):
    shown = listing("--limit", "2", "--json")
    assert len(json.loads(shown.out)) == 2
    assert shown.err == "these are the newest 2, there are more: --limit\n"


def test_who_sees_all_is_told_nothing_else(listing):
    shown = listing("--limit", "3", "--json")
    assert len(json.loads(shown.out)) == 3
    assert shown.err == ""
