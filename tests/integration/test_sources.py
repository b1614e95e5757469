"""Reading references: nothing outside the media roots, nothing private, nothing too large."""

import hashlib
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from worker.settings import Settings, load_settings
from worker.sources import SourceRefusedError, SourceUnavailableError, opened

BYTES = bytes(range(256)) * 40
LIMIT = 100_000


@pytest.fixture
def media(tmp_path: Path) -> Path:
    root = tmp_path / "media"
    root.mkdir()
    (root / "cat.png").write_bytes(BYTES)
    (tmp_path / "secret.png").write_bytes(b"secret")
    return root


def settings(**overrides) -> Settings:
    return load_settings(
        {"SEEDANCE_API_KEY": "k", "SEEDANCE_DATABASE_URL": "postgresql://h/db"},
        **{"upload_max_bytes": LIMIT, "http_timeout": 2, **overrides},
    )


def read(source: str, given: Settings) -> bytes:
    with opened(source, given) as reference:
        data = reference.file.read()
        assert reference.size == len(data)
        assert reference.sha256 == hashlib.sha256(data).hexdigest()
        assert data.startswith(reference.head)
    return data


def refused(source: str, given: Settings, because: str | None) -> str:
    with pytest.raises(SourceRefusedError, match=because) as caught:
        read(source, given)
    return str(caught.value)


# --- path: -------------------------------------------------------------------------------------


def test_a_file_under_a_root_by_either_way_of_naming_it(media):
    given = settings(media_roots=(media,))
    with opened("path:cat.png", given) as reference:
        assert (reference.filename, reference.size) == ("cat.png", len(BYTES))
    assert read(f"path:{media}/cat.png", given) == BYTES


def test_a_second_root_is_looked_in_as_well(media, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "dog.png").write_bytes(b"dog")
    assert read("path:dog.png", settings(media_roots=(media, other))) == b"dog"


@pytest.mark.parametrize("name", ["../secret.png", "sub/../../secret.png", "{tmp}/secret.png"])
def test_nothing_outside_the_roots(media, tmp_path, name):
    (media / "sub").mkdir()
    refused(f"path:{name.format(tmp=tmp_path)}", settings(media_roots=(media,)), "outside")


def test_a_folder_with_the_roots_name_at_its_beginning_is_outside(media, tmp_path):
    (tmp_path / "media-private").mkdir()
    (tmp_path / "media-private" / "a.png").write_bytes(b"x")
    refused(f"path:{tmp_path}/media-private/a.png", settings(media_roots=(media,)), "outside")


def test_links_out_are_refused_and_links_within_are_followed(media, tmp_path):
    given = settings(media_roots=(media,))
    (media / "out.png").symlink_to(tmp_path / "secret.png")
    (media / "in.png").symlink_to("cat.png")
    (media / "away").symlink_to(tmp_path)
    (media / "round.png").symlink_to("round.png")
    assert read("path:in.png", given) == BYTES
    refused("path:out.png", given, "outside")
    refused("path:away/secret.png", given, "outside")
    refused("path:round.png", given, "can't be read|does not exist")


def test_only_regular_files_and_never_a_wait(media):
    given = settings(media_roots=(media,))
    os.mkfifo(media / "pipe.png")
    (media / "folder.png").mkdir()
    refused("path:pipe.png", given, "not a regular file")
    refused("path:folder.png", given, "not a regular file")
    refused("path:nothing.png", given, "does not exist")


def test_without_roots_no_path_is_read(media):
    refused(f"path:{media}/cat.png", settings(), "SEEDANCE_MEDIA_ROOTS is not set")


def test_empty_and_too_large_files(media):
    given = settings(media_roots=(media,))
    (media / "empty.png").touch()
    (media / "most.png").write_bytes(b"x" * LIMIT)
    with (media / "huge.png").open("wb") as huge:
        huge.truncate(LIMIT + 1)
    assert len(read("path:most.png", given)) == LIMIT
    refused("path:empty.png", given, "empty")
    refused("path:huge.png", given, "SEEDANCE_UPLOAD_MAX_BYTES")


def test_the_lease_can_be_renewed_while_it_is_read(media):
    (media / "long.png").write_bytes(b"x" * 3_500_000)
    calls: list[int] = []
    given = settings(media_roots=(media,), upload_max_bytes=10_000_000)
    with opened("path:long.png", given, on_read=lambda: calls.append(1)):
        assert len(calls) == 4


# --- http --------------------------------------------------------------------------------------


class _Site(BaseHTTPRequestHandler):
    """Answers by path."""

    protocol_version = "HTTP/1.1"
    hits: list[str]

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        self.server.hits.append(self.path)  # type: ignore[attr-defined]
        self.server.headers.append(dict(self.headers))  # type: ignore[attr-defined]
        if path.startswith("/status/"):
            self._answer(int(path.rpartition("/")[2]), b"no")
        elif path == "/redirect":
            self._answer(302, b"", Location="/cat.png?token=hidden")
        elif path == "/away":
            self._answer(302, b"", Location="file:///etc/passwd")
        elif path == "/round":
            self._answer(302, b"", Location="/round")
        elif path == "/huge":
            self._answer(200, b"x" * (LIMIT + 1))
        elif path == "/empty":
            self._answer(200, b"")
        elif path == "/cut":
            self.send_response(200)
            self.send_header("Content-Length", "5000")
            self.end_headers()
            self.wfile.write(b"x" * 100)
            self.close_connection = True
        else:
            self._answer(200, BYTES)

    def _answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args) -> None:
        pass


class _Quiet(ThreadingHTTPServer):
    """A reader that has had enough hangs up: nothing to report."""

    def handle_error(self, request, client_address) -> None:
        pass


@pytest.fixture(scope="module")
def server() -> Iterator[ThreadingHTTPServer]:
    with _Quiet(("127.0.0.1", 0), _Site) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def site(server: ThreadingHTTPServer) -> str:
    server.hits = []  # type: ignore[attr-defined]
    server.headers = []  # type: ignore[attr-defined]
    return f"http://127.0.0.1:{server.server_port}"


ALLOWED = settings(allow_private_sources=True)


def test_a_private_source_is_read_where_it_is_allowed(site):
    with opened(f"{site}/some/c%61t.png?token=hidden", ALLOWED) as reference:
        assert reference.filename == "cat.png"
        assert reference.file.read() == BYTES


def test_redirects_are_followed(site):
    assert read(f"{site}/redirect", ALLOWED) == BYTES


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "[::1]", "10.0.0.1", "169.254.169.254", "0.0.0.0"]
)
def test_private_and_loopback_addresses_are_refused_unless_allowed(server, scheme, host):
    server.hits = []
    source = f"{scheme}://{host}:{server.server_port}/cat.png?token=hidden"
    message = refused(source, settings(), "SEEDANCE_ALLOW_PRIVATE_SOURCES")
    assert "hidden" not in message
    assert server.hits == [], "not even asked"


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410])
def test_what_will_not_get_better_is_refused(site, status):
    message = refused(f"{site}/status/{status}?token=hidden", ALLOWED, f"HTTP {status}")
    assert "hidden" not in message


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503])
def test_what_may_get_better_is_unavailable(site, status):
    with pytest.raises(SourceUnavailableError, match=f"HTTP {status}") as caught:
        read(f"{site}/status/{status}?token=hidden", ALLOWED)
    assert "hidden" not in str(caught.value)


def test_an_answer_that_is_cut_off_is_no_reference(site):
    with pytest.raises(SourceUnavailableError):
        read(f"{site}/cut", ALLOWED)


def test_a_server_that_is_not_there_is_unavailable_and_its_query_not_shown():
    with pytest.raises(SourceUnavailableError) as caught:
        read("http://user:pass-word@127.0.0.1:1/a.png?token=hidden", ALLOWED)
    assert "hidden" not in str(caught.value)
    assert "pass-word" not in str(caught.value)


def test_size_limits_hold_for_answers_too(site):
    refused(f"{site}/huge", ALLOWED, "SEEDANCE_UPLOAD_MAX_BYTES")
    refused(f"{site}/empty", ALLOWED, "empty")


@pytest.mark.parametrize("path", ["/away", "/round"])
def test_redirects_to_nowhere_are_refused(site, path):
    message = refused(f"{site}{path}", ALLOWED, "can't be read")
    assert "passwd" not in message


def test_neither_key_nor_netrc_nor_proxy_goes_along(site, server, monkeypatch, tmp_path):
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login u password p\n")
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    assert read(f"{site}/cat.png", ALLOWED) == BYTES
    [headers] = server.headers
    assert not {"authorization", "x-api-key"} & {name.lower() for name in headers}


@pytest.mark.parametrize("source", ["http://", "https://[bad", "http://exa mple/a", "https://h:x/"])
def test_what_is_no_address_is_refused(source):
    refused(source, ALLOWED, None)


# --- s3 ----------------------------------------------------------------------------------------


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A bucket on a stand-in for S3, found by the environment as in production."""
    boto3 = pytest.importorskip("boto3")
    moto = pytest.importorskip("moto.server")
    s3fs = pytest.importorskip("s3fs")
    stand_in = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    stand_in.start()
    host, port = stand_in.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    s3fs.S3FileSystem.clear_instance_cache()
    client = boto3.client("s3")
    client.create_bucket(Bucket="media")
    for key, body in {"a/cat.png": BYTES, "empty": b"", "huge": b"x" * (LIMIT + 1)}.items():
        client.put_object(Bucket="media", Key=key, Body=body)
    client.close()
    yield "s3://media"
    s3fs.S3FileSystem.clear_instance_cache()
    stand_in.stop()


def test_references_in_s3(bucket):
    with opened(f"{bucket}/a/cat.png", settings()) as reference:
        assert (reference.filename, reference.file.read()) == ("cat.png", BYTES)
    refused(f"{bucket}/nothing.png", settings(), "FileNotFoundError")
    refused(f"{bucket}/empty", settings(), "empty")
    refused(f"{bucket}/huge", settings(), "SEEDANCE_UPLOAD_MAX_BYTES")
    refused("s3://other/a.png", settings(), "can't be read")
