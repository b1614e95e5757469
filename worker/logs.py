"""What a process says while it works: one line for each event, and no secrets in it.

Our own lines, Celery's and those of the libraries go through one chain of structlog's processors:
what is bound to the task is added, what must not be shown is cut, and the line is written as JSON
(for services) or readable (on a terminal). Modules log by `logging`, as any library does.

Levels: `error` wants a person; `warning` was held back or is tried again by itself; `info` tells
what happened to a generation or a process; `debug` is for looking closely.
"""

import json
import logging
import os
import sys
import threading
from collections.abc import MutableMapping
from types import TracebackType
from typing import Any, TextIO

import structlog
from structlog.contextvars import bind_contextvars, clear_contextvars, merge_contextvars
from structlog.stdlib import ExtraAdder, ProcessorFormatter

from worker import redaction, task_forms
from worker.redaction import Redactor

FORMATS = ("auto", "json", "console")
LEVELS = ("debug", "info", "warning", "error")

FORMAT = "SEEDANCE_LOG_FORMAT"
LEVEL = "SEEDANCE_LOG_LEVEL"

NAMED = ("generation", "stage", "attempt", "remote_task", "task")
"""What may be bound to a line: by the task that it is of, or by `extra=` where it is of none."""

# A line for every message that comes and every task that ends says nothing that the rows don't.
_CHATTY = ("celery.worker.strategy", "celery.app.trace", "alembic.runtime.migration")

# A foreign line that goes over several would pass for lines of ours.
_CONTROL = {code: f"\\x{code:02x}" for code in (*range(32), 127) if chr(code) not in "\n\t"}
_ONE_LINE = {**_CONTROL, ord("\n"): "\\n"}

_STAGES = frozenset({"upload", "poll"})
"""Tasks whose message names one generation first."""

_SHARED = frozenset({"submit", "resolve"})
"""Tasks whose message names one or several generations."""

Event = MutableMapping[str, Any]

_process: dict[str, str] = {}


def name_process(name: str) -> None:
    """Say whose lines these are: the worker's node name, `beat`, `gateway`."""
    _process["process"] = name


def configure(
    level: int | str | None = None, *, stream: TextIO | None = None, service: bool = True
) -> None:
    """Make this process's logging ours; what was set up before is replaced.

    `level` and the form default to SEEDANCE_LOG_LEVEL and SEEDANCE_LOG_FORMAT; a command that a
    person runs (`service=False`) is readable unless JSON is asked for.
    """
    stream = stream or sys.stderr
    handler = logging.StreamHandler(stream)
    wanted = chosen_format(stream) if service else given_format()
    handler.setFormatter(formatter("json" if wanted == "json" else "console", stream=stream))
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(given_level() if level is None else level)
    quiet = logging.WARNING if root.getEffectiveLevel() > logging.DEBUG else logging.NOTSET
    for name in _CHATTY:
        logging.getLogger(name).setLevel(quiet)
    if service:
        logging.captureWarnings(capture=True)
        sys.excepthook = _uncaught
        threading.excepthook = _uncaught_in_thread


def given_format() -> str:
    """What SEEDANCE_LOG_FORMAT asks for; `auto` for what it can't mean (the settings refuse it)."""
    given = os.environ.get(FORMAT, "")
    return given if given in FORMATS else "auto"


def chosen_format(stream: TextIO) -> str:
    """`json` or `console`: with `auto` it depends on whether a person looks."""
    given = given_format()
    return given if given != "auto" else "console" if stream.isatty() else "json"


def given_level() -> str:
    """SEEDANCE_LOG_LEVEL, in the form that `logging` takes."""
    given = os.environ.get(LEVEL, "").lower()
    return given.upper() if given in LEVELS else "INFO"


def formatter(
    form: str = "json", *, redactor: Redactor | None = None, stream: TextIO | None = None
) -> ProcessorFormatter:
    """The chain of processors, as a formatter of `logging`; `form` is `json` or `console`."""
    cut = redactor or redaction.of_environment()

    def redact(_logger: Any, _name: str, event: Event) -> Event:
        """Last before it is written, so that nothing that was added escapes it."""
        return dict(cut.event(event))

    coloured = stream is not None and stream.isatty() and "NO_COLOR" not in os.environ
    rendering: list[Any]
    if form == "json":
        rendering = [_render_json]
    else:
        rendering = [_one_line, structlog.dev.ConsoleRenderer(colors=coloured, sort_keys=False)]
    return ProcessorFormatter(
        foreign_pre_chain=[
            structlog.stdlib.add_log_level,
            structlog.stdlib.add_logger_name,
            merge_contextvars,
            ExtraAdder(allow=NAMED),
        ],
        processors=[
            ProcessorFormatter.remove_processors_meta,
            _add_process,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            redact,
            *rendering,
        ],
    )


def _add_process(_logger: Any, _name: str, event: Event) -> Event:
    event.update(_process)
    return event


_JSON = json.JSONEncoder(ensure_ascii=False, default=str).encode
_FIRST = ("timestamp", "level", "event")


def _render_json(_logger: Any, _name: str, event: Event) -> str:
    """One line; what each has comes first, for eyes that read it all the same."""
    first = {name: event.pop(name) for name in _FIRST if name in event}
    return _JSON({**first, **event})


def _one_line(_logger: Any, _name: str, event: Event) -> Event:
    for name, value in event.items():
        if isinstance(value, str):
            event[name] = value.translate(_CONTROL if name == "exception" else _ONE_LINE)
    return event


def _uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """What nobody caught ends in the log as well, with its secrets cut."""
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
        return
    logging.getLogger("seedance").critical(
        "the process ends: %s", kind.__name__, exc_info=(kind, error, trace)
    )


def _uncaught_in_thread(args: threading.ExceptHookArgs) -> None:
    if args.exc_type is SystemExit or args.exc_value is None:
        return
    name = args.thread.name if args.thread is not None else "?"
    logging.getLogger("seedance").critical(
        "thread %s ends: %s",
        name,
        args.exc_type.__name__,
        exc_info=(args.exc_type, args.exc_value, args.exc_traceback),
    )


# --- the task that lines are of -----------------------------------------------------------------


def task_begins(task: str, task_id: str, args: Any) -> None:
    """From here on every line of this thread says which Celery task and generation it is of.

    Both come with the message; attempt and remote task are bound when the row is read.
    """
    clear_contextvars()
    stage = task.removeprefix("seedance.")
    bound = {"task": task_id, "stage": stage}
    if stage == "generate":
        bound["generation"] = task_id
    elif stage in _STAGES and args and task_forms.is_id(args[0]):
        bound["generation"] = args[0]
    elif stage in _SHARED and (one := task_forms.only(args)) is not None:
        bound["generation"] = one
    bind_contextvars(**bound)


def task_ends() -> None:
    """The thread is nobody's again."""
    clear_contextvars()
