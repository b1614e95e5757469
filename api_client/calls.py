"""How a call becomes requests: the throttle, repeating what may be repeated, reading the answer."""

from __future__ import annotations

import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, BinaryIO, Final, TypeVar

from pydantic import ValidationError

from api_client.answers import Answer, Presigned, Submitted, TaskStatus
from api_client.envelope import Envelope, decode
from api_client.errors import ApiError, Disposition, InvalidRequest
from api_client.observing import RequestSeen, seen
from api_client.redaction import redact
from api_client.transport import Reply, Transport
from api_client.upload import Body, Progress
from api_client.verdicts import SUCCESS, Endpoint, classify, error_class
from api_client.wire import Abandoned

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from api_client.config import ClientConfig

USER_AGENT: Final = "seedance-worker"

A = TypeVar("A", bound=Answer)
T = TypeVar("T")


class Calls:
    """Calls of the API and of the storage, each over a transport of its own."""

    def __init__(
        self,
        config: ClientConfig,
        throttle: Callable[[str], None] | None,
        sleep: Callable[[float], None],
        uniform: Callable[[float, float], float],
        observer: Callable[[RequestSeen], None] | None,
    ) -> None:
        self._config = config
        self._observer = observer
        self._throttle = throttle
        self._sleep = sleep
        self._uniform = uniform
        common = {"User-Agent": USER_AGENT, "Accept-Encoding": "identity"}
        self._api = Transport(
            config, {**common, "Accept": "application/json", "X-API-Key": config.api_key}
        )
        # The storage is another host: it must never see the key.
        self._storage = Transport(config, common)

    def close(self) -> None:
        self._api.close()
        self._storage.close()

    def call(
        self,
        kind: type[A],
        endpoint: Endpoint,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        body: bytes | None = None,
        before_send: Callable[[], None] | None = None,
        retry: bool,
        throttled: bool = False,
    ) -> A:
        """Calls the API until there is an answer of `kind`; raises `ApiError`."""
        tokens = 1 if throttled else 0

        def once() -> A:
            nonlocal tokens
            if tokens:
                tokens -= 1
            elif self._throttle is not None:
                self._throttle(endpoint)
            with self._observed(endpoint):
                reply = self._api.exchange(
                    endpoint,
                    method,
                    self._config.base_url + path,
                    params=params,
                    headers={"Content-Type": "application/json"} if body is not None else None,
                    body=body,
                    before_send=before_send,
                    total=self._config.total_timeout,
                )
                return self._interpret(kind, endpoint, reply)

        return self._repeat(once, retry=retry)

    def put(
        self,
        presigned: Presigned,
        source: BinaryIO,
        size: int,
        content_type: str,
        progress: Progress | None,
    ) -> str:
        """Sends a file to the storage; returns the SHA-256 of what was sent."""
        whole("size", size, 1, None)
        seekable = source.seekable()
        start = source.tell() if seekable else 0

        def once() -> str:
            if seekable:
                source.seek(start)
            total = self._config.upload_timeout
            body = Body(source, size, total, progress)
            with self._observed("storage"):
                reply = self._storage.exchange(
                    "storage",
                    "PUT",
                    presigned.presigned_url,
                    headers={"Content-Type": content_type},
                    body=body,
                    total=total,
                )
                if not 200 <= reply.status < 300:
                    # The storage's own answer may quote the signed request: it isn't repeated here.
                    raise self._error("storage", Envelope(), reply, "the storage refused the file")
            return body.sha256

        return self._repeat(once, retry=seekable)

    @contextmanager
    def _observed(self, endpoint: Endpoint) -> Iterator[None]:
        """Tells the observer of one request; nothing that it does changes what comes of that."""
        if self._observer is None:
            yield
            return
        started = time.monotonic()
        try:
            yield
        except ApiError as error:
            self._tell(seen(endpoint, time.monotonic() - started, error))
            raise
        self._tell(seen(endpoint, time.monotonic() - started))

    def _tell(self, request: RequestSeen) -> None:
        with suppress(Exception):
            if self._observer is not None:
                self._observer(request)

    def _interpret(self, kind: type[A], endpoint: Endpoint, reply: Reply) -> A:
        envelope = decode(reply.body)
        result = envelope.result if isinstance(envelope.result, dict) else None
        if kind is Submitted and envelope.code == "CONCURRENCY_LIMIT_REACHED" and envelope.task_id:
            # "Task is queued", and here is its id: that is no failure.
            result = {"status": TaskStatus.QUEUED, **(result or {}), "task_id": envelope.task_id}
        elif envelope.code != SUCCESS:
            message = envelope.message if envelope.code else "the answer is not the provider's"
            raise self._error(endpoint, envelope, reply, message)
        if result is not None:
            try:
                return kind.model_validate({**result, "exchange": reply.exchange})
            except ValidationError:
                pass
        message = "the answer says success, but has no usable result"
        raise self._error(endpoint, envelope, reply, message)

    def _error(
        self, endpoint: Endpoint, envelope: Envelope, reply: Reply, message: str
    ) -> ApiError:
        kind = error_class(endpoint, envelope.code, reply.status)
        return kind(
            # A provider that quotes the key, or a signed URL, would have it in every log.
            redact(message.replace(self._config.api_key, "…")),
            endpoint=endpoint,
            disposition=classify(endpoint, envelope.code, reply.status),
            code=envelope.code,
            http_status=reply.status,
            retry_after=reply.retry_after,
            task_id=envelope.task_id,
            exchange=reply.exchange,
        )

    def _repeat(self, once: Callable[[], T], *, retry: bool) -> T:
        try:
            return self._attempts(once, retry=retry)
        except Abandoned as error:
            failure = error.original
        # The caller's own exception, whatever it is: not repeated, and without a context of ours.
        raise failure

    def _attempts(self, once: Callable[[], T], *, retry: bool) -> T:
        attempt = 0
        while True:
            try:
                return once()
            except ApiError as error:
                attempt += 1
                pause = pause_after(self._config, attempt, error.retry_after, self._uniform)
                if (
                    not retry
                    or error.disposition is not Disposition.RETRY
                    or attempt >= self._config.max_attempts
                    or pause is None
                ):
                    raise
            self._sleep(pause)


def pause_after(
    config: ClientConfig,
    attempt: int,
    retry_after: float | None,
    uniform: Callable[[float, float], float],
) -> float | None:
    """Seconds to pause after the nth attempt has failed, counted from 1.

    None if the server asks for more than is waited for.
    """
    # Full jitter: threads that failed together must not come back together.
    if retry_after is not None:
        if retry_after > config.max_retry_after:
            return None
        return retry_after + uniform(0.0, config.backoff_base)
    # 2.0 ** 1024 would overflow.
    ceiling = min(config.backoff_cap, config.backoff_base * 2.0 ** min(attempt - 1, 60))
    return uniform(0.0, ceiling)


def whole(field: str, value: int, least: int, most: int | None) -> int:
    """A whole number within bounds; raises `InvalidRequest`."""
    if (
        isinstance(value, bool)
        or not isinstance(value, int)
        or value < least
        or (most is not None and value > most)
    ):
        bound = f"at least {least}" if most is None else f"from {least} to {most}"
        raise InvalidRequest(field, value, f"a whole number {bound}")
    return value
