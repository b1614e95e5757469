"""Reaching the broker beside Celery's own ways: one look at it, or a channel of the app's pool."""

import contextlib
from collections.abc import Iterator
from typing import Any

from kombu import Connection

from worker import broker_address

_LAST = 1
"""Tries to connect: who looks wants to know how it is now."""


def connection(url: str, *, patience: float) -> Connection:
    """A connection of its own to a normalised address, not yet made; for one look.

    What it does gives up after about `patience` seconds.
    """
    address = broker_address.read(url)
    options: dict[str, Any] = {
        "max_retries": _LAST,
        "interval_start": 0,
        **address.transport_options,
    }
    if address.kind == "amqp":
        options |= {"read_timeout": patience, "write_timeout": patience}
    else:
        options |= {"socket_timeout": patience, "socket_connect_timeout": patience}
    return Connection(
        address.url,
        # False: as the address says.
        ssl=address.ssl or False,
        connect_timeout=patience,
        transport_options=options,
    )


def reach(url: str, *, patience: float) -> str:
    """Connect once; the name of what answers. Raises what kombu raises."""
    with connection(url, patience=patience) as made:
        made.connect()
        if made.transport.driver_type != "amqp":
            return "Valkey or Redis"
        server = made.connection.server_properties
        return f"{server.get('product', 'AMQP')} {server.get('version', '')}".strip()


@contextlib.contextmanager
def channel(app: Any) -> Iterator[tuple[Any, Any]]:
    """A connection of the app's pool, and a channel on it: a new one costs RabbitMQ a dozen
    messages.
    """
    with app.pool.acquire(block=True) as pooled:
        pooled.ensure_connection(max_retries=_LAST)
        with pooled.channel() as made:
            yield pooled, made


def is_amqp(app: Any) -> bool:
    """Whether the app's broker is a RabbitMQ."""
    return str(app.conf.broker_url).startswith(("amqp://", "amqps://"))
