"""Logs: one JSON line for each event, with what is bound to the task; readable for people."""

import io
import json
import logging
import sys
import threading
import uuid
import warnings
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest
from structlog.contextvars import bind_contextvars, bound_contextvars, get_contextvars

from worker import logs
from worker.prefixed_output import PrefixedOutput

KEY = "sk-very-secret"
SIGNED = "https://cdn.example/v.mp4?token=geheim"
PROMPT = "a cat that nobody may see"
GENERATION = str(uuid.UUID(int=3))


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    hooks = sys.excepthook, threading.excepthook
    logs.task_ends()  # stages that other tests stepped by hand have bound what they found
    yield
    root.handlers[:] = before
    root.setLevel(level)
    logging.captureWarnings(capture=False)
    sys.excepthook, threading.excepthook = hooks
    logs.task_ends()
    logs._process.clear()


def configured(
    monkeypatch: pytest.MonkeyPatch, form: str = "json", level: str | None = None
) -> io.StringIO:
    monkeypatch.setenv("SEEDANCE_API_KEY", KEY)
    monkeypatch.setenv("SEEDANCE_DATABASE_URL", "postgresql://u:data-pass@h/db")
    monkeypatch.setenv("SEEDANCE_LOG_FORMAT", form)
    out = io.StringIO()
    logs.configure(level, stream=out)
    return out


def lines(out: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.getvalue().splitlines()]


def test_an_event_is_one_line_of_json(monkeypatch: pytest.MonkeyPatch) -> None:
    out = configured(monkeypatch)
    logs.name_process("worker1@host")
    logging.getLogger("worker.stages.poll").warning("generation %s:\nlate %d", "g", 3)
    [line] = lines(out)
    assert datetime.fromisoformat(line.pop("timestamp")).utcoffset() is not None
    assert line == {
        "level": "warning",
        "event": "generation g:\nlate 3",
        "logger": "worker.stages.poll",
        "process": "worker1@host",
    }


def test_what_is_bound_is_in_every_line_of_the_thread_and_of_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = configured(monkeypatch)
    logs.task_begins("seedance.submit", f"{GENERATION}.submit.7", [[[GENERATION, 7]]])
    bind_contextvars(attempt=2)
    logging.getLogger("worker.stages.submit").info("ours")
    with bound_contextvars(remote_task="t-1"):
        logging.getLogger("urllib3.connectionpool").warning("a library's")
    other = threading.Thread(target=logging.getLogger("x").info, args=("another thread's",))
    other.start()
    other.join()
    logs.task_ends()
    logging.getLogger("x").info("nobody's")
    ours, library, another, nobody = lines(out)
    bound = {
        "generation": GENERATION,
        "stage": "submit",
        "task": f"{GENERATION}.submit.7",
        "attempt": 2,
    }
    assert bound.items() <= ours.items()
    assert {**bound, "remote_task": "t-1"}.items() <= library.items()
    for line in (another, nobody):
        assert not set(logs.NAMED) & line.keys()


def test_the_next_task_of_a_thread_inherits_nothing() -> None:
    logs.task_begins("seedance.poll", f"{GENERATION}.poll.1", [GENERATION, 1])
    bind_contextvars(attempt=9, remote_task="t-9")
    logs.task_begins("seedance.generate", GENERATION, [])
    assert get_contextvars() == {"task": GENERATION, "stage": "generate", "generation": GENERATION}


def test_a_batch_names_no_single_generation() -> None:
    logs.task_begins("seedance.resolve", "a.resolve.1", [[["a", 1], ["b", 2]]])
    assert get_contextvars() == {"task": "a.resolve.1", "stage": "resolve"}
    logs.task_begins("seedance.submit", "a.submit.1", [[[GENERATION, 1], ["b", 2]]])
    assert get_contextvars() == {"task": "a.submit.1", "stage": "submit"}
    logs.task_begins("seedance.submit", "a.submit.1", [[[GENERATION, 1]]])
    assert get_contextvars()["generation"] == GENERATION
    logs.task_begins("seedance.deliver", "n.deliver.1", [GENERATION, 1])
    assert get_contextvars() == {"task": "n.deliver.1", "stage": "deliver"}


def test_where_no_task_is_at_work_a_line_may_name_its_generation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = configured(monkeypatch)
    logging.getLogger("x").info("told", extra={"generation": "g", "attempt": 1, "data": PROMPT})
    [line] = lines(out)
    assert (line["generation"], line["attempt"]) == ("g", 1)
    assert PROMPT not in out.getvalue(), "what a library attaches to a record stays out"


@pytest.mark.parametrize("form", ["json", "console"])
def test_no_line_shows_a_secret(monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    out = configured(monkeypatch, form)
    request = {"content": [{"type": "text", "text": PROMPT}], "headers": {"Authorization": "B x1"}}
    log = logging.getLogger("x")
    bind_contextvars(remote_task=f"task of {SIGNED}", attempt={"text": PROMPT, "at": [SIGNED]})
    try:
        try:
            int(f"{KEY} at {SIGNED} for {request}")
        except ValueError as error:
            raise RuntimeError(f"postgresql://u:data-pass@h/db said {request!r}") from error
    except RuntimeError:
        log.exception("to %s with %s for %s", SIGNED, KEY, request)
        log.warning("the same: %r", sys.exc_info()[1])
    log.info({"nested": [request, (SIGNED,)], "Authorization": KEY})
    text = out.getvalue()
    for secret in ("geheim", KEY, "data-pass", PROMPT, "B x1"):
        assert secret not in text
    assert text.count("Traceback") == 2, "an exception and its cause are told"
    assert "https://cdn.example/v.mp4" in text


def test_an_exception_is_part_of_its_line(monkeypatch: pytest.MonkeyPatch) -> None:
    out = configured(monkeypatch)
    try:
        {}["gone"]
    except KeyError:
        logging.getLogger("x").exception("it failed")
    [line] = lines(out)
    assert line["level"] == "error"
    assert line["exception"].endswith("KeyError: 'gone'")


def test_people_get_a_readable_line_that_nothing_can_forge(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = configured(monkeypatch, "console")
    logging.getLogger("x").info("said %s", "a\n2026-01-01 [error] forged\x1b[31m")
    [line] = out.getvalue().splitlines()
    assert "said a\\n2026-01-01 [error] forged\\x1b[31m" in line
    assert "\x1b" not in line


def test_without_a_terminal_services_log_json_and_commands_do_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = configured(monkeypatch, "auto")
    logging.getLogger("x").warning("a")
    assert lines(out)[0]["event"] == "a"
    logs.configure("WARNING", stream=(person := io.StringIO()), service=False)
    logging.getLogger("x").warning("b")
    assert not person.getvalue().startswith("{")
    monkeypatch.setenv("SEEDANCE_LOG_FORMAT", "json")
    logs.configure("WARNING", stream=(asked := io.StringIO()), service=False)
    logging.getLogger("x").warning("c")
    assert lines(asked)[0]["event"] == "c"


def test_on_a_terminal_lines_are_readable(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("SEEDANCE_LOG_FORMAT", "auto")
    logs.configure(stream=(out := Terminal()))
    logging.getLogger("x").warning("a")
    assert not out.getvalue().startswith("{")
    assert "\x1b[" in out.getvalue(), "in colours"


def test_the_level_comes_from_the_environment_or_the_caller(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SEEDANCE_LOG_LEVEL", "error")
    out = configured(monkeypatch)
    logging.getLogger("x").warning("too little")
    assert out.getvalue() == ""
    out = configured(monkeypatch, level="DEBUG")
    logging.getLogger("x").debug("enough")
    assert len(lines(out)) == 1


def test_what_nobody_catches_and_warnings_are_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    out = configured(monkeypatch)
    thread = threading.Thread(target=lambda: int(KEY), name="t-1")
    thread.start()
    thread.join()
    try:
        int(SIGNED)
    except ValueError as error:
        sys.excepthook(ValueError, error, error.__traceback__)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what other tests left to be collected
        warnings.simplefilter("always", DeprecationWarning)
        warnings.warn("soon gone", DeprecationWarning, stacklevel=1)
    in_thread, ended, warned = lines(out)
    assert (in_thread["level"], in_thread["event"]) == ("critical", "thread t-1 ends: ValueError")
    assert ended["event"] == "the process ends: ValueError"
    assert "soon gone" in warned["event"]
    assert KEY not in out.getvalue()
    assert "geheim" not in out.getvalue()


def test_up_hands_on_the_lines_of_its_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEEDANCE_API_KEY", KEY)
    out = io.StringIO()
    screen = PrefixedOutput(out, ["worker1", "flower"], as_json=True)
    screen.line("worker1", '{"timestamp": "t", "level": "info", "event": "done"}')
    screen.line("flower", f'started with {KEY} at "h"')
    ours, foreign = lines(out)
    assert ours == {"timestamp": "t", "level": "info", "event": "done", "service": "worker1"}
    assert foreign["event"] == 'started with … at "h"'
    assert (foreign["level"], foreign["service"]) == ("info", "flower")
