"""The client against servers that misbehave in every way, byte by byte, over loopback.

What counts is what is on the wire: how many requests, which headers, not one byte too early.
"""

import contextlib
import datetime as dt
import gzip
import hashlib
import io
import itertools
import json
import logging
import socket
import ssl
import struct
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from urllib.parse import parse_qs, urlsplit

import pytest

from api_client import (
    AnswerLost,
    ApiError,
    CancelNotAllowed,
    ClientConfig,
    ConcurrencyLimit,
    ContentItem,
    Disposition,
    GenerationRequest,
    InvalidApiKey,
    InvalidRequest,
    NotSent,
    Presigned,
    RateLimited,
    SeedanceClient,
    StorageRefused,
    TaskNotFound,
    WaitTimeout,
)
from tests.certificates import certify
from tests.waiting import wait_for

KEY = "key-that-must-stay-secret"
SIGNATURE = "X-Amz-Signature=signature-that-must-stay-secret"
REQUEST = GenerationRequest(content=[ContentItem(type="text", text="Ein Kätzchen")], seed=0)
PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 1000

# A server that misbehaves


class Request:
    def __init__(self, head: bytes, body: bytes) -> None:
        line, *fields = head.decode("latin-1").split("\r\n")
        self.method, self.target, _ = line.split(" ")
        self.headers = {
            name.lower(): value for name, value in (field.split(": ", 1) for field in fields)
        }
        self.raw = head
        self.body = body

    @property
    def path(self) -> str:
        return urlsplit(self.target).path

    @property
    def query(self) -> dict[str, list[str]]:
        return parse_qs(urlsplit(self.target).query)


Reply = bytes | Callable[[socket.socket], object] | Callable[[Request], bytes]


class Server:
    """Gives its replies in turn, the last one for ever.

    A reply is bytes to send (the connection stays open), or a function of the socket that does
    what it likes, whereupon the connection is closed.
    """

    def __init__(self, *replies: Reply, context: ssl.SSLContext | None = None) -> None:
        self.replies = itertools.chain(replies[:-1], itertools.repeat(replies[-1]))
        self.requests: list[Request] = []
        self.connections = 0
        self.bytes = 0
        self._context = context
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port = self._listener.getsockname()[1]
        self.url = f"http{'s' if context else ''}://127.0.0.1:{self.port}"

    def __enter__(self) -> "Server":
        self._start(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            for sock in self._open:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
        for thread in list(self._threads):
            thread.join(5)

    def _start(self, target, *args) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            self._start(self._serve, sock)

    def _serve(self, sock: socket.socket) -> None:
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            stack.enter_context(sock)
            if self._context:
                sock = stack.enter_context(self._context.wrap_socket(sock, server_side=True))
            with self._lock:
                self._open.add(sock)
            try:
                reader = stack.enter_context(sock.makefile("rb"))
                while self._answer(sock, reader):
                    pass
            finally:
                with self._lock:
                    self._open.discard(sock)

    def _answer(self, sock: socket.socket, reader: io.BufferedReader) -> bool:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            line = reader.readline()
            if not line:
                return False
            self.bytes += len(line)
            head += line
        request = Request(head[:-4], b"")
        length = int(request.headers.get("content-length", 0))
        with self._lock:
            reply = next(self.replies)
        early = getattr(reply, "early", False)
        request.body = b"" if early else reader.read(length)
        self.bytes += len(request.body)
        self.requests.append(request)
        if isinstance(reply, bytes):
            sock.sendall(reply)
            return True
        answer = reply(request if getattr(reply, "wants_request", False) else sock)
        if isinstance(answer, bytes):
            sock.sendall(answer)
            return True
        return False


def http(status: int, body: bytes = b"", *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def ok(result: object, *headers: str) -> bytes:
    body = {"code": "200", "message": "Success", "result": result}
    return http(200, json.dumps(body).encode(), *headers)


def refusal(code: str, status: int = 200, *headers: str, **more: object) -> bytes:
    return http(status, json.dumps({"code": code, "message": "no", **more}).encode(), *headers)


def dynamic(function: Callable[[Request], bytes]) -> Callable[[Request], bytes]:
    vars(function)["wants_request"] = True
    return function


def close(sock: socket.socket) -> None:
    sock.shutdown(socket.SHUT_RDWR)


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def silence(sock: socket.socket) -> None:
    sock.recv(1)


def trickle_head(sock: socket.socket) -> None:
    for byte in itertools.chain(b"HTTP/1.1 200 OK\r\nX-Slow: ", itertools.repeat(120)):
        sock.sendall(bytes([byte]))
        time.sleep(0.01)


def trickle_body(sock: socket.socket) -> None:
    sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
    while True:
        sock.sendall(b" ")
        time.sleep(0.01)


def cut_head(sock: socket.socket) -> None:
    sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Le")


def cut_body(sock: socket.socket) -> None:
    sock.sendall(ok({"task_id": "t1", "status": "pending", "padding": "x" * 100})[:-5])


def cut_chunks(sock: socket.socket) -> None:
    sock.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n10\r\n{}")


def not_http(sock: socket.socket) -> None:
    sock.sendall(b"SSH-2.0-OpenSSH_9.6\r\n")


def bomb(sock: socket.socket) -> None:
    body = gzip.compress(b" " * 50_000_000)
    sock.sendall(http(200, body, "Content-Encoding: gzip"))


def flood(sock: socket.socket) -> None:
    sock.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        sock.sendall(b" " * 65536)


SUBMITTED = ok({"task_id": "t1", "status": "pending", "credit_cost": 14.4})
TASK = ok({"task_id": "t1", "status": "queued"})


def name_of(reply: Reply | None) -> str:
    if isinstance(reply, bytes):
        return reply.split(b" ")[1].decode()
    return reply.__name__ if reply else "refused"


# The client


class Client(SeedanceClient):
    def __init__(self, url: str, throttle=None, **fields) -> None:
        self.slept: list[float] = []
        config = ClientConfig(
            **{
                "api_key": KEY,
                "base_url": url,
                "connect_timeout": 2.0,
                "read_timeout": 0.2,
                "total_timeout": 0.3,
                "upload_timeout": 0.3,
                "max_answer": 1_000_000,
                **fields,
            }
        )
        super().__init__(config, throttle, sleep=self.slept.append, uniform=lambda low, high: high)


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return sock.getsockname()[1]


@pytest.fixture(scope="module")
def certificate(tmp_path_factory) -> tuple[ssl.SSLContext, str]:
    made = certify(tmp_path_factory.mktemp("tls"))
    return made.server_context(), str(made.pem)


@pytest.fixture(params=["http", "https"])
def scheme(request, certificate) -> Callable[..., tuple[Server, dict]]:
    def make(*replies: Reply) -> tuple[Server, dict]:
        if request.param == "http":
            return Server(*replies), {}
        context, bundle = certificate
        return Server(*replies, context=context), {"ca_bundle": bundle}

    return make


# What is on the wire


def test_submit_on_the_wire():
    with Server(ok({"task_id": "t1", "status": "pending", "credit_cost": 14.4})) as server:
        before = time.monotonic()
        with Client(server.url) as client:
            answer = client.submit(REQUEST)
        (request,) = server.requests
    assert (request.method, request.target) == ("POST", "/api/v1/video/task")
    assert request.headers["x-api-key"] == KEY
    assert request.headers["content-type"] == "application/json"
    assert json.loads(request.body.decode("utf-8")) == REQUEST.body()
    assert (answer.task_id, answer.status, answer.credit_cost) == ("t1", "pending", Decimal("14.4"))
    exchange = answer.exchange
    assert before <= exchange.sent <= exchange.received <= time.monotonic()
    assert exchange.http_status == 200
    assert exchange.date is None


def test_the_other_calls_on_the_wire():
    with (
        Server(
            ok({"task_id": "a/b", "status": "queued"}),
            ok({"data": [], "total": 0, "page": 2, "page_size": 7}),
            ok({"task_id": "t1", "status": "cancelled"}),
            ok({"presigned_url": "http://s/?x", "file_path": "p", "expires_in": 3600}),
            ok({"total_credits": 10000, "used_credits": 3250.5, "remain_credits": 6749.5}),
        ) as server,
        Client(server.url) as client,
    ):
        assert client.get("a/b?c").status == "queued"
        assert client.list_tasks(2, 7, "queued").total == 0
        assert client.cancel("t1").status == "cancelled"
        assert client.presign("ä b.png", "image/png").file_path == "p"
        assert client.balance().remain_credits == Decimal("6749.5")
        requests = server.requests
    assert [(one.method, one.path) for one in requests] == [
        ("GET", "/api/v1/video/task/a%2Fb%3Fc"),
        ("GET", "/api/v1/video/tasks"),
        ("POST", "/api/v1/video/task/t1/cancel"),
        ("POST", "/api/v1/video/upload/presign"),
        ("GET", "/api/v1/video/balance"),
    ]
    assert requests[1].query == {"page": ["2"], "page_size": ["7"], "status": ["queued"]}
    assert requests[3].query == {"filename": ["ä b.png"], "content_type": ["image/png"]}
    assert server.connections == 1


def test_skew_is_told_by_the_date_header():
    date = "Date: Wed, 15 Jan 2025 10:30:00 GMT"
    with Server(ok({"remain_credits": 1}, date)) as server, Client(server.url) as client:
        answered = client.balance().exchange.date
    assert answered == dt.datetime(2025, 1, 15, 10, 30, tzinfo=dt.UTC)


@pytest.mark.parametrize(
    "call",
    [
        lambda client: client.get(""),
        lambda client: client.get(".."),
        lambda client: client.cancel("."),
        lambda client: client.list_tasks(0),
        lambda client: client.list_tasks(1, 101),
        lambda client: client.list_tasks(True),
        lambda client: client.iter_tasks(page_size=0),
        lambda client: client.presign("a.mp3", "audio/mpeg"),
        lambda client: client.presign("x" * 129, "image/png"),
        lambda client: client.upload(io.BytesIO(PNG)),
        lambda client: client.upload(io.BytesIO(PNG), filename="a.jpg"),
        lambda client: client.upload(io.BytesIO(b""), filename="a.png"),
        lambda client: client.upload(io.BytesIO(PNG), filename="a.png", content_type="image/webp"),
    ],
)
def test_refused_before_anything_is_sent(call):
    with Server(TASK) as server, Client(server.url) as client:
        with pytest.raises(InvalidRequest):
            call(client)
        assert server.connections == 0


def test_no_netrc_no_cookies(tmp_path, monkeypatch):
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login someone password something\n")
    monkeypatch.setenv("NETRC", str(netrc))
    answer = ok({"task_id": "t1", "status": "queued"}, "Set-Cookie: a=b; Path=/")
    with Server(answer) as server, Client(server.url) as client:
        client.get("t1")
        client.get("t1")
        client.put(
            Presigned(presigned_url=f"{server.url}/k?s=1", file_path="k"),
            io.BytesIO(b"x"),
            size=1,
            content_type="image/png",
        )
    for request in server.requests:
        assert not request.headers.keys() & {"authorization", "cookie"}


def test_connections_are_reused_but_not_stale_ones():
    with Server(TASK) as server:
        with Client(server.url) as client:
            client.get("t1")
            client.get("t1")
            assert server.connections == 1
        with Client(server.url, max_idle=0.01) as client:
            client.get("t1")
            time.sleep(0.02)
            client.get("t1")
            assert server.connections == 3


def test_many_threads_share_one_client():
    def echo(request: Request) -> bytes:
        return ok({"task_id": request.path.rpartition("/")[2], "status": "queued"})

    with Server(dynamic(echo)) as server:
        with (
            Client(server.url, read_timeout=10, total_timeout=10) as client,
            ThreadPoolExecutor(16) as pool,
        ):
            ids = [f"t{n}" for n in range(300)]
            assert [task.task_id for task in pool.map(client.get, ids)] == ids
        assert len(server.requests) == 300
        assert server.connections <= 16


def test_an_environment_proxy_is_used_and_asks_first_too(monkeypatch):
    with Server(SUBMITTED) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url)
        seen = []
        with Client("http://api.invalid") as client:
            client.submit(REQUEST, before_send=lambda: seen.append(proxy.bytes))
        assert seen == [0]
        assert proxy.requests[0].target == "http://api.invalid/api/v1/video/task"
        monkeypatch.setenv("http_proxy", f"socks5://127.0.0.1:{proxy.port}")
        with Client("http://api.invalid") as client, pytest.raises(NotSent):
            client.submit(REQUEST, retry=False)
        assert len(proxy.requests) == 1


# Just before the POST


def test_before_send_runs_connected_and_before_the_first_byte(scheme):
    server, trust = scheme(SUBMITTED)
    seen = []

    def before_send() -> None:
        wait_for(lambda: server.connections == 1)
        time.sleep(0.05)
        seen.append(server.bytes)

    with server, Client(server.url, **trust) as client:
        client.submit(REQUEST, before_send=before_send)
        client.submit(REQUEST, before_send=lambda: seen.append(len(server.requests)))
        assert (seen, len(server.requests), server.connections) == ([0, 1], 2, 1)


class Stop(BaseException):
    pass


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("too old"),
        ValueError(),
        BrokenPipeError(32, "x"),
        ConnectionResetError(),
        TimeoutError(),
        ssl.SSLError(),
        KeyError("x"),
        NotSent("mine", endpoint="submit", disposition=Disposition.RETRY),
        Stop(),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("warm", [False, True], ids=["new", "reused"])
def test_if_before_send_raises_nothing_is_written(scheme, error, warm):
    server, trust = scheme(TASK)

    def before_send() -> None:
        raise error

    with server, Client(server.url, **trust) as client:
        if warm:
            client.get("t1")
        before = server.bytes
        with pytest.raises(type(error)) as caught:
            client.submit(REQUEST, before_send=before_send)
        assert caught.value is error
        assert caught.value.__context__ is None
        client.close()
        time.sleep(0.05)
        assert server.bytes == before
        assert client.slept == []


def test_before_send_is_asked_for_each_post():
    asked = []
    with (
        Server(refusal("SERVICE_BUSY", 503), SUBMITTED) as server,
        Client(server.url) as client,
    ):
        client.submit(REQUEST, before_send=lambda: asked.append(len(server.requests)))
    assert asked == [0, 1]


def test_the_write_timeout_is_not_the_connect_timeout():
    """A storage that reads slowly is given `read_timeout`, not the few seconds for connecting."""

    data = b"\x89PNG\r\n\x1a\n" + bytes(30_000_000)

    def slow(sock: socket.socket) -> None:
        time.sleep(0.3)
        sock.sendall(http(200, b"", "Connection: close"))
        while sock.recv(1 << 20):
            pass

    vars(slow)["early"] = True
    with (
        Server(slow) as server,
        Client(
            server.url, connect_timeout=0.1, read_timeout=5, upload_timeout=5, max_attempts=1
        ) as client,
    ):
        client.put(
            Presigned(presigned_url=server.url + "/k", file_path="k"),
            io.BytesIO(data),
            size=len(data),
            content_type="image/png",
        )


# Lost answers

LOST = [
    close,
    reset,
    silence,
    trickle_head,
    trickle_body,
    cut_head,
    cut_body,
    cut_chunks,
    not_http,
    bomb,
    flood,
]


@pytest.mark.parametrize("reply", LOST, ids=lambda reply: reply.__name__)
@pytest.mark.parametrize("retry", [False, True])
def test_a_submit_whose_answer_is_lost_is_ambiguous_and_sent_once(reply, retry):
    with Server(reply) as server, Client(server.url) as client:
        started = time.monotonic()
        with pytest.raises(AnswerLost) as caught:
            client.submit(REQUEST, retry=retry)
        assert time.monotonic() - started < 8
        assert len(server.requests) == 1
    error = caught.value
    assert error.disposition is Disposition.AMBIGUOUS
    assert (error.endpoint, error.code, error.http_status) == ("submit", "", None)
    assert client.slept == []


@pytest.mark.parametrize("reply", LOST, ids=lambda reply: reply.__name__)
def test_a_get_whose_answer_is_lost_is_repeated(reply):
    with Server(reply, TASK) as server, Client(server.url) as client:
        assert client.get("t1").task_id == "t1"
        assert len(server.requests) == 2
    assert client.slept == [0.5]


UNUSABLE = {
    "empty": http(200),
    "no content": b"HTTP/1.1 204 No Content\r\n\r\n",
    "html": http(200, b"<html>hello</html>"),
    "null result": ok(None),
    "no task id": ok({"status": "pending"}),
    "empty task id": ok({"task_id": "", "status": "pending"}),
    "other json": http(200, b'{"task_id": "t1"}'),
    "bare 503": http(503, b"<html>upstream</html>", "Retry-After: 1"),
    "bare 429": http(429),
    "bare 408": http(408),
    "bare 500": http(500),
    "json 502": http(502, b'{"code": 502, "message": "Bad gateway"}'),
    "unknown code": refusal("QUOTA_EXHAUSTED"),
    "internal": refusal("INTERNAL_ERROR", 500),
    "submit failed": refusal("TASK_SUBMIT_FAILED", 500),
    "deduct failed": refusal("CREDIT_DEDUCT_FAILED"),
    "queued without id": refusal("CONCURRENCY_LIMIT_REACHED", 429),
}


@pytest.mark.parametrize("name", UNUSABLE)
@pytest.mark.parametrize("retry", [False, True])
def test_a_submit_with_a_doubtful_answer_is_ambiguous_and_sent_once(name, retry):
    with Server(UNUSABLE[name]) as server, Client(server.url) as client:
        with pytest.raises(ApiError) as caught:
            client.submit(REQUEST, retry=retry)
        assert len(server.requests) == 1
    assert caught.value.disposition is Disposition.AMBIGUOUS
    assert caught.value.exchange is not None


def test_a_pooled_connection_that_died_is_not_used():
    """A server that hangs up between two requests costs neither of them."""

    def once(sock: socket.socket) -> None:
        sock.sendall(SUBMITTED)

    with Server(once) as server, Client(server.url) as client:
        client.submit(REQUEST, retry=False)
        time.sleep(0.05)
        client.submit(REQUEST, retry=False)
        assert len(server.requests) == 2


# Never sent


def never_sent(url: str, **fields) -> NotSent:
    with Client(url, **fields) as client, pytest.raises(NotSent) as caught:
        client.submit(REQUEST, retry=False)
    assert caught.value.disposition is Disposition.RETRY
    return caught.value


def test_connection_refused():
    assert "refused" in str(never_sent(f"http://127.0.0.1:{free_port()}"))


def test_no_such_host():
    never_sent("http://no-such-host.invalid")
    never_sent(f"http://{'x' * 64}.invalid")


def test_certificate_not_trusted(certificate):
    with Server(SUBMITTED, context=certificate[0]) as server:
        assert "certificate verify failed" in str(never_sent(server.url))
        assert server.bytes == 0


def test_tls_with_a_server_that_has_none():
    with Server(http(400)) as server:
        never_sent(server.url.replace("http:", "https:"), connect_timeout=0.2)


def test_a_tls_handshake_that_never_ends():
    listener = socket.create_server(("127.0.0.1", 0))
    with listener:
        never_sent(f"https://127.0.0.1:{listener.getsockname()[1]}", connect_timeout=0.2)


def test_a_server_that_hangs_up_in_the_handshake(certificate):
    listener = socket.create_server(("127.0.0.1", 0))

    def hang_up() -> None:
        sock, _ = listener.accept()
        sock.close()

    thread = threading.Thread(target=hang_up)
    thread.start()
    with listener:
        never_sent(f"https://127.0.0.1:{listener.getsockname()[1]}")
        thread.join()


def test_never_sent_is_repeated_for_a_submit_and_finite():
    with Client(f"http://127.0.0.1:{free_port()}", max_attempts=3) as client:
        with pytest.raises(NotSent):
            client.submit(REQUEST)
        assert client.slept == [0.5, 1.0]


# Refusals


def test_a_definite_refusal_of_a_submit_is_repeated_and_retry_after_honoured():
    with (
        Server(
            refusal("RATE_LIMIT_EXCEEDED", 429, "Retry-After: 7"),
            refusal("SERVICE_BUSY", 503),
            SUBMITTED,
        ) as server,
        Client(server.url) as client,
    ):
        assert client.submit(REQUEST).task_id == "t1"
        assert len(server.requests) == 3
    assert client.slept == [7.5, 1.0]


def test_without_retry_there_is_one_request():
    with Server(refusal("RATE_LIMIT_EXCEEDED", 429, "Retry-After: 7")) as server:
        with Client(server.url) as client, pytest.raises(RateLimited) as caught:
            client.submit(REQUEST, retry=False)
        assert len(server.requests) == 1
    assert caught.value.retry_after == 7
    assert caught.value.disposition is Disposition.RETRY
    assert caught.value.http_status == 429


def test_a_server_that_asks_for_too_much_patience_gets_none():
    with Server(refusal("SERVICE_BUSY", 503, "Retry-After: 3600")) as server:
        with Client(server.url) as client, pytest.raises(RateLimited) as caught:
            client.get("t1")
        assert len(server.requests) == 1
    assert caught.value.retry_after == 3600


def test_retries_end():
    with Server(http(502)) as server, Client(server.url, max_attempts=3) as client:
        with pytest.raises(ApiError):
            client.balance()
        assert len(server.requests) == 3


@pytest.mark.parametrize(
    ("reply", "kind", "disposition"),
    [
        (refusal("INVALID_API_KEY", 401), InvalidApiKey, Disposition.HOLD),
        (refusal("INVALID_API_KEY", 200), InvalidApiKey, Disposition.HOLD),
        (refusal("TASK_NOT_FOUND", 404), TaskNotFound, Disposition.AMBIGUOUS),
        (refusal("TASK_CANCEL_NOT_ALLOWED", 400), CancelNotAllowed, Disposition.AMBIGUOUS),
        (refusal("INVALID_PARAMETER", 200), ApiError, Disposition.PERMANENT),
        (http(403), ApiError, Disposition.PERMANENT),
    ],
)
def test_a_refused_cancel_is_not_repeated(reply, kind, disposition):
    with Server(reply) as server, Client(server.url) as client:
        with pytest.raises(kind) as caught:
            client.cancel("t1")
        assert len(server.requests) == 1
    assert caught.value.disposition is disposition


def test_queued_at_the_concurrency_limit_is_a_success_if_the_task_is_named():
    result = {"task_id": "t9", "credit_cost": 9}
    answer = refusal("CONCURRENCY_LIMIT_REACHED", 429, result=result)
    with Server(answer) as server, Client(server.url) as client:
        submitted = client.submit(REQUEST)
        assert (submitted.task_id, submitted.status) == ("t9", "queued")
        assert (submitted.credit_cost, submitted.exchange.http_status) == (9, 429)
        with pytest.raises(ConcurrencyLimit):
            client.get("t9")


def test_a_task_id_beside_an_error_is_told():
    answer = refusal("INTERNAL_ERROR", 500, result={"task_id": "t9"})
    with Server(answer) as server, Client(server.url) as client, pytest.raises(ApiError) as caught:
        client.submit(REQUEST)
    assert caught.value.task_id == "t9"
    assert caught.value.disposition is Disposition.AMBIGUOUS


def test_a_key_that_the_provider_quotes_is_not_passed_on():
    body = json.dumps(
        {"code": "INVALID_API_KEY", "message": f"Bad key {KEY} (https://h/?{SIGNATURE})"}
    ).encode()
    with (
        Server(http(401, body)) as server,
        Client(server.url) as client,
        pytest.raises(InvalidApiKey) as caught,
    ):
        client.balance()
    told = repr(caught.value.__dict__) + str(caught.value)
    assert KEY not in told
    assert SIGNATURE not in told


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_not_followed(status):
    with Server(TASK) as elsewhere:
        answer = http(status, b"", f"Location: {elsewhere.url}/api/v1/video/task/t1")
        with Server(answer) as server, Client(server.url) as client:
            for disposition, call in (
                (Disposition.PERMANENT, lambda: client.get("t1")),
                (Disposition.AMBIGUOUS, lambda: client.submit(REQUEST)),
                (
                    Disposition.PERMANENT,
                    lambda: client.put(
                        Presigned(presigned_url=f"{server.url}/k?{SIGNATURE}", file_path="k"),
                        io.BytesIO(b"x"),
                        size=1,
                        content_type="image/png",
                    ),
                ),
            ):
                with pytest.raises(ApiError) as caught:
                    call()
                assert caught.value.disposition is disposition
                assert caught.value.http_status == status
        assert elsewhere.connections == 0


# The throttle


def test_the_throttle_is_asked_before_each_request_to_the_api_only():
    asked = []
    with (
        Server(
            refusal("SERVICE_BUSY", 503), SUBMITTED, TASK, http(200), ok({"data": []})
        ) as server,
        Client(server.url, throttle=asked.append) as client,
    ):
        client.submit(REQUEST)
        client.get("t1")
        client.put(
            Presigned(presigned_url=server.url + "/k", file_path="k"),
            io.BytesIO(b"x"),
            size=1,
            content_type="image/png",
        )
        client.list_tasks()
    assert asked == ["submit", "submit", "get", "list"]


def test_a_caller_that_holds_a_token_is_not_throttled():
    asked = []
    with Server(SUBMITTED) as server, Client(server.url, throttle=asked.append) as client:
        client.submit(REQUEST, retry=False, throttled=True)
    assert asked == []


# Uploads


class Uploads:
    """An API and a storage; the storage answers with the given replies."""

    def __init__(self, stack: contextlib.ExitStack, *replies: Reply, **fields) -> None:
        self.storage = stack.enter_context(Server(*replies))
        numbers = itertools.count(1)

        def presign(request: Request) -> bytes:
            number = next(numbers)
            url = f"{self.storage.url}/b/{number}?X-Amz-Date=1&{SIGNATURE}"
            return ok({"presigned_url": url, "file_path": f"p/{number}", "expires_in": 60})

        self.api = stack.enter_context(Server(dynamic(presign)))
        self.client = stack.enter_context(Client(self.api.url, **fields))


@pytest.fixture
def uploads() -> Iterator[Callable[..., Uploads]]:
    with contextlib.ExitStack() as stack:
        yield lambda *replies, **fields: Uploads(stack, *replies, **fields)


def test_upload_a_file(uploads, tmp_path):
    world = uploads(http(200))
    file = tmp_path / "scene.png"
    file.write_bytes(PNG)
    seen = []
    uploaded = world.client.upload(file, progress=lambda sent, size: seen.append((sent, size)))
    assert uploaded.file_path == "p/1"
    assert uploaded.sha256 == hashlib.sha256(PNG).hexdigest()
    assert (uploaded.size, uploaded.content_type) == (len(PNG), "image/png")
    assert world.api.requests[0].query == {
        "filename": ["scene.png"],
        "content_type": ["image/png"],
    }
    (put,) = world.storage.requests
    assert (put.method, put.path, put.body) == ("PUT", "/b/1", PNG)
    assert put.headers["content-length"] == str(len(PNG))
    assert put.headers["content-type"] == "image/png"
    assert "transfer-encoding" not in put.headers
    assert KEY not in put.raw.decode()
    assert seen[-1] == (len(PNG), len(PNG))
    assert len(seen) > 2


def test_an_open_file_is_read_from_where_it_stands(uploads):
    world = uploads(http(204))
    source = io.BytesIO(b"before" + PNG)
    source.seek(6)
    assert world.client.upload(source, filename="a.png").size == len(PNG)
    assert world.storage.requests[0].body == PNG


def test_an_expired_url_is_renewed_once(uploads):
    world = uploads(http(403), http(200))
    assert world.client.upload(io.BytesIO(PNG), filename="a.png").file_path == "p/2"
    assert [put.body for put in world.storage.requests] == [PNG, PNG]


def test_a_url_that_is_refused_twice_is_given_up(uploads):
    world = uploads(http(403, b"<Error>SignatureDoesNotMatch</Error>"))
    with pytest.raises(StorageRefused) as caught:
        world.client.upload(io.BytesIO(PNG), filename="a.png")
    assert len(world.storage.requests) == 2
    assert (caught.value.http_status, caught.value.disposition) == (403, Disposition.PERMANENT)


@pytest.mark.parametrize("reply", [*LOST, http(503), http(500)], ids=name_of)
def test_a_failed_put_is_repeated_from_the_start(uploads, reply):
    world = uploads(reply, http(200))
    uploaded = world.client.upload(io.BytesIO(PNG), filename="a.png")
    assert world.storage.requests[-1].body == PNG
    assert uploaded.sha256 == hashlib.sha256(PNG).hexdigest()
    assert uploaded.file_path == "p/1"
    assert len(world.storage.requests) == 2


def test_a_storage_that_refuses_before_it_has_read_all(uploads):
    def early(sock: socket.socket) -> None:
        sock.sendall(http(403))
        sock.shutdown(socket.SHUT_WR)
        while sock.recv(1 << 16):
            pass

    vars(early)["early"] = True
    world = uploads(early, http(200))
    assert world.client.upload(io.BytesIO(PNG), filename="a.png").file_path == "p/2"


def test_a_file_that_shrinks_on_the_way_is_an_error_of_its_own(uploads):
    class Shrinking(io.BytesIO):
        def read(self, size=-1):
            return b"" if self.tell() > 100_000 else super().read(size)

    world = uploads(http(200))
    with pytest.raises(InvalidRequest, match="as it was when the upload began"):
        world.client.upload(Shrinking(PNG), filename="a.png")
    assert world.client.slept == []


def test_an_error_of_the_file_comes_out_unchanged(uploads):
    class Broken(io.BytesIO):
        def read(self, size=-1):
            if self.tell() > 100_000:
                raise OSError(5, "Input/output error")
            return super().read(size)

    world = uploads(http(200))
    with pytest.raises(OSError, match="Input/output error"):
        world.client.upload(Broken(PNG), filename="a.png")


def test_a_body_that_cannot_be_rewound_is_sent_once():
    class Pipe(io.BytesIO):
        def seekable(self):
            return False

    with Server(http(503)) as server, Client(server.url) as client:
        presigned = Presigned(presigned_url=server.url + "/k", file_path="k")
        with pytest.raises(StorageRefused):
            client.put(presigned, Pipe(PNG), size=len(PNG), content_type="image/png")
        assert len(server.requests) == 1
        with pytest.raises(InvalidRequest):
            client.upload(Pipe(PNG), filename="a.png")


@pytest.mark.parametrize(
    "reply",
    [*LOST, http(403), http(500), http(302, b"", f"Location: /x?{SIGNATURE}"), None],
    ids=name_of,
)
def test_a_failed_put_tells_nothing_that_it_should_not(uploads, reply, caplog):
    caplog.set_level(logging.DEBUG)
    world = uploads(reply or http(200), max_attempts=1)
    url = f"{world.storage.url}/b/1?X-Amz-Date=1&{SIGNATURE}"
    if reply is None:
        url = f"http://127.0.0.1:{free_port()}/b/1?X-Amz-Date=1&{SIGNATURE}"
    presigned = Presigned(presigned_url=url, file_path="k")
    with pytest.raises(ApiError) as caught:
        world.client.put(presigned, io.BytesIO(PNG), size=len(PNG), content_type="image/png")
    # A submit as well, for the key.
    with contextlib.suppress(ApiError):
        world.client.submit(REQUEST)
    error = caught.value
    told = "".join(traceback.format_exception(error)) + repr(error) + repr(error.__dict__)
    assert error.__context__ is None
    assert error.__cause__ is None
    formatter = logging.Formatter("%(name)s %(message)s")
    logged = "\n".join(formatter.format(record) for record in caplog.records)
    assert "urllib3.connectionpool" in logged
    for secret in ("must-stay-secret", "X-Amz-Date", KEY):
        assert secret not in told
        assert secret not in logged


def test_logs_of_others_are_left_alone(caplog):
    caplog.set_level(logging.DEBUG)
    with Client("http://127.0.0.1:1"):
        logging.getLogger("urllib3.connectionpool").debug("%s", "https://h/p?theirs=1")
    assert "https://h/p?theirs=1" in caplog.text


# Lists and waiting


def test_a_page_with_items_in_every_form():
    task = {"task_id": "t1", "status": "completed", "credit_cost": 26.5}
    data = [task, json.dumps({**task, "task_id": "t2"}), "{ ... task objects ... }"]
    answer = ok({"data": data, "total": 3, "page": 1, "page_size": 10})
    with Server(answer) as server, Client(server.url) as client:
        page = client.list_tasks()
        assert [task.task_id for task in client.iter_tasks()] == ["t1", "t2"]
    assert [task.credit_cost for task in page.data] == [Decimal("26.5")] * 2
    assert page.unreadable == ("{ ... task objects ... }",)
    assert page.exchange.http_status == 200
    assert len(server.requests) == 2


def test_wait_follows_a_task_to_its_end():
    with (
        Server(
            refusal("TASK_NOT_FOUND", 404),
            ok({"task_id": "t1", "status": "queued"}),
            ok({"task_id": "t1", "status": "paused"}),
            ok({"task_id": "t1", "status": "failed", "error_code": "PRIVACY_VIOLATION"}),
        ) as server,
        Client(server.url) as client,
    ):
        seen = []
        task = client.wait("t1", on_progress=lambda task: seen.append(task.status))
    assert task.error_code == "PRIVACY_VIOLATION"
    assert seen == ["queued", "paused", "failed"]
    assert client.slept == [5.0, 6.25, 7.8125]


def test_wait_sits_out_outages_and_gives_up_in_the_end():
    with Server(http(503), TASK) as server, Client(server.url, max_attempts=1) as client:
        with pytest.raises(WaitTimeout) as caught:
            client.wait("t1", timeout=6.0)
        assert caught.value.task.status == "queued"
    assert client.slept == [5.0]


def test_wait_does_not_sit_out_a_bad_key():
    with Server(refusal("INVALID_API_KEY", 401)) as server, Client(server.url) as client:
        with pytest.raises(InvalidApiKey):
            client.wait("t1")
        assert len(server.requests) == 1


def test_wait_believes_not_found_after_the_grace():
    with (
        Server(refusal("TASK_NOT_FOUND", 404)) as server,
        Client(server.url) as client,
        pytest.raises(TaskNotFound),
    ):
        client.wait("t1", grace=-1.0)
