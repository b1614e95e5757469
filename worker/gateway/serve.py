"""Runs the gateway until SIGTERM or Ctrl-C."""

import logging
import signal
import socket
import sys

import uvicorn

from models.database import make_engine
from worker.gateway.app import AT_WORK, create_app
from worker.settings import Settings

log = logging.getLogger(__name__)

_MOST_CONNECTIONS = 1_000
_GRACE = 10
_MOST_HEADER_BYTES = 16 * 1024


def serve(settings: Settings) -> None:
    """Serve until told to stop; what is at hand is finished, for up to ten seconds.

    Raises OSError where it can't listen.
    """
    listening = _listen(settings.gateway_host, settings.gateway_port)
    engine = make_engine(settings.database_url, pool_size=AT_WORK, application="seedance-gateway")
    config = uvicorn.Config(
        create_app(settings, engine),
        # Our logging stays, without a line for each request: their paths are secrets.
        log_config=None,
        access_log=False,
        server_header=False,
        # The one whose headers have a bound, also where another is installed.
        http="h11",
        h11_max_incomplete_event_size=_MOST_HEADER_BYTES,
        ws="none",
        lifespan="off",
        limit_concurrency=_MOST_CONNECTIONS,
        timeout_keep_alive=5,
        timeout_graceful_shutdown=_GRACE,
    )
    # uvicorn stops gracefully, then raises the signal again: that is no failure.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        uvicorn.Server(config).run(sockets=[listening])
    finally:
        listening.close()
        engine.dispose()


def _listen(host: str, port: int) -> socket.socket:
    [(family, _, _, _, address), *_] = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    listening = socket.create_server(address[:2], family=family, backlog=2048)
    log.info("the gateway listens on %s, port %d", host, listening.getsockname()[1])
    return listening
