"""Celery's Redis transport, which survives an entry of a queue that is no message, and brings
back the messages of dead workers soon.

What lies in the list must be JSON with a properly encoded body; plain kombu lets the error
through, and the worker ends. An entry is off the list when it is looked at: it is kept here. So is
one that is larger than any request may be, before memory and time are spent on reading it.
"""

from typing import Any

from kombu.transport import redis

from worker import rejects

MOST_BYTES = 1024 * 1024
"""The largest entry of a queue: twice what a request with its metadata comes to, encoded."""

_UNREADABLE = (ValueError, KeyError, TypeError, AttributeError)


class QoS(redis.QoS):
    """Looks for the messages of dead workers each time it is asked to.

    kombu skips nine of ten calls, which come every ten seconds: a request that died with its
    worker would wait for 100 s and more.
    """

    def restore_visible(self, start: int = 0, num: int = 10, interval: int = 1) -> Any:
        """kombu's sweep, without the skipping."""
        return super().restore_visible(start, num, interval)


class _TooLargeError(ValueError):
    """An entry that is not read."""


class _Robust:
    """A channel whose queues may hold anything."""

    _kept_client: Any = None

    def _create_client(self, asynchronous: bool = False) -> Any:
        """Return one client for all commands: kombu makes one for each acknowledgement, which is a
        tenth of what a worker does.
        """
        if asynchronous:
            return super()._create_client(asynchronous=True)  # type: ignore[misc]
        pool = self.pool  # type: ignore[attr-defined]  # another one after a lost connection
        if self._kept_client is None or self._kept_client.connection_pool is not pool:
            self._kept_client = super()._create_client()  # type: ignore[misc]
        return self._kept_client

    QoS = QoS

    def _brpop_read(self, **options: Any) -> Any:
        client = self.client  # type: ignore[attr-defined]  # kombu's, mixed in below
        plain = client.parse_response
        taken: list[Any] = []

        def remembering(*args: Any, **kwargs: Any) -> Any:
            answer = plain(*args, **kwargs)
            taken.append(answer)
            size = len(answer[1]) if answer else 0
            if size > MOST_BYTES:
                raise _TooLargeError(
                    f"message has {size} bytes; at most {MOST_BYTES} bytes are allowed"
                )
            return answer

        client.parse_response = remembering
        try:
            return super()._brpop_read(**options)  # type: ignore[misc]  # not in its stubs
        except _UNREADABLE as error:
            if not taken or not taken[0]:
                raise
            why = str(error) if isinstance(error, _TooLargeError) else type(error).__name__
            rejects.keep(f"it is no message: {why}", taken[0][1])
            return True
        finally:
            client.parse_response = plain


class Channel(_Robust, redis.Channel):  # type: ignore[misc]  # its stubs
    """A channel to one server."""


class Transport(redis.Transport):
    """kombu's Redis transport with that channel."""

    Channel = Channel


class SentinelChannel(_Robust, redis.SentinelChannel):  # type: ignore[misc]  # its stubs
    """A channel to the master that the sentinels name."""


class SentinelTransport(redis.SentinelTransport):
    """kombu's transport by sentinels with that channel."""

    Channel = SentinelChannel
