"""Secrets from files: read as from the environment, never both, never shown."""

import importlib.util
import os
from pathlib import Path
from types import ModuleType

import pytest

from models.secret_files import MOST_BYTES
from tests.unit.test_settings import NEEDED, SECRET, WHSEC
from worker import producer_database, variables
from worker.cli.context import database_url
from worker.redaction import CUT, of_environment
from worker.settings import SettingsError, load_settings, unknown_variables
from worker.stack import only
from worker.variables import FILES, adopt, over

VALUES = {
    "SEEDANCE_API_KEY": SECRET,
    "SEEDANCE_DATABASE_URL": "postgresql+psycopg://u:pass-word@h/db",
    "SEEDANCE_BROKER_URL": "redis://:broker-pass@h:6379/0",
    "SEEDANCE_RATE_LIMIT_URL": "redis://:store-pass@h:6379/1",
    "SEEDANCE_WEBHOOK_SECRETS": f"{WHSEC} {WHSEC}",
    "SEEDANCE_METRICS_TOKEN": "a-token-of-a-scraper",
}


def shown(settings, name: str) -> str:
    value = getattr(settings, name.removeprefix("SEEDANCE_").lower())
    return value if isinstance(value, str) else value.get_secret_value()


def in_file(folder: Path, variable: str, content: str | bytes | None = None) -> dict[str, str]:
    """An environment in which a secret comes from a file."""
    file = folder / variable.lower()
    file.write_bytes(
        content if isinstance(content, bytes) else (content or VALUES[variable]).encode()
    )
    given = {name: value for name, value in NEEDED.items() if name != variable}
    return given | {f"{variable}_FILE": str(file)}


def test_every_secret_setting_can_come_from_a_file():
    assert {f"{name}_FILE" for name in VALUES} == FILES


@pytest.mark.parametrize("end", ["", "\n", "\r\n", "\n\n", " \n"])
@pytest.mark.parametrize("variable", VALUES)
def test_a_secret_comes_from_its_file_without_what_editors_add(tmp_path, variable, end):
    settings = load_settings(in_file(tmp_path, variable, VALUES[variable] + end))
    assert shown(settings, variable) == VALUES[variable]


def test_webhook_secrets_may_stand_one_a_line(tmp_path):
    given = in_file(tmp_path, "SEEDANCE_WEBHOOK_SECRETS", f"{WHSEC}\n{WHSEC}\n")
    assert shown(load_settings(given), "SEEDANCE_WEBHOOK_SECRETS").split() == [WHSEC, WHSEC]


@pytest.mark.parametrize("variable", VALUES)
def test_both_are_refused(tmp_path, variable):
    given = in_file(tmp_path, variable) | {variable: VALUES[variable]}
    with pytest.raises(SettingsError) as caught:
        load_settings(given)
    assert str(caught.value) == f"{variable} is set, and so is {variable}_FILE: unset one of them"


@pytest.mark.parametrize("variable", VALUES)
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b" \n", "is empty"),
        (b"\xff\xfe\x00", "is not text in UTF-8"),
        (b"x" * (MOST_BYTES + 1), f"has over {MOST_BYTES} bytes"),
    ],
)
def test_a_file_that_holds_no_secret_is_refused_by_its_name(tmp_path, variable, content, said):
    with pytest.raises(SettingsError) as caught:
        load_settings(in_file(tmp_path, variable, content or b"\n"))
    told = str(caught.value)
    assert told.startswith(f"{variable}_FILE is '{tmp_path}")
    assert said in told
    assert len(told.splitlines()) == 1, "it is not also called unset"


def test_a_file_that_is_missing_or_no_file_is_refused(tmp_path):
    given = {**NEEDED, "SEEDANCE_METRICS_TOKEN_FILE": str(tmp_path / "gone")}
    with pytest.raises(SettingsError, match=r"can't be read: No such file or directory$"):
        load_settings(given)
    with pytest.raises(SettingsError, match=r"which is no regular file$"):
        load_settings(given | {"SEEDANCE_METRICS_TOKEN_FILE": str(tmp_path)})
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(SettingsError, match=r"which is no regular file$"):
        load_settings(given | {"SEEDANCE_METRICS_TOKEN_FILE": str(pipe)})
    with pytest.raises(SettingsError, match=r"can't be read: ValueError$"):
        load_settings(given | {"SEEDANCE_METRICS_TOKEN_FILE": "a\0b"})


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_refused(tmp_path):
    given = in_file(tmp_path, "SEEDANCE_API_KEY")
    Path(given["SEEDANCE_API_KEY_FILE"]).chmod(0)
    with pytest.raises(SettingsError, match=r"can't be read: Permission denied$"):
        load_settings(given)


@pytest.mark.parametrize(
    ("variable", "content"),
    [
        ("SEEDANCE_API_KEY", "two\nsecret-lines"),
        ("SEEDANCE_METRICS_TOKEN", "two-long-lines\nsecret-lines"),
        ("SEEDANCE_WEBHOOK_SECRETS", "secret-lines"),
        ("SEEDANCE_DATABASE_URL", "mysql://u:secret-lines@h/db"),
        ("SEEDANCE_BROKER_URL", "redis://:secret-lines@h\nredis://h"),
    ],
)
def test_what_a_file_says_wrongly_is_refused_and_not_shown(tmp_path, variable, content):
    with pytest.raises(SettingsError, match=f"^{variable} ") as caught:
        load_settings(in_file(tmp_path, variable, content))
    assert "secret-lines" not in str(caught.value)


def test_every_wrong_file_and_value_is_named_at_once(tmp_path):
    given = in_file(tmp_path, "SEEDANCE_API_KEY", "\n") | {"SEEDANCE_TICK": "x"}
    with pytest.raises(SettingsError) as caught:
        load_settings(given)
    assert [line.split()[0] for line in str(caught.value).splitlines()] == [
        "SEEDANCE_API_KEY_FILE",
        "SEEDANCE_TICK",
    ]


def test_names_of_files_are_known_settings():
    assert unknown_variables(dict.fromkeys(FILES, "x")) == []
    assert unknown_variables({"SEEDANCE_TICK_FILE": "x"}) == ["SEEDANCE_TICK_FILE"]


def celeryconfig() -> ModuleType:
    """Celery's settings as a new process would read them."""
    spec = importlib.util.find_spec("worker.celeryconfig")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_celery_reads_the_brokers_file_and_understands_it_as_the_settings_do(tmp_path, monkeypatch):
    monkeypatch.setenv("SEEDANCE_BROKER_URL_FILE", str(tmp_path / "broker"))
    (tmp_path / "broker").write_text("rediss://:pw@h:6380/0\n")
    assert celeryconfig().broker_url == "rediss://:pw@h:6380/0?ssl_cert_reqs=required"
    (tmp_path / "broker").write_text("http://:pass-word@h")
    with pytest.raises(SettingsError, match=r"^SEEDANCE_BROKER_URL has the scheme 'http'"):
        celeryconfig()
    monkeypatch.setenv("SEEDANCE_BROKER_URL", "redis://h")
    with pytest.raises(SettingsError, match=r"SEEDANCE_BROKER_URL is set, and so is"):
        celeryconfig()


def test_producers_and_commands_read_the_databases_file(tmp_path, monkeypatch):
    given = in_file(tmp_path, "SEEDANCE_DATABASE_URL")
    assert database_url(given) == VALUES["SEEDANCE_DATABASE_URL"]
    monkeypatch.setenv("SEEDANCE_DATABASE_URL_FILE", given["SEEDANCE_DATABASE_URL_FILE"])
    engine = producer_database.engine()
    assert engine.url.render_as_string(hide_password=False) == VALUES["SEEDANCE_DATABASE_URL"]
    monkeypatch.setenv("SEEDANCE_DATABASE_URL_FILE", str(tmp_path / "gone"))
    with pytest.raises(SettingsError, match=r"SEEDANCE_DATABASE_URL_FILE is"):
        producer_database.engine()


def test_what_came_from_a_file_is_cut_from_logs_as_well(tmp_path):
    given = {}
    for variable in VALUES:
        given |= in_file(tmp_path, variable)
    redactor = of_environment({name: given[name] for name in FILES})
    for secret in (SECRET, "pass-word", "broker-pass", "a-token-of-a-scraper"):
        assert redactor.text(f"said {secret} there") == f"said {CUT} there"
    # A file that is gone must not keep a process from logging.
    assert of_environment({"SEEDANCE_API_KEY_FILE": str(tmp_path / "gone")}).text("x") == "x"


def test_a_value_that_a_command_sets_displaces_the_file_and_the_other_way_round():
    file, value = {"SEEDANCE_API_KEY_FILE": "f"}, {"SEEDANCE_API_KEY": "v"}
    rest = {"PATH": "/", "SEEDANCE_TICK": "1"}
    assert over(rest | file, value) == rest | value
    assert over(rest | value, file) == rest | file
    assert over(rest, {"SEEDANCE_TICK": "2"}) == rest | {"SEEDANCE_TICK": "2"}


def test_a_process_takes_settings_over_without_reading_files_into_its_environment(monkeypatch):
    monkeypatch.setenv("SEEDANCE_API_KEY_FILE", "f")
    adopt({"SEEDANCE_API_KEY": "v"})
    assert "SEEDANCE_API_KEY_FILE" not in os.environ
    assert os.environ["SEEDANCE_API_KEY"] == "v"
    monkeypatch.delenv("SEEDANCE_API_KEY")
    assert not variables.is_given("SEEDANCE_API_KEY")


def test_a_kept_setting_is_kept_with_its_file():
    given = {"SEEDANCE_DATABASE_URL_FILE": "f", "SEEDANCE_API_KEY_FILE": "g", "PATH": "/"}
    assert only(given, "SEEDANCE_DATABASE_URL") == {
        "SEEDANCE_DATABASE_URL_FILE": "f",
        "PATH": "/",
    }
