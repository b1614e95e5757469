"""All seven calls of the provider."""

from __future__ import annotations

import json
import random
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Self
from urllib.parse import quote

from api_client import listing, media
from api_client.answers import (
    Balance,
    CancelAnswer,
    Presigned,
    Submitted,
    Task,
    TaskPage,
    Uploaded,
)
from api_client.calls import Calls, whole
from api_client.errors import (
    ApiError,
    Disposition,
    InvalidRequest,
    StorageRefused,
    TaskNotFound,
    WaitTimeout,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from api_client.config import ClientConfig
    from api_client.observing import RequestSeen
    from api_client.request import GenerationRequest
    from api_client.upload import Progress


class SeedanceClient:
    """The Seedance 2.0 API. Threads may share one; a forked process needs its own.

    `throttle` is called with the endpoint's name before each request to the API, and may block;
    `sleep` and `uniform` are there for tests. `observer` is told of each request once it is over.

    Every call raises `ApiError`, whose `disposition` says what may be done, and `InvalidRequest`
    before anything is sent. Calls with `retry` repeat what may be repeated (`Disposition.RETRY`)
    up to `config.max_attempts` times, with growing random pauses; without it they make exactly
    one request.
    """

    def __init__(
        self,
        config: ClientConfig,
        throttle: Callable[[str], None] | None = None,
        *,
        sleep: Callable[[float], None] = time.sleep,
        uniform: Callable[[float, float], float] = random.uniform,
        observer: Callable[[RequestSeen], None] | None = None,
    ) -> None:
        self.config = config
        self._sleep = sleep
        self._calls = Calls(config, throttle, sleep, uniform, observer)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"SeedanceClient({self.config.base_url})"

    def close(self) -> None:
        """Closes all idle connections."""
        self._calls.close()

    # Generations

    def submit(
        self,
        request: GenerationRequest,
        *,
        before_send: Callable[[], None] | None = None,
        retry: bool = True,
        throttled: bool = False,
    ) -> Submitted:
        """Starts a generation: `POST /api/v1/video/task`.

        There is no idempotency key. `retry` repeats only what the provider has definitely refused,
        or what was never sent; an `ApiError` that is AMBIGUOUS may have made a task, which the task
        list shows. `before_send` runs when the connection stands, just before the first byte of
        each POST; what it raises comes out unchanged, and nothing is written. `throttled` says that
        the caller has waited for the throttle already (it holds for the first POST).

        "Concurrency limit reached, task is queued" with a task id in it is a success: the task
        exists, with the status `queued`.
        """
        body = json.dumps(request.body(), ensure_ascii=False).encode()
        return self._calls.call(
            Submitted,
            "submit",
            "POST",
            "/api/v1/video/task",
            body=body,
            before_send=before_send,
            retry=retry,
            throttled=throttled,
        )

    def get(self, task_id: str, *, retry: bool = True) -> Task:
        """`GET /api/v1/video/task/{task_id}`. A task that has failed is a successful answer."""
        return self._calls.call(Task, "get", "GET", _task_path(task_id), retry=retry)

    def list_tasks(
        self,
        page: int = 1,
        page_size: int = 100,
        status: str | None = None,
        *,
        retry: bool = True,
    ) -> TaskPage:
        """One page of `GET /api/v1/video/tasks`, counted from 1, of 1 to 100 tasks."""
        params = {
            "page": str(whole("page", page, 1, None)),
            "page_size": str(whole("page_size", page_size, 1, 100)),
        }
        if status is not None:
            params["status"] = str(status)
        return self._calls.call(
            TaskPage, "list", "GET", "/api/v1/video/tasks", params=params, retry=retry
        )

    def iter_tasks(self, status: str | None = None, page_size: int = 100) -> Iterator[Task]:
        """All tasks, each once, as first seen; see `api_client.listing` for what drift may do.

        Tasks made meanwhile may or may not appear. For a decision that costs money read pages
        yourself and judge whether the reading was complete.
        """
        return listing.iterate(
            lambda page: self.list_tasks(page, page_size, status),
            whole("page_size", page_size, 1, 100),
        )

    def cancel(self, task_id: str, *, retry: bool = True) -> CancelAnswer:
        """`POST /api/v1/video/task/{task_id}/cancel`: an attempt only, so keep following the task.

        Raises `CancelNotAllowed` if it is past that, which `get` explains.
        """
        path = f"{_task_path(task_id)}/cancel"
        return self._calls.call(CancelAnswer, "cancel", "POST", path, retry=retry)

    def wait(
        self,
        task_id: str,
        *,
        timeout: float = 1800.0,
        on_progress: Callable[[Task], None] | None = None,
        interval: float = 5.0,
        grace: float = 60.0,
    ) -> Task:
        """Polls until the task has ended, however it has; for scripts.

        `interval` (seconds) grows to twice itself; the provider advises 5–10. `on_progress` gets
        every reading. Outages are sat out, and for the first `grace` seconds a task that is not
        found is taken for one that is not visible yet. Raises `WaitTimeout` after `timeout`.
        """
        started = time.monotonic()
        task: Task | None = None
        pause = interval
        while True:
            waited = time.monotonic() - started
            try:
                task = self.get(task_id)
            except TaskNotFound:
                if waited > grace:
                    raise
            except ApiError as error:
                if error.disposition is not Disposition.RETRY:
                    raise
                pause = max(pause, min(error.retry_after or 0.0, self.config.max_retry_after))
            else:
                if on_progress is not None:
                    on_progress(task)
                if task.terminal:
                    return task
            if time.monotonic() - started + pause > timeout:
                raise WaitTimeout(task_id, timeout, task)
            self._sleep(pause)
            pause = min(pause * 1.25, interval * 2)

    # References

    def presign(self, filename: str, content_type: str, *, retry: bool = True) -> Presigned:
        """`POST /api/v1/video/upload/presign`: where to PUT a file, for a limited time."""
        if content_type not in media.EXTENSIONS.values():
            allowed = ", ".join(dict.fromkeys(media.EXTENSIONS.values()))
            raise InvalidRequest("content_type", content_type, allowed)
        params = {"filename": media.check_filename(filename), "content_type": content_type}
        return self._calls.call(
            Presigned, "presign", "POST", "/api/v1/video/upload/presign", params=params, retry=retry
        )

    def put(self, presigned: Presigned, body: BinaryIO, *, size: int, content_type: str) -> None:
        """Sends `size` bytes, from where `body` stands, to the storage.

        `content_type` must be the one that was presigned. Repeated from the same place if the
        storage is unwell; `StorageRefused` with 403 means an expired URL or another type.
        """
        self._calls.put(presigned, body, size, content_type, None)

    def upload(
        self,
        file: Path | BinaryIO,
        *,
        filename: str | None = None,
        content_type: str | None = None,
        progress: Progress | None = None,
    ) -> Uploaded:
        """Checks a file, asks for a URL and streams it there; presigns once more after a 403.

        An open file must be seekable and is read from where it stands. The type is told by content
        and extension, which must agree; `content_type`, if given, must agree as well.
        """
        with ExitStack() as stack:
            source: BinaryIO
            if isinstance(file, Path):
                source = stack.enter_context(file.open("rb"))
                name = filename or file.name
            else:
                source = file
                name = filename or _name_of(file)
            if not source.seekable():
                raise InvalidRequest("file", name, "a file that can be rewound")
            name = media.check_filename(name)
            start = source.tell()
            found = media.media_type(source.read(media.HEAD), name)
            if content_type not in (None, found):
                raise InvalidRequest("content_type", content_type, f"{found}, as {name} is")
            size = source.seek(0, 2) - start

            def attempt() -> tuple[Presigned, str]:
                source.seek(start)
                presigned = self.presign(name, found)
                return presigned, self._calls.put(presigned, source, size, found, progress)

            try:
                presigned, sha256 = attempt()
            except StorageRefused as error:
                if error.http_status != 403:
                    raise
                presigned, sha256 = attempt()
        return Uploaded(presigned.file_path, sha256, size, found)

    # Account

    def balance(self, *, retry: bool = True) -> Balance:
        """`GET /api/v1/video/balance`, in credits."""
        return self._calls.call(Balance, "balance", "GET", "/api/v1/video/balance", retry=retry)


def _task_path(task_id: str) -> str:
    if not isinstance(task_id, str) or not task_id.strip(".").strip():
        # "." and ".." would change the path.
        raise InvalidRequest("task_id", task_id, "the text that a submit gave")
    return f"/api/v1/video/task/{quote(task_id, safe='')}"


def _name_of(file: BinaryIO) -> str:
    name = getattr(file, "name", None)
    if not isinstance(name, str):
        raise InvalidRequest("filename", name, "a name, since this file has none of its own")
    return Path(name).name
