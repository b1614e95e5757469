"""What we do at Celery's own occasions: logging is ours, and each line says which task it is of."""

import os
from typing import Any

from celery import signals

from worker import logs


def connect() -> None:
    """Connect everything; once for each process, and as often as one likes."""
    signals.setup_logging.connect(_set_up_logging)
    signals.celeryd_init.connect(_name_worker)
    signals.beat_init.connect(_name_beat)
    signals.task_prerun.connect(_begin)
    signals.task_postrun.connect(_end)


def _set_up_logging(loglevel: int | str | None = None, **_: Any) -> None:
    """Connected, it leaves logging to us. Celery's own default level says nothing of our wishes."""
    logs.configure(None if os.environ.get(logs.LEVEL) else loglevel)


def _name_worker(sender: str | None = None, **_: Any) -> None:
    logs.name_process(sender or "worker")


def _name_beat(**_: Any) -> None:
    logs.name_process("beat")


def _begin(task_id: str, task: Any, args: Any = (), **_: Any) -> None:
    logs.task_begins(task.name, task_id, args)


def _end(**_: Any) -> None:
    logs.task_ends()
