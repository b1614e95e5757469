"""A consumer that survives what it can't read.

Plain Celery loops for ever on a message whose body has the right headers and the wrong shape:
the error kills the consumer, the restart brings the message back. Here such a message is taken
off the queue, kept in `rejected_messages`, and logged once.
"""

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from celery.worker.consumer import Consumer as CeleryConsumer
from celery.worker.state import maybe_shutdown
from kombu.exceptions import KombuError

from worker import rejects
from worker.transport import MOST_BYTES

log = logging.getLogger(__name__)


EVENTS_EVERY = 0.5
"""Seconds for which events are gathered. Sending costs 0.3 ms, whether it is one or twenty."""


class Consumer(CeleryConsumer):
    """Celery's consumer, with unreadable messages set aside."""

    class Blueprint(CeleryConsumer.Blueprint):  # type: ignore[valid-type,misc]  # its stubs
        """Celery's steps without what nobody uses: gossip and mingle, chatter between workers, and
        delayed delivery, which would declare 28 queues in RabbitMQ for messages with an ETA.
        """

        default_steps = [  # noqa: RUF012  (Celery's way to say it)
            step
            for step in CeleryConsumer.Blueprint.default_steps
            if not step.endswith((":Gossip", ":Mingle", ":DelayedDelivery"))
        ]

    if TYPE_CHECKING:  # its stubs leave it out

        def _flush_events(self) -> None: ...

    connection_errors: tuple[type[BaseException], ...]
    channel_errors: tuple[type[BaseException], ...]

    def register_with_event_loop(self, hub: Any) -> None:
        """Begin to send what was gathered for Flower, again after each lost connection."""
        super().register_with_event_loop(hub)
        hub.call_repeatedly(EVENTS_EVERY, self._flush_events)

    def on_send_event_buffered(self) -> None:  # type: ignore[override]  # a wrong stub
        """Wait for that moment, or for a full buffer: Celery would send each event by itself."""

    def ensure_connected(self, conn: Any) -> Any:
        """Connect, however long the broker is away. Celery calls each try in vain an error, but it
        is tried again by itself: a warning.
        """

        def away(error: Exception, interval: float) -> None:
            log.warning("the broker is away (%s): again in %s s", error, interval)

        conn = conn.ensure_connection(
            away, self.app.conf.broker_connection_max_retries, callback=maybe_shutdown
        )
        self.first_connection_attempt = False
        return conn

    def shutdown(self) -> None:
        """Tell how the last tasks ended before the connection is closed."""
        self._flush_events()
        super().shutdown()

    def create_task_handler(self, *args: Any, **kwargs: Any) -> Callable[[Any], Any]:
        """Celery's handler for each message, which nothing in a message can make raise."""
        handle = super().create_task_handler(*args, **kwargs)

        def on_task_received(message: Any) -> None:
            size = len(message.body)
            if size > MOST_BYTES:
                # Before time and memory are spent on reading it.
                self._set_aside(
                    message, f"message has {size} bytes; at most {MOST_BYTES} bytes are allowed"
                )
                return
            try:
                handle(message)
            except (*self.connection_errors, *self.channel_errors):
                raise
            except Exception as error:  # noqa: BLE001  (whatever it is, it must not come back)
                self._set_aside(message, f"it can't be read: {type(error).__name__}: {error}")

        return on_task_received

    def on_unknown_message(self, body: Any, message: Any) -> None:  # noqa: ARG002
        """Not a task message at all."""
        self._set_aside(message, "it is not a task message")

    def on_unknown_task(self, body: Any, message: Any, exc: Exception) -> None:  # noqa: ARG002
        """A task that this service does not have."""
        self._set_aside(message, f"there is no task {exc}")

    def on_invalid_task(self, body: Any, message: Any, exc: Exception) -> None:  # noqa: ARG002
        """Headers and body don't make a task, or the content type is refused."""
        self._set_aside(message, f"it is no valid task: {exc}")

    def on_decode_error(self, message: Any, exc: Exception) -> None:
        """The body is not what its content type says."""
        self._set_aside(message, f"its body can't be decoded: {type(exc).__name__}")

    def _set_aside(self, message: Any, reason: str) -> None:
        rejects.keep(reason[:300], message.body, getattr(message, "headers", None))
        try:
            message.ack_log_error(log, self.connection_errors)
        except KombuError:
            log.debug("the message was acknowledged already")
