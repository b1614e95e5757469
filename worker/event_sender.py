"""Celery's sender of events, for a pool of threads.

Events of tasks are gathered and sent together. Celery empties the buffer after it was sent: what
another thread has put there meanwhile is gone, and Flower shows tasks that began and never ended.
Here only what was sent is taken off.
"""

from typing import TYPE_CHECKING, Any

from celery.app.events import Events as CeleryEvents
from celery.events.dispatcher import EventDispatcher

if TYPE_CHECKING:
    from threading import Lock


class Dispatcher(EventDispatcher):
    """A sender that loses nothing between its threads."""

    if TYPE_CHECKING:  # its stubs leave out
        mutex: Lock
        producer: Any
        _group_buffer: dict[str, list[Any]]

        def _publish(self, event: Any, producer: Any, routing_key: str) -> None: ...

    def flush(self, errors: bool = True, groups: bool = True) -> None:
        """Send what could not be sent before, and what was gathered."""
        if errors:
            super().flush(errors=True, groups=False)
        if not groups:
            return
        with self.mutex:
            for group, gathered in list(self._group_buffer.items()):
                batch = list(gathered)
                if batch:
                    self._publish(batch, self.producer, f"{group}.multi")
                    del gathered[: len(batch)]


class Events(CeleryEvents):
    """The app's events, with that sender."""

    dispatcher_cls = f"{__name__}:Dispatcher"
