"""`seedance budget` against a database."""

import json
from collections.abc import Callable

import pytest

from worker.cli import run

Cli = Callable[..., str]


@pytest.fixture
def cli(rt, environment, monkeypatch, tmp_path, capsys) -> Cli:
    monkeypatch.chdir(tmp_path)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    def call(*argv: str) -> str:
        capsys.readouterr()
        assert run(list(argv)) == 0
        return capsys.readouterr().out

    return call


def test_a_raised_budget_keeps_what_becomes_of_those_over_it(cli):
    """Who raises it for what waits must not have the next request refused."""
    assert "(day, refuse)" in cli("budget", "set", "acme", "day", "5")
    assert "(day, wait)" in cli("budget", "set", "acme", "day", "5", "--policy", "wait")
    assert "(day, wait)" in cli("budget", "set", "acme", "day", "500")
    assert "(month, refuse)" in cli("budget", "set", "acme", "month", "500")
    assert "(day, refuse)" in cli("budget", "set", "acme", "day", "500", "--policy", "refuse")
    kept = json.loads(cli("budget", "list", "--tenant", "acme", "--json"))
    assert {(one["period"], one["policy"]) for one in kept} == {
        ("day", "refuse"),
        ("month", "refuse"),
    }
