"""Whether the demo's videos are in its archive: each as the provider has it, to the byte."""

import hashlib
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from sqlalchemy import Engine

from models import reads
from models.lifecycle import Status
from models.reads import GenerationView
from worker.demo.screen import Line

_PATIENCE = 20.0
_LOOK_EVERY = 0.2


def wait(engine: Engine, lines: Sequence[Line]) -> dict[uuid.UUID, GenerationView]:
    """The completed generations, once their videos are stored, or patience has ended."""
    ids = [line.id for line in lines if line.view and line.view.status is Status.COMPLETED]
    deadline = time.monotonic() + _PATIENCE
    while True:
        with engine.connect() as conn:
            views = reads.get_many(conn, ids)
        stored = all(view.video_uri is not None for view in views.values())
        if stored or time.monotonic() > deadline:
            return views
        time.sleep(_LOOK_EVERY)


def problems(
    views: Mapping[uuid.UUID, GenerationView], tasks: Sequence[Mapping[str, Any]]
) -> Iterator[str]:
    """What is not as it should be. `tasks` is what the provider itself says of its videos."""
    made = {task["task_id"]: task["video_sha256"] for task in tasks}
    for view in views.values():
        if view.video_uri is None:
            yield f"the video of {view.id} is not stored"
            continue
        try:
            data = path_of(view.video_uri).read_bytes()
        except OSError as error:
            yield f"the video of {view.id} can't be read: {type(error).__name__}"
            continue
        if hashlib.sha256(data).hexdigest() != made.get(view.remote_task_id or ""):
            yield f"the video of {view.id} is not the one that the provider made"


def path_of(uri: str) -> Path:
    """The file of a `file://` address."""
    return Path(unquote(urlsplit(uri).path))
