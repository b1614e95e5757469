"""`seedance metrics`: `/metrics` by itself, where no gateway runs; by the standard library."""

import contextlib
import logging
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable
from socketserver import TCPServer, ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from models.database import make_engine
from worker.metrics.scrape import CONTENT_TYPE, Answer, Scrapes, bears, scrapes
from worker.settings import Settings

log = logging.getLogger(__name__)

_REASONS = {200: "OK", 401: "Unauthorized", 404: "Not Found", 503: "Service Unavailable"}


App = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]

MOST = 16
"""Requests that are answered at a time: scrapers are few, and each holds a thread."""

LONGEST = 30.0
"""Seconds that a connection may last, however slowly its request comes or its answer is taken."""

_BUSY = b"HTTP/1.0 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"


class Server(ThreadingMixIn, WSGIServer):
    """A server by threads, of which there are never more than so many."""

    daemon_threads = True
    request_queue_size = 16

    def __init__(self, host: str, port: int, app: App, *, longest: float = LONGEST) -> None:
        """Listen. Raises OSError where that is not possible."""
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        self.address_family, *_, where = found[0]
        self._longest = longest
        self._free = threading.BoundedSemaphore(MOST)
        self._open: dict[int, tuple[socket.socket, float]] = {}
        super().__init__((str(where[0]), int(where[1])), _Handler)
        self.set_app(app)

    def server_bind(self) -> None:
        """As its bases do it, without asking a name server who this machine is."""
        TCPServer.server_bind(self)
        host, self.server_port = self.server_address[:2]
        self.server_name = str(host)
        self.setup_environ()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in a thread, if one is free."""
        if not self._free.acquire(blocking=False):
            with contextlib.suppress(OSError):
                request.setblocking(False)  # a stranger must not hold up the next
                request.send(_BUSY)
            self.shutdown_request(request)
            return
        self._open[id(request)] = (request, time.monotonic())
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer, and give the thread back."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._open.pop(id(request), None)
            self._free.release()

    def service_actions(self) -> None:
        """Cut off what lasts too long: a byte now and then keeps no thread."""
        until = time.monotonic() - self._longest
        for request, since in list(self._open.values()):
            if since < until:
                with contextlib.suppress(OSError):
                    request.shutdown(socket.SHUT_RDWR)


class _Handler(WSGIRequestHandler):
    timeout = 10

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  (the base's name)
        log.debug(format, *args)

    def address_string(self) -> str:
        return str(self.client_address[0])


def application(taken: Scrapes, token: str) -> App:
    """The WSGI app: `/metrics`, and `/healthz` for whoever wants to know that it is alive."""

    def look(environ: dict[str, Any]) -> Answer:
        match environ.get("PATH_INFO"):
            case "/healthz":
                return Answer(200, b"alive\n")
            case "/metrics" if token and not bears(environ.get("HTTP_AUTHORIZATION"), token):
                return Answer(401, b"a bearer token is needed: SEEDANCE_METRICS_TOKEN\n")
            case "/metrics":
                return taken.answer()
            case _:
                return Answer(404, b"the figures are at /metrics\n")

    def app(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        answer = look(environ)
        headers = [("Content-Type", CONTENT_TYPE), ("Content-Length", str(len(answer.body)))]
        if answer.status == 401:
            headers.append(("WWW-Authenticate", "Bearer"))
        start(f"{answer.status} {_REASONS[answer.status]}", headers)
        return [answer.body]

    return app


def serve(settings: Settings) -> None:
    """Serve until SIGTERM or Ctrl-C. Raises OSError where it can't listen."""
    engine = make_engine(settings.database_url, pool_size=2, application="seedance-metrics")
    app = application(scrapes(settings, engine), settings.metrics_token.get_secret_value())
    server = Server(settings.metrics_host, settings.metrics_port, app)
    log.info("metrics at %s, port %d", settings.metrics_host, server.server_port)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        server.serve_forever(poll_interval=0.2)
    except KeyboardInterrupt:
        pass
    finally:
        server.server_close()
        engine.dispose()
