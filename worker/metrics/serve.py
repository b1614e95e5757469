"""`seedance metrics`: `/metrics` by itself, where no gateway runs; by the standard library."""

import logging
import signal
import sys
from collections.abc import Callable, Iterable
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from models.database import make_engine
from worker.metrics.scrape import CONTENT_TYPE, Answer, Scrapes, bears, scrapes
from worker.settings import Settings

log = logging.getLogger(__name__)

_REASONS = {200: "OK", 401: "Unauthorized", 404: "Not Found", 503: "Service Unavailable"}


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    # A scraper that sends nothing holds a thread for a while, not for ever.
    request_queue_size = 16


class _Handler(WSGIRequestHandler):
    timeout = 10

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  (the base's name)
        log.debug(format, *args)

    def address_string(self) -> str:
        return str(self.client_address[0])


App = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


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
    server = _Server((settings.metrics_host, settings.metrics_port), _Handler)
    server.set_app(
        application(scrapes(settings, engine), settings.metrics_token.get_secret_value())
    )
    log.info("metrics at %s, port %d", settings.metrics_host, server.server_port)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        server.serve_forever(poll_interval=0.2)
    except KeyboardInterrupt:
        pass
    finally:
        server.server_close()
        engine.dispose()
