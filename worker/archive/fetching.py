"""Fetching a result from the provider's storage: streamed, counted, hashed. Never with the key."""

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urlsplit

import requests
import urllib3
from requests_hardened.ip_filter import InvalidIPAddress

from worker.outgoing import Downloads, NotHttpsError
from worker.settings import Settings

_CHUNK = 256 * 1024
_HEAD = 4096
_LONGEST = 1800.0
"""Seconds that one download may take, however steadily it drips."""

_RENEW = (400, 401, 403, 404, 410)
"""What storages say of an address that has expired."""


class DownloadError(Exception):
    """It could not be fetched, or is not what it should be. Shows no query of an address."""


class AddressRefusedError(DownloadError):
    """The address has expired, or was refused: the provider has a fresh one."""


@dataclass(frozen=True)
class Fetched:
    """What came."""

    sha256: str
    size: int
    content_type: str
    """As the answer says; "" if it doesn't."""
    head: bytes


def fetch(
    url: str, write: Callable[[bytes], None], settings: Settings, *, on_read: Callable[[], None]
) -> Fetched:
    """Read a signed address to its end, handing on each piece.

    Addresses come from the provider's answers. They must be https, as all they redirect to, and
    not private – unless the provider's API itself is reached by http, as a simulator is, or
    SEEDANCE_ALLOW_PRIVATE_SOURCES allows it. Raises DownloadError, and what `write` and `on_read`
    raise.
    """
    plain = settings.api_base_url.startswith("http://")
    downloads = Downloads(
        private=plain or settings.allow_private_sources,
        https_only=not plain,
        connect_timeout=settings.http_connect_timeout,
        timeout=settings.http_timeout,
    )
    try:
        with downloads as session:
            # As it is stored: its length is announced, and it can't be a bomb.
            headers = {"Accept-Encoding": "identity"}
            with session.get(url, stream=True, headers=headers) as answer:
                _check_status(answer)
                return _read(answer, write, settings.archive_max_bytes, on_read)
    except NotHttpsError:
        raise DownloadError(f"{_host(url)} is not reached by https all the way") from None
    except InvalidIPAddress:
        raise DownloadError(
            f"{_host(url)} has a private or loopback address, which"
            " SEEDANCE_ALLOW_PRIVATE_SOURCES would have to allow"
        ) from None
    except (requests.RequestException, urllib3.exceptions.HTTPError, _LostError) as error:
        raise DownloadError(f"{_host(url)}: {_reason(error)}") from None


class _LostError(Exception):
    """The connection went wrong while reading."""


def _read(
    answer: requests.Response,
    write: Callable[[bytes], None],
    most: int,
    on_read: Callable[[], None],
) -> Fetched:
    announced = _announced(answer)
    digest, size, head = hashlib.sha256(), 0, b""
    deadline = time.monotonic() + _LONGEST
    while chunk := _piece(answer):
        size += len(chunk)
        if size > most:
            raise DownloadError(
                f"it has more than {most} bytes, the most that SEEDANCE_ARCHIVE_MAX_BYTES allows"
            )
        if time.monotonic() > deadline:
            raise DownloadError(f"not complete after {_LONGEST:.0f} s, {size} bytes came")
        if len(head) < _HEAD:
            head += chunk[: _HEAD - len(head)]
        digest.update(chunk)
        write(chunk)
        on_read()
    if announced is not None and size != announced:
        raise DownloadError(f"cut off: {size} of {announced} bytes came")
    if size == 0:
        raise DownloadError("it is empty")
    content_type = answer.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    return Fetched(digest.hexdigest(), size, content_type, head)


def _piece(answer: requests.Response) -> bytes:
    # Whatever has come, rather than a full piece: a slow line must still renew the lease.
    try:
        return bytes(answer.raw.read1(_CHUNK, decode_content=False))
    except OSError as error:
        raise _LostError(error) from None


def _announced(answer: requests.Response) -> int | None:
    length = answer.headers.get("Content-Length", "")
    return int(length) if length.isdecimal() else None


def _check_status(answer: requests.Response) -> None:
    status = answer.status_code
    if status == requests.codes.ok:
        return
    said = f"{_host(answer.url)} answered HTTP {status}"
    if status in _RENEW:
        raise AddressRefusedError(said)
    raise DownloadError(said)


def _host(url: str) -> str:
    try:
        return urlsplit(url).hostname or "an address without a host"
    except ValueError:
        return "what is no address"


def _reason(error: BaseException) -> str:
    """The innermost of nested errors, by its name: their words hold addresses."""
    for _ in range(8):
        inner = next((arg for arg in error.args if isinstance(arg, BaseException)), None)
        inner = getattr(error, "reason", None) if inner is None else inner
        if not isinstance(inner, BaseException):
            break
        error = inner
    return type(error).__name__
