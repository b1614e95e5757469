"""A producer's web server for tests: takes webhooks, verifies them, and may be told to fail."""

import base64
import json
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from standardwebhooks import Webhook, WebhookVerificationError

SECRET = f"whsec_{base64.b64encode(bytes(range(32))).decode()}"


@dataclass(frozen=True)
class Heard:
    """One request."""

    at: float
    path: str
    id: str
    verified: bool
    payload: dict[str, Any]
    headers: dict[str, str]
    answered: int

    @property
    def data(self) -> dict[str, Any]:
        return self.payload["data"]


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Senders that are killed in the middle are what tests do."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


@dataclass
class Receiver:
    """What was heard, and what is answered from now on."""

    secret: str = SECRET
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0.0
    statuses: dict[str, int] = field(default_factory=dict)
    """By path, where it differs."""
    heard: list[Heard] = field(default_factory=list)
    port: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _server: ThreadingHTTPServer | None = None
    _thread: threading.Thread | None = None

    def url(self, path: str = "/hook") -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def taken(self) -> list[Heard]:
        """Those that were answered with a yes."""
        return [one for one in self.heard if 200 <= one.answered < 300]

    def start(self) -> None:
        """Listen, at the same port as before, if it does not."""
        with self._lock:
            if self._server is None:
                self._start()

    def _start(self) -> None:
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                receiver._hear(self)

            def log_message(self, *args: object) -> None:
                """Quiet."""

        self._server = _Server(("127.0.0.1", self.port), Handler)
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    def stop(self) -> None:
        """Be down: connections are refused."""
        with self._lock:
            if self._server is not None and self._thread is not None:
                self._server.shutdown()
                self._server.server_close()
                self._thread.join(10)
                self._server = self._thread = None

    def _hear(self, request: BaseHTTPRequestHandler) -> None:
        body = request.rfile.read(int(request.headers["Content-Length"]))
        headers = {name.lower(): value for name, value in request.headers.items()}
        try:
            Webhook(self.secret).verify(body, headers)
            verified = True
        except WebhookVerificationError:
            verified = False
        time.sleep(self.delay)
        path = request.path
        status = self.statuses.get(path.partition("?")[0], self.status)
        self.heard.append(
            Heard(
                time.time(),
                path,
                headers.get("webhook-id", ""),
                verified,
                json.loads(body),
                headers,
                status,
            )
        )
        try:
            request.send_response(status)
            for name, value in self.headers.items():
                request.send_header(name, value)
            request.send_header("Content-Length", "0")
            request.end_headers()
        except OSError:
            pass  # whoever sent it did not wait


@contextmanager
def receiving() -> Iterator[Receiver]:
    """A receiver that listens."""
    receiver = Receiver()
    receiver.start()
    try:
        yield receiver
    finally:
        receiver.stop()


def closed_port() -> int:
    """A port of this machine on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def webhook_settings(receiver: Receiver) -> dict[str, str]:
    """What a worker must be told to send webhooks there."""
    return {
        "SEEDANCE_WEBHOOK_SECRETS": receiver.secret,
        "SEEDANCE_ALLOW_PRIVATE_WEBHOOKS": "true",
        "SEEDANCE_NOTICE_RETRY": "0.2",
    }
