"""An archive in a folder: written beside, synced, then renamed into its place."""

import contextlib
import os
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from worker.archive.address import Address
from worker.archive.store import INCOMING, StorageError, faults_named

_SUFFIX = ".part"


class Folder:
    """A folder of this machine, or one that all workers have mounted."""

    def __init__(self, address: Address) -> None:
        self._root = Path(address.path)
        self._incoming = self._root / INCOMING

    @contextlib.contextmanager
    def part(self, owner: str, lease: int) -> Iterator["FolderPart"]:
        """See `Store.part`."""
        with faults_named():
            self._make()
            # Whoever writes these has lost its lease, or its life.
            for left in self._incoming.glob(f"{owner}.*{_SUFFIX}"):
                if _lease_of(left) <= lease:
                    left.unlink(missing_ok=True)
            path = self._incoming / f"{owner}.{lease}{_SUFFIX}"
            file = path.open("xb+")
        try:
            yield FolderPart(self._root, path, file)
        finally:
            with contextlib.suppress(OSError):  # what could not be written, can't be now
                file.close()
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)

    def probe(self) -> bool:
        """See `Store.probe`."""
        data = os.urandom(64)
        with faults_named():
            self._make()
            path = self._incoming / f"probe-{uuid.uuid4().hex}{_SUFFIX}"
            try:
                _write(path, data)
                if path.read_bytes() != data:
                    raise StorageError("what was written is not what is read back")
            finally:
                path.unlink(missing_ok=True)
        return True

    def sweep(self, older_than: float) -> int:
        """See `Store.sweep`."""
        swept = 0
        with faults_named():
            for left in self._incoming.glob(f"*{_SUFFIX}"):
                with contextlib.suppress(FileNotFoundError):
                    if left.stat().st_mtime < time.time() - older_than:
                        left.unlink()
                        swept += 1
        return swept

    def _make(self) -> None:
        # Not the folder itself: where a disk is not mounted, all would land beside it.
        self._incoming.mkdir(exist_ok=True)


class FolderPart:
    """A file in the folder's `.incoming`."""

    def __init__(self, root: Path, path: Path, file: BinaryIO) -> None:
        self._root, self._path, self.file = root, path, file

    def write(self, data: bytes) -> None:
        """See `Part.write`."""
        with faults_named():
            self.file.write(data)
            self.file.flush()  # a full disk is told here, and not by whoever reads it back

    def keep(self, name: str, *, size: int, alive: Callable[[], None] | None = None) -> str:  # noqa: ARG002
        """See `Part.keep`. Renaming takes no time."""
        final = self._root / name
        with faults_named():
            if not _there(final, size):
                self.file.flush()
                os.fsync(self.file.fileno())
                if os.fstat(self.file.fileno()).st_size != size:
                    raise StorageError(f"the file has not the {size} bytes that were written")
                final.parent.mkdir(exist_ok=True)
                # Gone by now if somebody with a newer lease is at it: then this raises.
                self._path.replace(final)
                _sync(final.parent)
                _sync(self._root)  # the folder's own name may be new as well
        return final.as_uri()


def _lease_of(path: Path) -> int:
    lease = path.name.removesuffix(_SUFFIX).rpartition(".")[2]
    return int(lease) if lease.isdecimal() else 0


def _there(path: Path, size: int) -> bool:
    try:
        return path.stat().st_size == size
    except FileNotFoundError:
        return False


def _write(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    """A new name survives a power cut when its folder is on the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
