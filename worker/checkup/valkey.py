"""The broker, and who listens to it."""

from collections.abc import Iterable
from typing import Any

import redis
from celery import Celery
from kombu.exceptions import OperationalError as BrokerError

from worker.checkup.finding import Check, Findings, ok, warn, wrong
from worker.redaction import redact

_PING = 2.0


def broker(url: str) -> Findings:
    """The broker, and the workers that answer through it."""
    if not url.startswith(("redis://", "rediss://")):
        return Findings((warn("broker", "not Redis or Valkey: not looked at", "use redis://"),))
    client = redis.Redis.from_url(url, socket_timeout=3, socket_connect_timeout=3)
    try:
        client.ping()
        checks = [ok("broker", _broker_name(client)), *_persistence(client)]
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
        client.close()
    return Findings((*checks, _workers(url)))


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
    with Celery(broker=url) as app:
        app.conf.broker_transport_options = {
            "socket_timeout": 3,
            "socket_connect_timeout": 3,
            "max_retries": 0,
        }
        try:
            answers = app.control.ping(timeout=_PING) or []
        except (BrokerError, OSError) as error:
            return warn("workers", f"can't be asked: {type(error).__name__}", "ask again")
    names = sorted(name for answer in answers for name in answer)
    if not names:
        return warn("workers", f"none answers within {_PING:g} s", "start `seedance worker`")
    return ok("workers", f"{len(names)}: {', '.join(names[:8])}{', …' if names[8:] else ''}")
