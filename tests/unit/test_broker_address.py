"""Addresses of several hosts, sentinels and RabbitMQ, as each library reads them."""

import ssl

import pytest
from kombu import Connection
from limits.storage import storage_from_string

from worker.broker_access import connection
from worker.broker_address import as_store, normalise, read

SENTINELS = "sentinel://:p%40ss@a:26379;sentinel://b;sentinel://c:1/3?master_name=videos"


def test_every_sentinel_gets_what_only_one_was_written_with():
    once = normalise(SENTINELS)
    assert once == ";".join(
        f"sentinel://:p%40ss@{host}/3?master_name=videos" for host in ("a:26379", "b", "c:1")
    )
    assert normalise(once) == once


def test_kombu_finds_the_master_by_all_sentinels():
    address = read(normalise(SENTINELS))
    assert address.kind == "sentinel"
    assert address.transport_options["master_name"] == "videos"
    made = connection(normalise(SENTINELS), patience=2)
    assert made.alt == [f"sentinel://:p%40ss@{h}/3" for h in ("a:26379", "b", "c:1")]
    # The database and password of the first are those that kombu goes by.
    assert (made.virtual_host, made.password) == ("3", "p@ss")
    assert made.transport_options["socket_timeout"] == 2


def test_the_sentinels_password_is_not_the_masters():
    address = read(
        normalise("sentinel://:first-word@a/0?master_name=m&sentinel_password=second-word")
    )
    assert address.transport_options["sentinel_kwargs"]["password"] == "second-word"
    assert "second-word" not in address.url
    assert "first-word" not in repr(address)


def test_the_request_rate_is_shared_through_the_same_master():
    found = as_store(normalise(SENTINELS))
    assert found is not None
    url, options = found
    assert url == "redis+sentinel://a:26379,b:26379,c:1/videos"
    storage = storage_from_string(url, **options)
    assert (options["db"], options["password"], storage.use_replicas) == (3, "p@ss", False)
    assert [s.connection_pool.connection_kwargs["port"] for s in storage.sentinel.sentinels] == [
        26379,
        26379,
        1,
    ]
    assert storage.sentinel.sentinel_kwargs["password"] is None


@pytest.mark.parametrize("url", ["amqp://u:p@a:5672/v;amqp://u:p@b:5672/v", "amqps://h/v"])
def test_rabbitmq_shares_no_rate(url):
    assert as_store(normalise(url)) is None
    assert read(normalise(url)).kind == "amqp"


def test_rabbitmq_over_tls_checks_certificate_and_name(tmp_path):
    ca = tmp_path / "ca.pem"
    ca.touch()
    address = read(normalise(f"amqps://u:p@broker/v?ssl_ca_certs={ca}"))
    assert address.url == "amqps://u:p@broker/v"
    # None: the name of the host that is connected to.
    assert address.ssl == {
        "cert_reqs": ssl.CERT_REQUIRED,
        "ca_certs": str(ca),
        "server_hostname": None,
    }
    made = connection(normalise("amqps://u:p@broker/v"), patience=1)
    assert isinstance(made, Connection)
    assert made.ssl == {"cert_reqs": ssl.CERT_REQUIRED, "server_hostname": None}
    unchecked = read(normalise("amqps://broker/v?ssl_cert_reqs=none")).ssl
    assert unchecked == {"cert_reqs": ssl.CERT_NONE}
