"""A Celery client that knows the broker's address and nothing else, for whatever broker it is."""

from typing import Any

from celery import Celery

from worker import broker_address


def client(url: str) -> Celery:
    """A client, to be closed after use. It gives up within seconds. Raises ValueError."""
    address = broker_address.read(broker_address.normalise(url))
    made = Celery(broker=address.url, set_as_current=False)
    options: dict[str, Any] = {"max_retries": 0, **address.transport_options}
    if address.kind == "amqp":
        options |= {"read_timeout": 5, "write_timeout": 5}
        # The queue is declared as workers declare it.
        made.conf.task_default_queue_type = "quorum"
    else:
        options |= {"socket_timeout": 3, "socket_connect_timeout": 3}
    if address.ssl is not None:
        made.conf.broker_use_ssl = address.ssl
    made.conf.broker_transport_options = options
    return made
