"""An archive in an object store, through fsspec: an object is there when its upload is complete."""

import contextlib
import os
import tempfile
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, BinaryIO

import fsspec

from worker.archive.address import Address
from worker.archive.store import INCOMING, StorageError, faults_named

_BLOCK = 8 * 1024 * 1024
"""What is held in memory at a time; S3 takes parts of 5 MiB and more."""


class ObjectStore:
    """A folder of a bucket."""

    def __init__(self, address: Address, *, connect_timeout: float, read_timeout: float) -> None:
        self._address = address
        self._options: dict[str, Any] = {"use_listings_cache": False}
        if address.protocol == "s3":
            self._options["config_kwargs"] = {
                "connect_timeout": connect_timeout,
                "read_timeout": read_timeout,
                "retries": {"mode": "standard", "max_attempts": 2},
            }

    def _fs(self) -> Any:
        # fsspec keeps one for each process and set of options; connected when first used.
        return fsspec.filesystem(self._address.protocol, **self._options)

    @contextlib.contextmanager
    def part(self, owner: str, lease: int) -> Iterator["ObjectPart"]:  # noqa: ARG002
        """See `Store.part`. Spooled to an unnamed file of this machine, which dies with us."""
        with faults_named():
            file = tempfile.TemporaryFile(prefix="seedance-archive-")  # noqa: SIM115  (closed below)
        try:
            yield ObjectPart(self._fs, self._address, file)
        finally:
            with contextlib.suppress(OSError):  # what could not be written, can't be now
                file.close()

    def probe(self) -> bool:
        """See `Store.probe`."""
        data = os.urandom(64)
        with faults_named():
            fs = self._fs()
            path = f"{self._address.path}/{INCOMING}/probe-{uuid.uuid4().hex}"
            fs.pipe_file(path, data)
            if fs.cat_file(path) != data:
                raise StorageError("what was written is not what is read back")
            try:
                fs.rm_file(path)
            except Exception:  # noqa: BLE001  (keys that may write but not delete are fine)
                return False
        return True

    def sweep(self, older_than: float) -> int:
        """See `Store.sweep`. Other stores than S3 let go of unfinished uploads by themselves."""
        if self._address.protocol != "s3":
            return 0
        swept = 0
        with faults_named():
            fs = self._fs()
            bucket, _, folder = self._address.path.partition("/")
            before = datetime.now(UTC) - timedelta(seconds=older_than)
            for upload in fs.list_multipart_uploads(bucket):
                ours = upload["Key"].startswith(f"{folder}/" if folder else "")
                if ours and upload["Initiated"] < before:
                    fs.abort_mpu(bucket, upload["Key"], upload["UploadId"])
                    swept += 1
        return swept


class ObjectPart:
    """A file that is uploaded when it is whole."""

    def __init__(self, fs: Any, address: Address, file: BinaryIO) -> None:
        self._fs, self._address, self.file = fs, address, file

    def write(self, data: bytes) -> None:
        """See `Part.write`."""
        with faults_named():
            self.file.write(data)
            self.file.flush()

    def keep(self, name: str, *, size: int, alive: Callable[[], None] | None = None) -> str:
        """See `Part.keep`."""
        path = f"{self._address.path}/{name}"
        with faults_named():
            fs = self._fs()
            there = _size_if_shown(fs, path)
        if there != size:
            _upload(fs, path, self.file, alive)
            with faults_named():
                if (there := _size(fs, path)) != size:
                    raise StorageError(f"{there} bytes are there of the {size} that were written")
        return f"{self._address.protocol}://{path}"


def _size(fs: Any, path: str) -> int:
    return int(fs.info(path)["size"])


def _size_if_shown(fs: Any, path: str) -> int | None:
    # To keys that may not list, what isn't there is forbidden.
    with contextlib.suppress(FileNotFoundError, PermissionError):
        return _size(fs, path)
    return None


def _upload(fs: Any, path: str, file: BinaryIO, alive: Callable[[], None] | None) -> None:
    with faults_named():
        file.seek(0)
        remote = fs.open(path, "wb", block_size=_BLOCK)
    try:
        while _moved_on(remote, file):
            if alive is not None:
                alive()
        with faults_named():
            remote.close()
    except BaseException:
        # Closing it, which collecting it does as well, would make an object of what got there.
        remote.closed = True
        with contextlib.suppress(Exception):
            remote.discard()
        raise


def _moved_on(remote: Any, file: BinaryIO) -> bool:
    with faults_named():
        chunk = file.read(_BLOCK)
        remote.write(chunk)
    return bool(chunk)
