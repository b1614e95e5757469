"""Everything that is sent through the broker, overheard; and sent once more, if wanted.

Valkey's MONITOR shows each LPUSH as it is carried out. That a broker delivers twice, or brings an
old message back, is rare in life and every message here.
"""

import contextlib
import re
import socket
import threading
from urllib.parse import urlsplit

import redis

QUEUES = ("seedance.stages", "celery", "seedance.upkeep")
_COMMAND = re.compile(rb'^\+\d+\.\d+ \[(\d+) [^\]]*\] "lpush" "([^"]+)" "((?:[^"\\]|\\.)*)"', re.I)
_ESCAPE = re.compile(rb"\\(x[0-9a-fA-F]{2}|.)")
_PLAIN = {b"n": b"\n", b"r": b"\r", b"t": b"\t", b"a": b"\a", b"b": b"\b"}
MOST_KEPT = 5_000


class BrokerTap:
    """Overhears the queues of one broker for as long as it is open."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._db = int(urlsplit(url).path.strip("/") or 0)
        self.twice = False
        """Whether each message is sent again as soon as it is seen."""
        self.repeated = 0
        self.seen: list[tuple[str, bytes]] = []
        self._ours: set[bytes] = set()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="broker tap", daemon=True)

    def __enter__(self) -> "BrokerTap":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(5)

    def replay(self, share: float = 1.0) -> int:
        """Send old messages once more: all, or the latest share of them. Returns how many."""
        old = list(self.seen)
        old = old[int(len(old) * (1 - share)) :]
        self._send(old)
        return len(old)

    def _send(self, messages: list[tuple[str, bytes]]) -> None:
        client = redis.Redis.from_url(self.url, socket_timeout=5, socket_connect_timeout=3)
        with contextlib.suppress(redis.RedisError), client:
            for queue, payload in messages:
                self._ours.add(payload)
                client.lpush(queue, payload)
                self.repeated += 1

    def _run(self) -> None:
        while not self._stop.is_set():
            with contextlib.suppress(OSError):
                self._listen()
            self._stop.wait(0.2)

    def _listen(self) -> None:
        where = urlsplit(self.url)
        address = (where.hostname or "127.0.0.1", where.port or 6379)
        with socket.create_connection(address, timeout=3) as wire:
            wire.sendall(b"MONITOR\r\n")
            wire.settimeout(0.5)
            rest = b""
            while not self._stop.is_set():
                try:
                    chunk = wire.recv(2**16)
                except TimeoutError:
                    continue
                if not chunk:
                    return
                *lines, rest = (rest + chunk).split(b"\r\n")
                self._take([m for line in lines if (m := _message(line, self._db)) is not None])

    def _take(self, messages: list[tuple[str, bytes]]) -> None:
        fresh = [m for m in messages if m[1] not in self._ours]
        self.seen = (self.seen + fresh)[-MOST_KEPT:]
        if self.twice and fresh:
            self._send(fresh)


def _message(line: bytes, db: int) -> tuple[str, bytes] | None:
    """The queue and the payload, if the line is a message's publishing in that database."""
    found = _COMMAND.match(line)
    if found is None or int(found[1]) != db or (queue := found[2].decode()) not in QUEUES:
        return None
    return queue, _ESCAPE.sub(_unescape, found[3])


def _unescape(found: re.Match[bytes]) -> bytes:
    what = found[1]
    if what.startswith(b"x") and len(what) == 3:
        return bytes([int(what[1:], 16)])
    return _PLAIN.get(what, what)
