"""A file on its way to the storage: streamed, counted, hashed, and never longer than announced."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from typing import BinaryIO

from api_client import wire
from api_client.errors import InvalidRequest

Progress = Callable[[int, int], None]
"""Called with bytes sent and bytes in all; starts again from 0 when an upload is repeated."""


class Body:
    """A request's body of exactly `size` bytes, read from a file as it is sent.

    Its length makes requests send Content-Length: storage refuses chunked uploads.
    """

    def __init__(
        self, file: BinaryIO, size: int, total: float, progress: Progress | None = None
    ) -> None:
        self._file = file
        self._size = size
        self._left = size
        self._deadline = time.monotonic() + total
        self._progress = progress
        self._hash = hashlib.sha256()

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[bytes]:
        while chunk := self.read(64 * 1024):
            yield chunk

    def read(self, amount: int = -1) -> bytes:
        if self._left == 0:
            return b""
        if time.monotonic() > self._deadline:
            raise TimeoutError("the upload took too long altogether")
        wanted = self._left if amount is None or amount < 0 else min(amount, self._left)
        try:
            return self._take(wanted)
        except BaseException as error:  # noqa: BLE001 - the caller's own, not the network's
            raise wire.Abandoned(error) from None

    def _take(self, wanted: int) -> bytes:
        chunk = self._file.read(wanted)
        if not chunk:
            raise InvalidRequest(
                "file",
                f"{self._size - self._left} bytes long",
                f"{self._size} bytes, as it was when the upload began",
            )
        self._left -= len(chunk)
        self._hash.update(chunk)
        if self._progress is not None:
            self._progress(self._size - self._left, self._size)
        return chunk

    @property
    def sha256(self) -> str:
        """Of what has been read."""
        return self._hash.hexdigest()
