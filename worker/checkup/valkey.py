"""The broker, and who listens to it."""

from collections.abc import Iterable
from typing import Any
from urllib.parse import unquote, urlsplit

import redis
from kombu.exceptions import OperationalError as BrokerError
from redis.sentinel import Sentinel

from worker import broker_access, broker_address
from worker.broker_client import client
from worker.checkup.finding import Check, Findings, ok, warn, wrong
from worker.redaction import redact
from worker.settings import Settings

_PING = 2.0


def broker(url: str) -> Findings:
    """The broker, and the workers that answer through it."""
    address = broker_address.read(url)
    if address.kind == "amqp":
        return _rabbitmq(url)
    if url.startswith("sentinel://"):
        server = _master(url)
    elif url.startswith(("redis://", "rediss://")):
        server = redis.Redis.from_url(url, socket_timeout=3, socket_connect_timeout=3)
    else:
        return Findings((warn("broker", "not looked at: a local socket", "use redis://"),))
    try:
        server.ping()
        checks = [ok("broker", _broker_name(server)), *_persistence(server)]
    except redis.RedisError as error:
        said = redact(" ".join(str(error).split()))[:200]
        return Findings(
            (
                wrong(
                    "broker",
                    f"Valkey or Redis can't be used: {said}",
                    "start it, or correct SEEDANCE_BROKER_URL",
                ),
            )
        )
    finally:
        server.close()
    return Findings((*checks, _workers(url)))


def rate(settings: Settings) -> Findings:
    """Whether all workers keep one request rate."""
    if broker_address.as_store(settings.shared_rate_url) is not None:
        return Findings(())
    return Findings(
        (
            warn(
                "rate",
                f"each worker makes up to {settings.rate_limit} requests by itself",
                "set SEEDANCE_RATE_LIMIT_URL to a Valkey or Redis, or run one worker",
            ),
        )
    )


def _rabbitmq(url: str) -> Findings:
    try:
        name = broker_access.reach(url, patience=3)
    except Exception as error:  # noqa: BLE001  (brokers raise what they like)
        said = redact(" ".join(str(error).split()))[:200] or type(error).__name__
        return Findings(
            (
                wrong(
                    "broker",
                    f"RabbitMQ can't be used: {said}",
                    "start it, or correct SEEDANCE_BROKER_URL",
                ),
            )
        )
    return Findings((ok("broker", f"{name} answers"), _workers(url)))


def _master(url: str) -> redis.Redis:
    """The Valkey that the sentinels call the master; asked when it is first used."""
    given = [urlsplit(part) for part in url.split(";")]
    known = broker_address.read(url).transport_options
    patience: dict[str, Any] = {"socket_timeout": 3, "socket_connect_timeout": 3}
    login = {
        name: unquote(value)
        for name, value in (("username", given[0].username), ("password", given[0].password))
        if value
    }
    by_name: Any = Sentinel  # untyped in its stubs
    sentinels = by_name(
        [(part.hostname, part.port or 26379) for part in given],
        sentinel_kwargs=known["sentinel_kwargs"],
        **patience,
    )
    master: redis.Redis = sentinels.master_for(
        known["master_name"], db=int(given[0].path.strip("/")), **login
    )
    return master


def _broker_name(client: redis.Redis) -> str:
    info: Any = client.info("server")
    name = "Valkey" if "valkey_version" in info else "Redis"
    return f"{name} {info.get('valkey_version') or info.get('redis_version')} answers"


def _persistence(client: Any) -> Iterable[Check]:
    try:
        values: Any = {
            **client.config_get("appendonly"),
            **client.config_get("maxmemory-policy"),
        }
    except redis.ResponseError:
        yield ok("broker", "does not tell its configuration (a managed one?)")
        return
    if values.get("appendonly") == "no":
        yield warn(
            "broker",
            "keeps no append-only file: a restart forgets requests sent by Celery clients",
            "start it with --appendonly yes",
        )
    if values.get("maxmemory-policy") not in (None, "noeviction"):
        yield warn(
            "broker",
            f"drops keys when memory is short ({values['maxmemory-policy']})",
            "start it with --maxmemory-policy noeviction",
        )


def _workers(url: str) -> Check:
    with client(url) as app:
        try:
            answers = app.control.ping(timeout=_PING) or []
        except (BrokerError, OSError) as error:
            return warn("workers", f"can't be asked: {type(error).__name__}", "ask again")
    names = sorted(name for answer in answers for name in answer)
    if not names:
        return warn("workers", f"none answers within {_PING:g} s", "start `seedance worker`")
    return ok("workers", f"{len(names)}: {', '.join(names[:8])}{', …' if names[8:] else ''}")
