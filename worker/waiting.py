"""What waiting consists of, whether a thread or a coroutine does it: what to read, when it is over.

The loops are in `worker.producer` and `worker.aproducer`.
"""

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field

from sqlalchemy import Engine

from models import reads
from models.reads import EventView, GenerationView

READ_AGAIN = 30.0
"""Seconds after which a waiter reads by itself, whatever the follower says."""


class UnknownGenerationError(LookupError):
    """There is no generation of this id."""


class StillRunningError(TimeoutError):
    """The time is up and not all has ended. Nothing was changed: wait again, or cancel.

    `views`: all that were waited for, as they are now.
    """

    def __init__(self, views: dict[uuid.UUID, GenerationView], seconds: float) -> None:
        self.views = views
        going = [view for view in views.values() if not view.ended]
        shown = ", ".join(f"{view.id} is {view.status}" for view in going[:3])
        more = f" and {len(going) - 3} more" if len(going) > 3 else ""
        super().__init__(f"after {seconds:g} s generation {shown}{more}")


@dataclass
class Deadline:
    """When to stop waiting; `seconds` None: never."""

    seconds: float | None
    _start: float = field(default_factory=time.monotonic)

    def pause(self, views: dict[uuid.UUID, GenerationView]) -> float:
        """How long to wait for a change. Raises StillRunningError when the time is up."""
        if self.seconds is None:
            return READ_AGAIN
        left = self._start + self.seconds - time.monotonic()
        if left <= 0:
            raise StillRunningError(views, self.seconds)
        return min(left, READ_AGAIN)


class Ends:
    """Reads generations until all have ended; those that have are not read again."""

    def __init__(self, engine: Engine, ids: Sequence[uuid.UUID]) -> None:
        self._engine = engine
        self._ids = list(dict.fromkeys(ids))
        self._known: dict[uuid.UUID, GenerationView] = {}

    def read(self) -> bool:
        """Whether all have ended now. Raises UnknownGenerationError."""
        going = [one for one in self._ids if one not in self._known or not self._known[one].ended]
        with self._engine.connect() as conn:
            self._known |= reads.get_many(conn, going)
        for one in going:
            if one not in self._known:
                raise UnknownGenerationError(f"there is no generation {one}")
        return all(view.ended for view in self._known.values())

    @property
    def views(self) -> dict[uuid.UUID, GenerationView]:
        """As they were last read, in the order in which they were named."""
        return {one: self._known[one] for one in self._ids}


class History:
    """Reads a generation's history on from where it was left."""

    def __init__(self, engine: Engine, generation_id: uuid.UUID, skip: int) -> None:
        self._engine = engine
        self._id = generation_id
        self._at = skip
        self.views: dict[uuid.UUID, GenerationView] = {}

    def read(self) -> tuple[list[EventView], bool]:
        """What is new, and whether that is the end. Raises UnknownGenerationError."""
        with self._engine.connect() as conn:
            # First how it is, then what led there: an end is never seen without its event.
            view = reads.get(conn, self._id)
            if view is None:
                raise UnknownGenerationError(f"there is no generation {self._id}")
            new = reads.events(conn, self._id)[self._at :]
        self._at += len(new)
        self.views = {self._id: view}
        return new, view.ended
