"""TLS to broker and database: real handshakes, and none with who is not trusted."""

import contextlib
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator

import pytest
from kombu import Connection
from kombu.exceptions import OperationalError as BrokerError
from sqlalchemy import make_url, text
from sqlalchemy.exc import OperationalError

from models.database import make_engine, normalise_url
from tests.certificates import Certificate, certify
from worker.broker_address import normalise
from worker.checkup.finding import Level
from worker.checkup.valkey import broker
from worker.embedded_postgres import EmbeddedPostgres
from worker.embedded_valkey import EmbeddedValkey
from worker.limiter import Limiter
from worker.transport import Transport


@pytest.fixture(scope="module")
def certificate(tmp_path_factory) -> Certificate:
    return certify(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def stranger(tmp_path_factory) -> str:
    """A certificate that vouches for nobody here."""
    return str(certify(tmp_path_factory.mktemp("stranger")).pem)


# --- the broker ---------------------------------------------------------------------------------


def _copy(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65_536):
            sink.sendall(data)
    for one in (source, sink):
        with contextlib.suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)


class Terminator:
    """Ends TLS before a server that has none, as stunnel does."""

    def __init__(
        self,
        context: ssl.SSLContext,
        to: int | str,
        *,
        greet: Callable[[socket.socket], None] = lambda _: None,
    ) -> None:
        """`to`: a port here, or a unix socket. `greet`: what comes before the handshake."""
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._context = context
        self._to = to
        self._greet = greet
        self.port = self._listening.getsockname()[1]
        self.handshakes = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listening.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, plain: socket.socket) -> None:
        try:
            self._greet(plain)
            client = self._context.wrap_socket(plain, server_side=True)
        except OSError:
            plain.close()
            return
        self.handshakes += 1
        with client, self._server() as server:
            back = threading.Thread(target=_copy, args=(server, client), daemon=True)
            back.start()
            _copy(client, server)
            back.join(10)

    def _server(self) -> socket.socket:
        if isinstance(self._to, int):
            return socket.create_connection(("127.0.0.1", self._to))
        server = socket.socket(socket.AF_UNIX)
        server.connect(self._to)
        return server

    @property
    def postgres_url(self) -> str:
        return f"postgresql://seedance@127.0.0.1:{self.port}/seedance"

    def close(self) -> None:
        self._listening.close()


@pytest.fixture
def terminator(valkey: EmbeddedValkey, certificate: Certificate) -> Iterator[Terminator]:
    port = make_url(valkey.url()).port
    assert port is not None
    one = Terminator(certificate.server_context(), port)
    yield one
    one.close()


def passed_on(url: str) -> object:
    """A message that is sent and taken by our transport."""
    options = {"socket_timeout": 5, "socket_connect_timeout": 5, "max_retries": 0}
    with Connection(url, transport=Transport, transport_options=options) as connection:
        queue = connection.SimpleQueue("over-tls", no_ack=True)
        queue.put({"said": "hello"})
        taken = queue.get(timeout=10).payload
        queue.close()
    return taken


def shares(url: str) -> bool:
    """Whether the request rate is kept in the store, and not by this process alone."""
    limiter = Limiter("1000/second", url)
    limiter.wait()
    return limiter._store_from == 0.0


def test_the_broker_over_tls(terminator: Terminator, certificate: Certificate):
    url = normalise(f"rediss://127.0.0.1:{terminator.port}/9?ssl_ca_certs={certificate.pem}")
    assert passed_on(url) == {"said": "hello"}
    assert terminator.handshakes >= 1
    before = terminator.handshakes
    assert shares(url)
    assert terminator.handshakes > before
    assert broker(url).checks[0].level is Level.OK


@pytest.mark.parametrize("trusts", ["nobody", "a stranger"])
def test_a_broker_that_is_not_trusted_is_not_spoken_to(terminator, stranger, trusts):
    option = "" if trusts == "nobody" else f"?ssl_ca_certs={stranger}"
    url = normalise(f"rediss://127.0.0.1:{terminator.port}/9{option}")
    with pytest.raises((BrokerError, OSError), match="CERTIFICATE_VERIFY_FAILED"):
        passed_on(url)
    assert not shares(url)
    assert broker(url).checks[0].level is Level.WRONG
    assert terminator.handshakes == 0


# --- the database -------------------------------------------------------------------------------


def _ask_for_tls(plain: socket.socket) -> None:
    """What PostgreSQL's protocol says before the handshake; raises OSError for who wants none."""
    if plain.recv(8) != struct.pack("!II", 8, 80_877_103):
        raise OSError("no SSLRequest")
    plain.sendall(b"S")


@pytest.fixture
def database(postgres: EmbeddedPostgres, certificate: Certificate) -> Iterator[Terminator]:
    """TLS before the run's server, whose wheel is built without it."""
    socket_file = make_url(postgres.url()).query["host"]
    one = Terminator(
        certificate.server_context(), f"{socket_file}/.s.PGSQL.5432", greet=_ask_for_tls
    )
    yield one
    one.close()


def test_the_database_over_tls(database: Terminator, certificate: Certificate):
    query = f"sslmode=verify-full&sslrootcert={certificate.pem}"
    engine = make_engine(normalise_url(f"{database.postgres_url}?{query}"))
    with engine.connect() as conn:
        assert conn.execute(text("SELECT 1")).scalar_one() == 1
        assert conn.connection.driver_connection.pgconn.ssl_in_use
    engine.dispose()
    assert database.handshakes == 1


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("sslmode=verify-full&sslrootcert={stranger}", "certificate verify failed"),
        ("sslmode=verify-full&sslrootcert={certificate}&host=localhost", "does not match host"),
        ("sslmode=disable", "closed the connection"),
    ],
)
def test_a_database_that_is_not_trusted_is_not_spoken_to(
    database: Terminator, certificate: Certificate, stranger: str, query: str, said: str
):
    options = query.format(stranger=stranger, certificate=certificate.pem)
    url = database.postgres_url
    if "host=" in options:
        options, _, host = options.rpartition("&host=")
        url = url.replace("127.0.0.1", host)
    engine = make_engine(f"{url}?{options}")
    with pytest.raises(OperationalError, match=said), engine.connect():
        pass
    engine.dispose()
