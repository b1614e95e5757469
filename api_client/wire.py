"""Connections that know the moment before the first byte.

Two questions decide whether a request may be sent again: was anything of it written, and may it
still be written now? urllib3 connects and writes in one go, and its exceptions don't tell the two
apart reliably. So connections here connect first, then run the caller's check, note that
writing begins, and only then write. The state of one request travels in a context variable, since
requests passes nothing of its own down to urllib3.
"""

from __future__ import annotations

import io
import time
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from http.client import HTTPResponse
from typing import TYPE_CHECKING, Any

import requests.adapters
import requests.exceptions
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator

    import urllib3


class Abandoned(Exception):
    """Carries an exception of the caller's own code through the HTTP libraries unchanged.

    They would take an OSError of the caller for one of the network; this type they let pass.
    """

    def __init__(self, original: BaseException) -> None:
        super().__init__()
        self.original = original


@dataclass(slots=True)
class Wire:
    """The state of one request on its way."""

    timeout: float
    """Longest silence, for writing and for reading."""
    total: float
    """From the first byte written to the last read."""
    max_idle: float
    before_send: Callable[[], None] | None = None
    sent: float | None = None
    """`time.monotonic()` just before the first byte; None means that nothing was written."""

    def begin(self) -> None:
        """Asks for permission and notes the time. Nothing that blocks follows before the write."""
        if self.before_send is not None:
            try:
                self.before_send()
            except BaseException as error:  # noqa: BLE001 - handed on, whatever it is
                raise Abandoned(error) from None
        self.sent = time.monotonic()

    def left(self) -> float:
        """Seconds until `total` is used up; raises TimeoutError when it is."""
        left = self.total if self.sent is None else self.sent + self.total - time.monotonic()
        if left <= 0:
            raise TimeoutError("the answer took too long altogether")
        return left


_current: ContextVar[Wire | None] = ContextVar("wire", default=None)


@contextmanager
def using(wire: Wire) -> Iterator[Wire]:
    """Requests made inside, by this thread, are described by `wire`."""
    token = _current.set(wire)
    try:
        yield wire
    finally:
        _current.reset(token)


def active() -> bool:
    """Whether this thread is inside a request of ours."""
    return _current.get() is not None


class _TimedReader(io.RawIOBase):
    """Reads from a socket until the request's time is up.

    A socket's timeout begins anew with each byte, so a server that trickles would hold a thread
    for hours. And http.client takes a head that is cut off for a complete one.
    """

    head_complete = False

    def __init__(self, sock: socket.socket, wire: Wire) -> None:
        self._sock = sock
        self._wire = wire
        self._raw = sock.makefile("rb", buffering=0)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        self._sock.settimeout(min(self._wire.timeout, self._wire.left()))
        count = self._raw.readinto(buffer)
        if count == 0 and not self.head_complete:
            raise ConnectionResetError("the connection was closed within the head of the answer")
        return count

    def close(self) -> None:
        if not self.closed:
            self._raw.close()
        super().close()


class _Response(HTTPResponse):
    _reader: _TimedReader | None = None

    def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        wire = _current.get()
        if wire is not None:
            self.fp.close()
            self._reader = _TimedReader(sock, wire)
            self.fp = io.BufferedReader(self._reader)

    def begin(self) -> None:
        super().begin()
        if self._reader is not None:
            self._reader.head_complete = True


class _Connection(HTTPConnection):
    response_class: type[HTTPResponse] = _Response
    _used: float = 0.0

    @property
    def is_connected(self) -> bool:
        # The pool asks this before it uses a connection again.
        wire = _current.get()
        if wire is not None and time.monotonic() - self._used > wire.max_idle:
            return False
        return super().is_connected

    def endheaders(self, *args: Any, **kwargs: Any) -> None:
        """Called once per request, when all is ready and nothing is written yet."""
        if self.sock is None:
            self.connect()
        wire = _current.get()
        if wire is not None:
            # Until here it was the connect timeout, or what the last request left.
            self.sock.settimeout(wire.timeout)
            wire.begin()
        super().endheaders(*args, **kwargs)

    def getresponse(self) -> Any:
        response = super().getresponse()
        self._used = time.monotonic()
        return response


class _SecureConnection(_Connection, HTTPSConnection):
    pass


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Connection


class _SecurePool(HTTPSConnectionPool):
    ConnectionCls = _SecureConnection


def _watched(manager: urllib3.PoolManager) -> urllib3.PoolManager:
    manager.pool_classes_by_scheme = {"http": _Pool, "https": _SecurePool}
    return manager


class Adapter(requests.adapters.HTTPAdapter):
    """requests over connections as above, without any retry of its own."""

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        _watched(self.poolmanager)

    def proxy_manager_for(self, proxy: str, **kwargs: Any) -> Any:
        if proxy.lower().startswith("socks"):
            # Its connections are of another kind, and would write without asking.
            raise requests.exceptions.InvalidProxyURL("SOCKS proxies are not supported")
        return _watched(super().proxy_manager_for(proxy, **kwargs))
