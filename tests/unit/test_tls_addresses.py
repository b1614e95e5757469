"""TLS in addresses: each library that reads one understands it alike, and checks certificates."""

import re
import ssl

import pytest
import redis
from kombu import Connection
from limits.storage import RedisStorage, storage_from_string
from redis.connection import SSLConnection

from models.database import make_engine, normalise_url
from worker.broker_address import normalise


@pytest.fixture
def ca(tmp_path):
    """A file; nobody looks into it here."""
    file = tmp_path / "ca.pem"
    file.touch()
    return str(file)


def as_kombu(url: str) -> dict:
    """What kombu hands to redis-py."""
    with Connection(url) as connection:
        return dict(connection.ssl)


def as_redis(url: str) -> SSLConnection:
    made = redis.Redis.from_url(url).connection_pool.make_connection()
    assert isinstance(made, SSLConnection)
    return made


def as_limits(url: str) -> SSLConnection:
    storage = storage_from_string(url, socket_timeout=1)
    assert isinstance(storage, RedisStorage)
    made = storage.storage.connection_pool.make_connection()
    assert isinstance(made, SSLConnection)
    return made


@pytest.mark.parametrize("said", ["required", "CERT_REQUIRED", "REQUIRED", None])
def test_all_three_readers_check_the_brokers_certificate(ca, said):
    option = "" if said is None else f"ssl_cert_reqs={said}&"
    url = normalise(f"rediss://u:p%40ss@broker:6380/2?{option}ssl_ca_certs={ca}")
    read = as_kombu(url)
    assert read == {"ssl_cert_reqs": ssl.CERT_REQUIRED, "ssl_ca_certs": ca}
    for made in (as_redis(url), as_limits(url)):
        assert (made.cert_reqs, made.ca_certs) == (ssl.CERT_REQUIRED, ca)
        assert made.check_hostname is True
        assert (made.host, made.port, made.db, made.password) == ("broker", 6380, 2, "p@ss")


def test_without_options_certificates_are_checked_too():
    assert as_kombu(normalise("rediss://h"))["ssl_cert_reqs"] == ssl.CERT_REQUIRED


@pytest.mark.parametrize("said", ["none", "CERT_NONE"])
def test_only_who_says_so_checks_nothing(said):
    url = normalise(f"rediss://h/0?ssl_cert_reqs={said}")
    assert as_kombu(url) == {"ssl_cert_reqs": ssl.CERT_NONE}
    assert as_redis(url).cert_reqs == as_limits(url).cert_reqs == ssl.CERT_NONE


def test_a_certificate_for_another_name_can_be_allowed(ca):
    url = normalise(f"rediss://h/0?ssl_ca_certs={ca}&ssl_check_hostname=False")
    assert as_kombu(url)["ssl_check_hostname"] is False
    assert as_redis(url).check_hostname is False
    assert as_limits(url).check_hostname is False


def test_a_normalised_address_stays_as_it_is(ca):
    once = normalise(f"rediss://:p@h:1/0?ssl_ca_certs={ca}&health_check_interval=5")
    assert normalise(once) == once
    assert "health_check_interval=5" in once


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("rediss://:pass-word@h/0?ssl_cert_reqs=perhaps", "required, optional, none"),
        ("rediss://:pass-word@h/0?ssl_cert_req=required", "ssl_cert_reqs, ssl_ca_certs"),
        ("rediss://:pass-word@h/0?ssl_ca_certs=/no/such.pem", "'/no/such.pem', which is no file"),
        ("rediss://:pass-word@h/0?ssl_check_hostname=1", "true or false"),
        ("redis://:pass-word@h/0?ssl_cert_reqs=required", "only rediss://"),
        ("http://:pass-word@h", "redis://, rediss://, sentinel://, amqp:// or amqps://"),
        ("redis://:pass-word@h \n", "white space"),
    ],
)
def test_a_slip_in_the_brokers_address_is_refused_without_its_password(url, said):
    with pytest.raises(ValueError, match=re.escape(said)) as caught:
        normalise(url)
    assert "pass-word" not in str(caught.value)


def test_the_databases_tls_reaches_libpq(ca):
    url = f"postgresql://u@h/db?sslmode=verify-full&sslrootcert={ca}"
    _, given = make_engine(url).dialect.create_connect_args(make_engine(url).url)
    assert (given["sslmode"], given["sslrootcert"]) == ("verify-full", ca)
    assert normalise_url("postgres://h/db?sslmode=verify-full&sslrootcert=system")


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("sslmode=verify_full", "use one of disable, allow, prefer, require, verify-ca"),
        ("sslmod=require", "'sslmod', which libpq does not know"),
        ("sslmode=verify-full&sslrootcert=/no/such.pem", "'/no/such.pem', which is no file here"),
        ("sslrootcert=system", "needs sslmode=verify-full"),
    ],
)
def test_a_slip_in_the_databases_address_is_refused_without_its_password(query, said):
    with pytest.raises(ValueError, match=re.escape(said)) as caught:
        normalise_url(f"postgresql://u:pass-word@h/db?{query}")
    assert "pass-word" not in str(caught.value)
