"""Fetching from a server that behaves in every way: streamed, counted, bounded, without secrets."""

import hashlib
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from tests.certificates import certify
from worker.archive.fetching import AddressRefusedError, DownloadError, Fetched, fetch
from worker.outgoing import Downloads, NotHttpsError
from worker.settings import Settings, load_settings

BODY = b"\0\0\0\x14ftypisom\0\0\2\0mp41" + bytes(range(256)) * 8_000
HIDDEN = "?token=hidden"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        server: Any = self.server
        server.hits.append(self.path)
        server.headers.append(dict(self.headers))
        path, _, argument = self.path.partition("?")[0].strip("/").partition("/")
        match path:
            case "status":
                self._send(b"<Error/>", status=int(argument))
            case "cut":
                self._send(BODY[: len(BODY) // 2], length=len(BODY))
                self.close_connection = True
            case "reset":
                self._send(BODY[:100], length=len(BODY))
                self.connection.close()
            case "chunked":
                self._chunks(whole=True)
            case "chunked-cut":
                self._chunks(whole=False)
            case "empty":
                self._send(b"")
            case "redirect":
                self._send(b"", status=302, Location=f"/video{HIDDEN}")
            case "away":
                self._send(b"", status=302, Location=f"file:///etc/passwd{HIDDEN}")
            case "elsewhere":
                self._send(b"", status=302, Location=server.to)
            case "round":
                self._send(b"", status=302, Location=f"/round{HIDDEN}")
            case "silent":
                server.release.wait(10)
            case "drip":
                self._drip()
            case _:
                self._send(BODY, **{"Content-Type": "Video/MP4; codecs=avc1"})

    def _send(
        self, body: bytes, *, status: int = 200, length: int | None = None, **headers: str
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def _chunks(self, *, whole: bool) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for at in range(0, len(BODY), 100_000):
            piece = BODY[at : at + 100_000]
            self.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
            if not whole:
                self.close_connection = True
                return
        self.wfile.write(b"0\r\n\r\n")

    def _drip(self) -> None:
        server: Any = self.server
        self.send_response(200)
        self.send_header("Content-Length", "5")
        self.end_headers()
        for byte in b"abcde":
            self.wfile.write(bytes([byte]))
            server.release.wait(0.3)

    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def serving(context: ssl.SSLContext | None = None) -> Iterator[Any]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        running: Any = server
        if context is not None:
            server.socket = context.wrap_socket(server.socket, server_side=True)
        running.hits, running.headers, running.release = [], [], threading.Event()
        server.daemon_threads = True
        running.handle_error = lambda *_: None  # clients that leave are what it is for
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        running.release.set()
        server.shutdown()
        thread.join()


@pytest.fixture
def server() -> Iterator[Any]:
    with serving() as server:
        yield server


@pytest.fixture
def site(server) -> str:
    return f"http://127.0.0.1:{server.server_port}"


def settings(**changes: Any) -> Settings:
    return load_settings(
        {"SEEDANCE_API_KEY": "k-very-secret", "SEEDANCE_DATABASE_URL": "postgresql://h/db"},
        **{"api_base_url": "http://127.0.0.1:1", "http_timeout": 1.0, **changes},
    )


def read(url: str, **changes: Any) -> tuple[Fetched, bytes]:
    into = bytearray()
    fetched = fetch(url, into.extend, settings(**changes), on_read=lambda: None)
    return fetched, bytes(into)


def refused(url: str, **changes: Any) -> str:
    with pytest.raises(DownloadError) as caught:
        read(url, **changes)
    for secret in ("hidden", "token", "k-very-secret"):
        assert secret not in str(caught.value)
    assert caught.value.__cause__ is None
    return str(caught.value)


@pytest.mark.parametrize("path", ["/video", "/chunked", "/redirect"])
def test_what_is_there_is_read_to_its_end(site, path):
    fetched, data = read(site + path + HIDDEN)
    assert data == BODY
    assert (fetched.size, fetched.sha256) == (len(BODY), hashlib.sha256(BODY).hexdigest())
    assert fetched.head == BODY[:4096]
    assert fetched.content_type == ("" if path == "/chunked" else "video/mp4")


def test_it_comes_in_pieces_and_is_never_held_whole(site):
    pieces: list[int] = []
    reads: list[int] = []
    fetch(
        f"{site}/video",
        lambda piece: pieces.append(len(piece)),
        settings(),
        on_read=lambda: reads.append(1),
    )
    assert sum(pieces) == len(BODY)
    assert max(pieces) <= 256 * 1024
    assert len(reads) == len(pieces) > 5


def test_a_slow_line_is_told_of_with_every_piece(site):
    """So that the lease is renewed while little comes."""
    reads: list[int] = []
    fetch(f"{site}/drip", lambda piece: None, settings(), on_read=lambda: reads.append(1))
    assert len(reads) >= 3


@pytest.mark.parametrize("path", ["/cut", "/reset", "/chunked-cut"])
def test_an_answer_that_is_cut_off_is_not_whole(site, path):
    refused(site + path + HIDDEN)


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_a_refused_address_is_told_apart(site, status):
    with pytest.raises(AddressRefusedError, match=f"127.0.0.1 answered HTTP {status}"):
        read(f"{site}/status/{status}{HIDDEN}")


@pytest.mark.parametrize("status", [204, 206, 400, 408, 429, 500, 503])
def test_other_answers_than_ok_are_failures(site, status):
    assert f"HTTP {status}" in refused(f"{site}/status/{status}{HIDDEN}")


def test_sizes_are_bounded(site):
    message = refused(f"{site}/video{HIDDEN}", archive_max_bytes=len(BODY) - 1)
    assert "SEEDANCE_ARCHIVE_MAX_BYTES" in message
    assert "empty" in refused(f"{site}/empty{HIDDEN}")
    assert read(f"{site}/video", archive_max_bytes=len(BODY))[1] == BODY


@pytest.mark.parametrize("path", ["/away", "/round"])
def test_redirects_to_nowhere_end(site, path):
    assert "passwd" not in refused(site + path + HIDDEN)


def test_silence_ends(site):
    assert "Timeout" in refused(f"{site}/silent{HIDDEN}")


def test_nobody_there():
    assert "NewConnectionError" in refused(f"http://127.0.0.1:1/x{HIDDEN}")


@pytest.mark.parametrize("url", ["http://", "https://[bad", "http://exa mple/a", "nothing", ""])
def test_what_is_no_address_is_refused(url):
    refused(url)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "10.0.0.1", "169.254.169.254"])
def test_private_addresses_are_refused_where_the_provider_is_a_real_one(server, host):
    real = "https://api.seedance2.movie"
    url = f"https://{host}:{server.server_port}/video{HIDDEN}"
    assert "SEEDANCE_ALLOW_PRIVATE_SOURCES" in refused(url, api_base_url=real)
    assert server.hits == [], "not even asked"


def test_plain_http_is_for_a_simulated_provider_only(server, site):
    for private in (False, True):
        message = refused(
            f"{site}/video{HIDDEN}",
            api_base_url="https://api.seedance2.movie",
            allow_private_sources=private,
        )
        assert "https" in message
    assert server.hits == []


def test_no_redirect_leads_away_from_https(server, tmp_path):
    """Not followed and looked at afterwards: nothing is sent there."""
    certificate = certify(tmp_path)
    down = f"http://127.0.0.1:{server.server_port}/video{HIDDEN}"
    with serving(certificate.server_context()) as secure:
        secure.to, url = down, f"https://127.0.0.1:{secure.server_port}"
        with Downloads(private=True, https_only=True, connect_timeout=5, timeout=5) as session:
            session.verify = str(certificate.pem)
            assert session.get(f"{url}/video").content == BODY
            with pytest.raises(NotHttpsError):
                session.get(f"{url}/elsewhere")
        assert [hit.partition("?")[0] for hit in secure.hits] == ["/video", "/elsewhere"]
    assert server.hits == []


@pytest.mark.parametrize("private", [True, False])
def test_a_name_that_nobody_answers_for_ends(private, monkeypatch):
    """The system's own lookup may take half a minute, and knows no timeout."""
    answered = threading.Event()
    real = socket.getaddrinfo

    def lookup(host, *args, **kwargs):
        if host == "lost.example":
            answered.wait(60)
        return real(host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    began = time.monotonic()
    message = refused(
        f"https://lost.example/video{HIDDEN}",
        api_base_url="https://api.seedance2.movie",
        allow_private_sources=private,
        http_connect_timeout=0.2,
    )
    assert time.monotonic() - began < 30
    assert "ConnectTimeout" in message
    answered.set()


def test_neither_key_nor_netrc_nor_proxy_goes_along(site, server, monkeypatch, tmp_path):
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login u password p\n")
    monkeypatch.setenv("NETRC", str(netrc))
    for name in ("HTTP_PROXY", "http_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert read(f"{site}/redirect")[1] == BODY
    for headers in server.headers:
        assert not {"authorization", "x-api-key"} & {name.lower() for name in headers}
        assert headers["Accept-Encoding"] == "identity"


def test_what_writing_raises_comes_out_as_it_is(site):
    def full(piece: bytes) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        fetch(f"{site}/video", full, settings(), on_read=lambda: None)
