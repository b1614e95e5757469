"""What an archive can do, whatever it is: take a file in, and show it only when it is whole."""

import contextlib
import errno
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import BinaryIO, Protocol

from api_client import redact
from worker.archive.address import Address, parse

INCOMING = ".incoming"
"""The folder of what is not whole yet, in the archive."""

_MOST_SAID = 300


class StorageError(Exception):
    """The archive could not take, show or remove something: the fault's name and its words.

    `refused`: it is set up wrongly (no such bucket, no permission), which waiting doesn't mend.
    """

    def __init__(self, said: str, *, refused: bool = False) -> None:
        super().__init__(said)
        self.refused = refused


class Part(Protocol):
    """A file on its way into the archive."""

    file: BinaryIO
    """For reading back what was written."""

    def write(self, data: bytes) -> None:
        """Append. Raises StorageError."""

    def keep(self, name: str, *, size: int, alive: Callable[[], None] | None = None) -> str:
        """Show it under its final name, whole, and return its URI. The same name means the same
        bytes: what is there already with this size is kept instead. `alive` is called now and
        then where it takes long. Raises StorageError, and what `alive` raises.
        """


class Store(Protocol):
    """An archive."""

    def part(self, owner: str, lease: int) -> AbstractContextManager[Part]:
        """A new file; what is not kept is gone afterwards, also what the same owner left behind
        under a smaller lease. Raises StorageError.
        """

    def probe(self) -> bool:
        """Write, read back and remove a few bytes; False if they can't be removed.

        Raises StorageError.
        """

    def sweep(self, older_than: float) -> int:
        """Remove what was on its way so many seconds ago; returns how much. Raises StorageError."""


def open_store(url: str, *, connect_timeout: float, read_timeout: float) -> Store | None:
    """The archive of `SEEDANCE_ARCHIVE_URL`; None for none. Touches nothing yet."""
    if not url:
        return None
    address: Address = parse(url)
    if address.protocol == "file":
        from worker.archive.folder import Folder

        return Folder(address)
    from worker.archive.objects import ObjectStore

    return ObjectStore(address, connect_timeout=connect_timeout, read_timeout=read_timeout)


@contextlib.contextmanager
def faults_named() -> Iterator[None]:
    """Whatever a storage raises, as StorageError with its name and no secrets."""
    try:
        yield
    except StorageError:
        raise
    except Exception as error:  # noqa: BLE001  (object stores let errors of several libraries through)
        raise StorageError(named(error), refused=_refused(error)) from None


def named(error: Exception) -> str:
    """An error by its name and its words, without secrets: `OSError ENOSPC: No space left …`."""
    name = type(error).__name__
    if isinstance(error, OSError) and error.errno is not None:
        name += f" {errno.errorcode.get(error.errno, error.errno)}"
    said = redact(" ".join(str(error).split()))[:_MOST_SAID]
    return f"{name}: {said}"


def _refused(error: Exception) -> bool:
    wrong = (PermissionError, FileNotFoundError, NotADirectoryError, ImportError)
    return isinstance(error, wrong) or type(error).__name__ == "NoCredentialsError"
