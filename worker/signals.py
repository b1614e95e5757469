"""What we do at Celery's own occasions: logging is ours, and each line says which task it is of."""

import os
import sys
from typing import Any, TextIO

from celery import signals
from celery.apps import worker as worker_program

from worker import heartbeat, logs, reports, tracing
from worker.settings import load_settings


def connect() -> None:
    """Connect everything; once for each process, and as often as one likes."""
    signals.setup_logging.connect(_set_up_logging)
    signals.celeryd_init.connect(_name_worker)
    signals.beat_init.connect(_name_beat)
    signals.task_prerun.connect(_begin)
    signals.task_failure.connect(_fail)
    signals.task_postrun.connect(_end)


def _set_up_logging(loglevel: int | str | None = None, **_: Any) -> None:
    """Connected, it leaves logging to us. Celery's own default level says nothing of our wishes."""
    logs.configure(None if os.environ.get(logs.LEVEL) else loglevel)


def _name_worker(sender: str | None = None, **_: Any) -> None:
    name = sender or "worker"
    logs.name_process(name)
    _keep_lines_json()
    reports.start(name)
    if load_settings().tracing:
        tracing.start(name)


def _keep_lines_json() -> None:
    """Celery says past logging that it stops, in plain words that break off a reader of JSON."""
    if logs.chosen_format(sys.stderr) != "json":
        return
    program: Any = worker_program
    said = program.safe_say

    def say(words: str, to: TextIO | None = sys.__stderr__) -> None:
        if to is not sys.__stdout__:
            said(words, to)

    program.safe_say = say


def _name_beat(**_: Any) -> None:
    logs.name_process("beat")
    reports.start("beat")


def _begin(task_id: str, task: Any, args: Any = (), **_: Any) -> None:
    heartbeat.task_begins()
    logs.task_begins(task.name, task_id, args)
    if tracing.active():
        tracing.stage_begins(task.name, task_id, getattr(task.request, "traceparent", None))


def _fail(exception: BaseException | None = None, **_: Any) -> None:
    if exception is not None and tracing.active():
        tracing.stage_failed(exception)


def _end(**_: Any) -> None:
    if tracing.active():
        tracing.stage_ends(tracing.take_error())
    logs.task_ends()
    heartbeat.task_ends()
