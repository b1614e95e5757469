"""The demo's stand-in for a producer's web server: takes webhooks and verifies each."""

import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

from standardwebhooks import Webhook, WebhookVerificationError

_PATH = "/hooks/video"
_MOST = 200_000


@dataclass
class Heard:
    """What came, by generation."""

    statuses: dict[str, str] = field(default_factory=dict)
    unverified: int = 0


class Listener:
    """Listens while the context lasts."""

    def __init__(self, secret: str) -> None:
        self.heard = heard = Heard()
        webhook = Webhook(secret)

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                """Take one webhook."""
                size = min(int(self.headers.get("Content-Length") or 0), _MOST)
                body = self.rfile.read(size)
                try:
                    notice: Any = webhook.verify(body, dict(self.headers.items()))
                    heard.statuses[notice["data"]["id"]] = notice["data"]["status"]
                    code = 204
                except (WebhookVerificationError, json.JSONDecodeError, KeyError, TypeError):
                    heard.unverified += 1
                    code = 401
                self.send_response(code)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """The demo's screen is not its place."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, name="listener")

    @property
    def url(self) -> str:
        """Where webhooks are sent to."""
        return f"http://127.0.0.1:{self._server.server_address[1]}{_PATH}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)
