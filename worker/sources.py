"""Reading references from where the producer keeps them: `path:`, `https://`, `s3://`.

Nothing outside the media roots is read, links included, and nothing from a private address
unless a setting allows it. What is read is spooled to disk, never held in memory.
"""

import hashlib
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO
from urllib.parse import unquote, urlsplit

import fsspec
import requests
from requests_hardened.ip_filter import InvalidIPAddress

from worker.outgoing import Downloads, NotHttpsError
from worker.settings import Settings

_CHUNK = 1024 * 1024


class SourceError(Exception):
    """A reference could not be read."""


class SourceRefusedError(SourceError):
    """It never will be: a forbidden place, not a file, too large. The message says which."""


class SourceUnavailableError(SourceError):
    """It may work later: the other side didn't answer, or failed."""


@dataclass(frozen=True)
class Reference:
    """An opened reference: its bytes, ready to be read from the start."""

    file: BinaryIO
    filename: str
    sha256: str
    size: int
    head: bytes


@contextmanager
def opened(
    source: str, settings: Settings, *, on_read: Callable[[], None] = lambda: None
) -> Iterator[Reference]:
    """Open a reference for as long as the context lasts.

    `on_read` is called with every megabyte: renew a lease there.
    Raises SourceRefusedError or SourceUnavailableError; neither shows a URL's query.
    """
    scheme = source.partition(":")[0].lower()
    if scheme == "path":
        path = source[len("path:") :]
        with _open_path(path, settings.media_roots) as file:
            yield _measured(file, Path(path).name, settings.upload_max_bytes, on_read)
        return
    try:
        name = PurePosixPath(unquote(urlsplit(source).path)).name or "reference"
    except ValueError as error:
        raise SourceRefusedError(f"a reference is no address: {error}") from None
    with tempfile.TemporaryFile(prefix="seedance-reference-") as spool:
        if scheme == "s3":
            _copy_s3(source, spool, settings.upload_max_bytes, on_read)
        else:
            _copy_http(source, spool, settings, on_read)
        yield _measured(spool, name, settings.upload_max_bytes, on_read)


def _measured(file: BinaryIO, filename: str, most: int, on_read: Callable[[], None]) -> Reference:
    digest = hashlib.sha256()
    file.seek(0)
    head = file.read(_CHUNK)
    size = 0
    chunk = head
    while chunk:
        digest.update(chunk)
        size += len(chunk)
        _check_size(size, most)
        on_read()
        chunk = file.read(_CHUNK)
    if size == 0:
        raise SourceRefusedError(f"{filename} is empty")
    file.seek(0)
    return Reference(file, filename, digest.hexdigest(), size, head)


def _check_size(size: int, most: int) -> None:
    if size > most:
        raise SourceRefusedError(
            f"it has more than {most} bytes, the most that SEEDANCE_UPLOAD_MAX_BYTES allows"
        )


def _open_path(name: str, roots: tuple[Path, ...]) -> BinaryIO:
    if not roots:
        raise SourceRefusedError(
            f"path:{name} can't be read: SEEDANCE_MEDIA_ROOTS is not set for this worker"
        )
    tried = [Path(name)] if Path(name).is_absolute() else [root / name for root in roots]
    for candidate in tried:
        try:
            real = candidate.resolve(strict=True)
        except FileNotFoundError:
            continue
        except (OSError, RuntimeError) as error:
            raise SourceRefusedError(f"path:{name} can't be read: {error}") from None
        if not any(real.is_relative_to(root.resolve()) for root in roots):
            raise SourceRefusedError(f"path:{name} lies outside SEEDANCE_MEDIA_ROOTS")
        return _open_regular(real, name, roots)
    raise SourceRefusedError(f"path:{name} does not exist under SEEDANCE_MEDIA_ROOTS")


def _open_regular(real: Path, name: str, roots: tuple[Path, ...]) -> BinaryIO:
    # O_NONBLOCK: opening a FIFO must not hang a worker.
    try:
        descriptor = os.open(real, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise SourceRefusedError(f"path:{name} can't be read: {error.strerror}") from None
    # Looked at again through the open file: the path may have been swapped in between.
    link = Path(f"/proc/self/fd/{descriptor}")
    inside = not link.exists() or any(
        link.resolve().is_relative_to(root.resolve()) for root in roots
    )
    # A folder opens as well, but not as a file object.
    if not inside or not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise SourceRefusedError(f"path:{name} is not a regular file under SEEDANCE_MEDIA_ROOTS")
    return os.fdopen(descriptor, "rb")


def _copy_http(
    source: str, spool: BinaryIO, settings: Settings, on_read: Callable[[], None]
) -> None:
    shown = f"{urlsplit(source).scheme}://{urlsplit(source).hostname}{urlsplit(source).path}"
    private = settings.allow_private_sources
    downloads = Downloads(
        private=private,
        https_only=not private,
        connect_timeout=settings.http_connect_timeout,
        timeout=settings.http_timeout,
    )
    try:
        with downloads as session, session.get(source, stream=True) as answer:
            _check_answer(answer.status_code, shown)
            _drain(answer.iter_content(_CHUNK), spool, settings.upload_max_bytes, on_read)
    except NotHttpsError:
        raise SourceRefusedError(
            f"{shown} is not read over https all the way, which SEEDANCE_ALLOW_PRIVATE_SOURCES"
            " would have to allow"
        ) from None
    except InvalidIPAddress:
        raise SourceRefusedError(
            f"{shown} has a private or loopback address, which SEEDANCE_ALLOW_PRIVATE_SOURCES"
            " would have to allow"
        ) from None
    except (
        requests.exceptions.MissingSchema,
        requests.exceptions.InvalidURL,
        requests.exceptions.InvalidSchema,
        requests.exceptions.TooManyRedirects,
    ) as error:
        raise SourceRefusedError(f"{shown} can't be read: {type(error).__name__}") from None
    except (requests.RequestException, OSError) as error:
        raise SourceUnavailableError(f"{shown} can't be read: {type(error).__name__}") from None


def _check_answer(status: int, shown: str) -> None:
    if status == requests.codes.ok:
        return
    message = f"{shown} answered HTTP {status}"
    if status in (408, 425, 429) or status >= 500:
        raise SourceUnavailableError(message)
    raise SourceRefusedError(message)


def _copy_s3(source: str, spool: BinaryIO, most: int, on_read: Callable[[], None]) -> None:
    shown = source.partition("?")[0]
    try:
        with fsspec.open(source, "rb") as remote:
            _drain(iter(lambda: remote.read(_CHUNK), b""), spool, most, on_read)
    except ImportError:
        raise SourceRefusedError(
            f"{shown} needs the extra `s3`: pip install 'seedance-worker[s3]'"
        ) from None
    except (FileNotFoundError, PermissionError) as error:
        raise SourceRefusedError(f"{shown} can't be read: {type(error).__name__}") from None
    except SourceError:
        raise
    except Exception as error:  # noqa: BLE001  (s3fs lets errors of several libraries through)
        raise SourceUnavailableError(f"{shown} can't be read: {type(error).__name__}") from None


def _drain(
    chunks: Iterator[bytes], spool: BinaryIO, most: int, on_read: Callable[[], None]
) -> None:
    size = 0
    for chunk in chunks:
        size += len(chunk)
        _check_size(size, most)
        spool.write(chunk)
        on_read()
