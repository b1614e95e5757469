"""Sentry's own SDK against a server that keeps what it is sent."""

import gzip
import json
import logging
import threading
import uuid
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import sentry_sdk

from tests.waiting import wait_for
from worker import logs, reports

KEY = "sk-very-secret"
PROMPT = "a cat that nobody may see"
GENERATION = str(uuid.UUID(int=7))


@pytest.fixture
def sentry(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The address of a server is in SENTRY_DSN; here is what came in, as text."""
    taken: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            taken.append(body.decode())
            self.send_response(200)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("SENTRY_DSN", f"http://dsn-secret@127.0.0.1:{server.server_port}/1")
    monkeypatch.setenv("SEEDANCE_API_KEY", KEY)
    yield taken
    sentry_sdk.get_client().close(timeout=2)
    sentry_sdk.init(dsn="", default_integrations=False)  # reports nothing any more
    server.shutdown()
    server.server_close()
    thread.join(5)


def events(taken: list[str]) -> list[dict[str, Any]]:
    lines = [line for envelope in taken for line in envelope.splitlines()]
    return [item for item in map(json.loads, filter(None, lines)) if "level" in item]


def test_an_error_is_reported_with_its_generation_and_without_secrets(sentry: list[str]) -> None:
    assert reports.start("worker1@host")
    log = logging.getLogger("worker.stages.submit")
    logs.task_begins("seedance.submit", f"{GENERATION}.submit.7", [[[GENERATION, 7]]])
    request = {"content": [{"type": "text", "text": PROMPT}]}
    log.info("a line before, with %s", KEY)
    try:
        int(f"{KEY} {request} https://h/p?token=geheim")
    except ValueError:
        log.exception("it failed for %s", request)
    finally:
        logs.task_ends()
    sentry_sdk.flush(timeout=10)
    [event] = wait_for(lambda: events(sentry), "the report comes")
    assert event["level"] == "error"
    assert event["tags"] == {
        "generation": GENERATION,
        "stage": "submit",
        "task": f"{GENERATION}.submit.7",
        "process": "worker1@host",
    }
    assert event["exception"]["values"][0]["type"] == "ValueError"
    everything = "".join(sentry)
    for secret in (KEY, PROMPT, "geheim", '"vars"'):
        assert secret not in everything


def test_warnings_are_not_reported(sentry: list[str]) -> None:
    assert reports.start("worker1@host")
    logging.getLogger("worker").warning("held back")
    sentry_sdk.flush(timeout=5)
    assert events(sentry) == []


def test_without_an_address_nothing_is_set_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SENTRY_DSN", raising=False)
    assert reports.start("worker") is False
