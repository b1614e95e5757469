"""What the command line says to wrong usage, without any service."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from worker.cli import COMMANDS, run


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No running service is near, and logging is as it was afterwards."""
    monkeypatch.chdir(tmp_path)
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    yield
    root.handlers[:] = before
    root.setLevel(level)


def test_the_commands_are_those_that_were_promised() -> None:
    names = "demo up migrate worker beat generate show list watch cancel balance cost budget"
    names += " reconcile resolve doctor simulator gateway metrics retry pause resume history"
    names += " notices flower"
    assert set(COMMANDS) == set(names.split())


@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "simulator"])
def test_each_command_teaches_by_an_example(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([command, "--help"]) == 0
    assert "Example" in capsys.readouterr().out


def test_the_simulator_explains_its_own_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["simulator", "--help"]) == 0
    assert "--speed" in capsys.readouterr().out


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"\n  {name} " in shown for name in COMMANDS)


TEXT = ["generate", "--text", "a cat"]


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["nonsense"], "nonsense"),
        (["generate"], "nothing to generate from"),
        ([*TEXT, "--nope"], "--nope"),
        ([*TEXT, "--duration", "99"], "duration is 99; allowed: a whole number of seconds"),
        ([*TEXT, "--duration", "soon"], "soon"),
        ([*TEXT, "--model", "seedance-9"], "model is 'seedance-9'; allowed: one of"),
        ([*TEXT, "--ratio", "wide"], "ratio is 'wide'"),
        ([*TEXT, "--metadata", "[1]"], "--metadata is list in JSON; allowed: an object"),
        ([*TEXT, "--metadata", "{"], "--metadata is no JSON"),
        ([*TEXT, "--image", "no-such.png"], "--image is 'no-such.png'; allowed: a file"),
        ([*TEXT, "--request", "-"], "--request holds the whole request"),
        (["generate", "--request", "no-such.json"], "no-such.json"),
        (["list", "--status", "sleeping"], "sleeping"),
        (["list", "--limit", "0"], "0"),
        ([*TEXT, "--notify-task", "shop.done"], "notify.queue is None; allowed: the name of a"),
        ([*TEXT, "--notify-on", "end"], "notify is"),
        ([*TEXT, "--notify-webhook", "http://h.example/"], "notify.webhook is 'http://h.example/'"),
        ([*TEXT, "--notify-webhook", "https://10.0.0.1/"], "SEEDANCE_ALLOW_PRIVATE_WEBHOOKS"),
        (["notices", "resend"], "name notices, or give --dead"),
        (["notices", "resend", "--receiver", "queue:x", "some"], "goes with --dead"),
        (["notices", "list", "--status", "lost"], "lost"),
        (["show"], "ID"),
        (["cancel"], "ID"),
        (["retry"], "ID"),
        (["retry", "--error-class", "shrug"], "shrug"),
        (["list", "--waits-for", "godot"], "godot"),
        (["list", "--since", "1h", "--until", "2h"], "--until is '2h'; allowed: a time after"),
        (["pause"], "--reason"),
        (["pause", "--reason", " "], "reason is ' '; allowed: printable text"),
        (["pause", "--reason", "x", "--tenant", ""], "tenant is ''; allowed: printable text"),
        (["resume", "--by", "a\nb"], "by is"),
        (["history", "--since", "soon"], "--since is 'soon'; allowed: a date"),
        (["history", "--action", "shrug"], "shrug"),
        (["cost", "--since", "yesterday"], "--since is 'yesterday'; allowed: a date"),
        (["cost", "--until", "soon"], "--until is 'soon'; allowed: a date"),
        (["cost", "--since", "2d", "--until", "3d"], "--until is '3d'; allowed: a time after"),
        (["cost", "--json", "--csv"], "choose one"),
        (["budget", "set", "acme", "week", "5"], "period is 'week'; allowed: day, month"),
        (["budget", "set", "acme", "day", "some"], "amount is 'some'; allowed: credits"),
        (
            ["budget", "set", "acme", "day", "5", "--policy", "shrug"],
            "policy is 'shrug'; allowed: refuse or wait",
        ),
        (["budget", "set", " \n", "day", "5"], "tenant"),
        (["budget", "remove", "acme", "year"], "period is 'year'"),
        (["resolve", "x"], "one of --adopt TASK, --resubmit and --fail"),
        (["resolve", "x", "--fail", "--resubmit"], "one of --adopt TASK"),
        (["resolve", "x", "--fail", "--attempt", "0"], "0"),
        (["worker", "--concurrency", "0"], "0"),
        (["watch", "--every", "0"], "0"),
        (["list"], "SEEDANCE_DATABASE_URL is not set"),
        (["migrate"], "SEEDANCE_DATABASE_URL is not set"),
        (["balance"], "SEEDANCE_DATABASE_URL is not set"),
    ],
)
def test_wrong_usage_is_told_in_one_line(
    argv: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(argv) == 2
    shown = capsys.readouterr()
    assert says in shown.err
    assert shown.err.count("\n") == 1
    assert shown.out == ""


def test_wrong_settings_are_told_a_line_each(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SEEDANCE_DATABASE_URL", "mysql://somewhere")
    monkeypatch.setenv("SEEDANCE_LEASE", "long")
    assert run(["balance"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert {line.split()[0] for line in said} == {
        "SEEDANCE_API_KEY",
        "SEEDANCE_DATABASE_URL",
        "SEEDANCE_LEASE",
    }


def test_no_simulator_for_a_database_of_others(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SEEDANCE_DATABASE_URL", "postgresql://me@db/videos")
    assert run(["up"]) == 2
    assert "say --simulator if that is meant" in capsys.readouterr().err


def test_up_refuses_wrong_settings_before_it_starts_anything(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("SEEDANCE_POLL_MIN", "often")
    assert run(["up"]) == 2
    assert "SEEDANCE_POLL_MIN" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
