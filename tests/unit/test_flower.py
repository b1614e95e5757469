"""How Flower is run: never open to anybody, and the same after a restart."""

import os
import stat
import sys

import pytest
from celery import Celery

from worker import flower
from worker.broker_address import normalise
from worker.cli import run

GIVEN = {"FLOWER_BASIC_AUTH": "ana:correct horse,ben:battery staple"}


def test_a_given_login_is_taken_and_written_nowhere(tmp_path):
    folder = tmp_path / "flower"
    assert flower.login(folder, GIVEN) == flower.Login(GIVEN["FLOWER_BASIC_AUTH"])
    assert not folder.exists()


def test_a_login_may_come_from_a_file(tmp_path):
    file = tmp_path / "secret"
    file.write_text("ana:correct horse\n")
    given = {"FLOWER_BASIC_AUTH_FILE": str(file)}
    assert flower.login(tmp_path / "flower", given).credentials == "ana:correct horse"
    file.write_text("ana:change-me\n")
    with pytest.raises(flower.LoginError):
        flower.login(tmp_path / "flower", given)


@pytest.mark.parametrize("environ", [{}, {"FLOWER_BASIC_AUTH": ""}, {"FLOWER_BASIC_AUTH": "  "}])
def test_without_one_it_is_made_once_and_only_its_owner_reads_it(tmp_path, environ):
    folder = tmp_path / "flower"
    first = flower.login(folder, environ)
    again = flower.login(folder, environ)
    assert (first.fresh, again.fresh) == (True, False)
    assert first.credentials == again.credentials
    user, _, password = first.credentials.partition(":")
    assert (user, len(password) >= 20) == ("operator", True)
    assert first.kept_in is not None
    assert stat.S_IMODE(first.kept_in.stat().st_mode) == 0o600
    assert flower.login(tmp_path / "another", environ).credentials != first.credentials


@pytest.mark.parametrize(
    "given",
    ["operator:change-me", "operator:short", "operator", ":longenough", "a:longenough,b:x", ",,,"],
)
def test_a_login_that_anybody_could_guess_is_refused_without_quoting_it(tmp_path, given):
    with pytest.raises(flower.LoginError, match="FLOWER_BASIC_AUTH") as refused:
        flower.login(tmp_path, {"FLOWER_BASIC_AUTH": given})
    assert "at least 8 characters" in str(refused.value)
    assert given not in str(refused.value)


def test_its_memory_is_bounded_and_survives_a_restart(tmp_path):
    login = flower.login(tmp_path, {})
    made = flower.environment(tmp_path, "redis://h/0", login, {})
    assert made == flower.environment(tmp_path, "redis://h/0", login, {}), "cookies stay good"
    assert len(made["FLOWER_COOKIE_SECRET"]) >= 32
    assert made["FLOWER_PERSISTENT"] == "true"
    assert made["FLOWER_DB"].startswith(str(tmp_path))
    assert int(made["FLOWER_STATE_SAVE_INTERVAL"]) >= 10_000
    assert int(made["FLOWER_MAX_TASKS"]) <= 50_000
    assert int(made["FLOWER_PURGE_OFFLINE_WORKERS"]) > 0


def test_what_a_user_sets_holds(tmp_path):
    given = {"FLOWER_MAX_TASKS": "7", "FLOWER_COOKIE_SECRET": "mine", "FLOWER_DB": "/elsewhere"}
    made = flower.environment(tmp_path, "redis://h/0", flower.login(tmp_path, {}), given)
    assert {**given, **made} == {**made, **given}
    assert not (tmp_path / "cookie-secret").exists()


def test_every_variable_is_one_of_flowers_own():
    """Flower passes over what it does not know."""
    from flower.options import default_options

    names = [*flower.SETTINGS, flower.LOGIN, flower.COOKIE_SECRET, "FLOWER_DB"]
    known = set(default_options.as_dict())
    assert {name.removeprefix("FLOWER_").lower() for name in names} <= known


def test_no_password_stands_in_the_command_line():
    line = " ".join(flower.command("127.0.0.1", 5555, "--url-prefix=/flower"))
    assert line.endswith(
        "flower --address=127.0.0.1 --port=5555 --logging=warning --url-prefix=/flower"
    )
    assert "auth" not in line
    assert "redis" not in line


@pytest.mark.parametrize("command", [["flower"], ["up"]])
def test_a_weak_login_is_refused_before_anything_starts(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FLOWER_BASIC_AUTH", "operator:change-me")
    monkeypatch.setattr(os, "execve", lambda *_: pytest.fail("it was started"))
    assert run(command) == 2
    assert "FLOWER_BASIC_AUTH" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_flower_finds_the_master_that_sentinels_name(tmp_path, monkeypatch):
    """An address can't say it all: Flower's own client reads the rest from a module."""
    url = "sentinel://:first-word@a:1/0?master_name=videos;sentinel://b:2"
    given = normalise(url)
    made = flower.environment(tmp_path, given, flower.login(tmp_path, {}), {})
    assert made["CELERY_BROKER_URL"] == "sentinel://:first-word@a:1/0;sentinel://:first-word@b:2/0"
    for name, value in made.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delitem(sys.modules, "worker.flower_broker", raising=False)
    with Celery(set_as_current=False, loader="default") as client:
        assert client.conf.broker_transport_options["master_name"] == "videos"
        assert client.connection().virtual_host == "0"
