"""One HTTP request and its answer. Foreign errors are translated here and nowhere else.

Two transports are used side by side: one for the API, which sends the key, and one for the
storage, which doesn't have it. Neither follows a redirect, keeps cookies or reads `.netrc`;
proxies and certificate bundles from the environment are honoured (read once for each host).
"""

from __future__ import annotations

import http.client
import logging
import math
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http.cookiejar import DefaultCookiePolicy
from typing import TYPE_CHECKING, Any, Final

import requests
import urllib3

from api_client import wire
from api_client.answers import Exchange
from api_client.errors import AnswerLost, ApiError, Disposition, NotSent
from api_client.redaction import QueryFilter, redact
from api_client.verdicts import Endpoint, classify

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from api_client.config import ClientConfig
    from api_client.upload import Body

_CHUNK: Final = 64 * 1024
_MOST_HOSTS: Final = 64
_FOREIGN: Final = (
    requests.RequestException,
    urllib3.exceptions.HTTPError,
    http.client.HTTPException,
    OSError,
    ValueError,  # a host name that can't be encoded, a malformed address
)
# All loggers of urllib3 that print the address of a request.
_LOGGERS: Final = ("urllib3.connection", "urllib3.connectionpool", "urllib3.util.retry")
_QUIET: Final = QueryFilter(wire.active)


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer that was read to its end."""

    status: int
    body: bytes
    exchange: Exchange
    retry_after: float | None


class _NoAuth(requests.auth.AuthBase):
    """Keeps requests from adding an Authorization header out of `.netrc`."""

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        return request


class Transport:
    """Sends one request at a time for each of any number of threads."""

    def __init__(self, config: ClientConfig, headers: Mapping[str, str]) -> None:
        self._config = config
        self._session = requests.Session()
        self._session.headers.clear()
        self._session.headers.update(headers)
        self._session.auth = _NoAuth()
        # A session's cookies are shared by all threads, and nobody here needs any.
        self._session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
        self._environments: dict[str, dict[str, Any]] = {}
        adapter = wire.Adapter(pool_maxsize=config.pool_size)
        self._session.mount("http://", adapter)
        self._session.mount("https://", adapter)
        for name in _LOGGERS:
            logging.getLogger(name).addFilter(_QUIET)

    def close(self) -> None:
        self._session.close()

    def exchange(
        self,
        endpoint: Endpoint,
        method: str,
        url: str,
        *,
        params: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        body: bytes | Body | None = None,
        before_send: Callable[[], None] | None = None,
        total: float,
    ) -> Reply:
        """Sends one request, once, and reads the answer.

        Raises `NotSent` or `AnswerLost`, or `wire.Abandoned` around what `before_send` or the body
        has raised; in that case the request was not sent, or not completely.
        """
        config = self._config
        state = wire.Wire(
            timeout=config.read_timeout,
            total=total,
            max_idle=config.max_idle,
            before_send=before_send,
        )
        failure: ApiError | wire.Abandoned
        try:
            with wire.using(state):
                request = requests.Request(method, url, headers, data=body, params=params)
                response = self._session.send(
                    self._session.prepare_request(request),
                    timeout=(config.connect_timeout, config.read_timeout),
                    allow_redirects=False,
                    **self._environment(url),
                )
                return self._read(response, state)
        except wire.Abandoned as error:
            failure = error
        except _FOREIGN as error:
            failure = self._translate(endpoint, error, state)
        # Raised out here so that no foreign exception, with a presigned URL in its message, hangs
        # on to it as its context.
        raise failure

    def _environment(self, url: str) -> dict[str, Any]:
        """Proxies and certificates for a host, from the environment.

        requests would look through all variables for every single request, which takes a third of
        its time.
        """
        origin = "/".join(url.split("/", 3)[:3])
        found = self._environments.get(origin)
        if found is None:
            verify = self._config.ca_bundle or True
            found = dict(self._session.merge_environment_settings(origin, {}, True, verify, None))
            if len(self._environments) < _MOST_HOSTS:
                self._environments[origin] = found
        return found

    def _read(self, response: requests.Response, state: wire.Wire) -> Reply:
        received = time.monotonic()
        sent = received if state.sent is None else state.sent
        body = bytearray()
        try:
            while chunk := response.raw.read1(_CHUNK, decode_content=True):
                body += chunk
                self._bound(len(body))
                state.left()
        except BaseException:
            response.close()
            raise
        response.raw.release_conn()
        date = _http_date(response.headers.get("Date"))
        return Reply(
            status=response.status_code,
            body=bytes(body),
            exchange=Exchange(sent, received, date, response.status_code),
            retry_after=retry_after(response.headers.get("Retry-After"), date),
        )

    def _bound(self, size: int) -> None:
        if size > self._config.max_answer:
            raise OSError(f"the answer is longer than {self._config.max_answer} bytes")

    def _translate(self, endpoint: Endpoint, error: Exception, state: wire.Wire) -> ApiError:
        reason = _reason(error)
        if state.sent is None:
            return NotSent(f"not sent: {reason}", endpoint=endpoint, disposition=Disposition.RETRY)
        return AnswerLost(
            f"sent, but no complete answer: {reason}",
            endpoint=endpoint,
            disposition=classify(endpoint, "", None),
        )


def _reason(error: BaseException) -> str:
    """The innermost of the nested errors of requests and urllib3, without addresses."""
    for _ in range(8):
        inner = getattr(error, "reason", None)
        if not isinstance(inner, BaseException):
            inner = next((arg for arg in error.args if isinstance(arg, BaseException)), None)
        if inner is None:
            break
        error = inner
    # urllib3 puts the connection's repr, an address in memory, before the text.
    text = redact(str(error)).rsplit(">: ", 1)[-1]
    return f"{type(error).__name__}: {text}"[:300]


def _http_date(value: str | None) -> datetime | None:
    try:
        date = parsedate_to_datetime(value or "")
        return date.replace(tzinfo=UTC) if date.tzinfo is None else date.astimezone(UTC)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


def retry_after(value: str | None, answered: datetime | None) -> float | None:
    """Seconds from a Retry-After header, given as seconds or as a date (RFC 9110, 10.2.3).

    A date is held against the answer's own Date, so that the two clocks need not agree.
    """
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        date = _http_date(value)
        if date is None:
            return None
        seconds = (date - (answered or datetime.now(UTC))).total_seconds()
    return max(0.0, seconds) if math.isfinite(seconds) else None
