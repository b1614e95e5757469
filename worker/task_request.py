"""Our tasks as Celery's events, `inspect` and Flower see them: without what producers wrote.

Whatever client sent a message, its headers carry that client's own repr of the arguments, and may
carry a name to be shown instead of the task's. Neither is shown here.
"""

import re
from typing import Any

from celery import Task as CeleryTask
from celery.worker.request import Request as CeleryRequest

from worker import task_forms

_FRAME = re.compile(r'  File "[^"\n]*", line \d+, in [\w<>.]+')
_RAISED = re.compile(r"[A-Za-z_][\w.]*(?=\()")


class Request(CeleryRequest):
    """A message under way, told by its task's own name and short forms."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.name = self.type  # type: ignore[misc]  # an attribute, whatever its stubs say
        self._argsrepr = task_forms.arguments(self.type, self.args)
        self._kwargsrepr = task_forms.keywords(self.type, self.kwargs)

    def info(self, safe: bool = False) -> Any:  # noqa: ARG002
        """What `inspect` answers: the short forms, whether it asks for the safe ones or not."""
        return super().info(safe=True)

    def send_event(self, type: str, **fields: Any) -> None:  # noqa: A002  (Celery's name)
        """An event; of an error its kind and where, since what it says may quote anything."""
        if "exception" in fields:
            fields["exception"] = kind_of(fields["exception"])
        if fields.get("traceback"):
            fields["traceback"] = frames_of(fields["traceback"])
        super().send_event(type, **fields)


class Task(CeleryTask):  # type: ignore[type-arg]  # generic in its stubs alone
    """What every task of ours is."""

    Request = f"{__name__}:Request"


def kind_of(error: Any) -> str:
    """Of an error's repr the name of its class."""
    found = _RAISED.match(str(error))
    return f"{found[0] if found else 'an error'}: the log says what"


def frames_of(traceback: Any) -> str:
    """Of a traceback the lines that say where."""
    return "\n".join(line for line in str(traceback).split("\n") if _FRAME.fullmatch(line))
