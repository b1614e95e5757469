"""Reading the provider's task list completely, with both clocks in view."""

import logging
import time
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import Connection, func, select

from api_client import ApiError, Exchange
from models import watch
from models.lifecycle import Observation
from models.resolution import Page, Reading, Seen, Skew
from worker.runtime import Runtime
from worker.stages.common import observation

log = logging.getLogger(__name__)

PAGE_SIZE = 100
MAX_PAGES = 5_000


@dataclass(frozen=True)
class DatabaseClock:
    """The database's time, told by this process's monotonic clock from one sample of it.

    `asked` and `answered` are the monotonic clock's times around the sample: a pause in between
    makes what is told here wider, never wrong.
    """

    at: datetime
    asked: float
    answered: float

    @staticmethod
    def read(conn: Connection) -> "DatabaseClock":
        """Sample it."""
        asked = time.monotonic()
        at = conn.execute(select(func.clock_timestamp())).scalar_one()
        return DatabaseClock(at, asked, time.monotonic())

    def earliest(self, monotonic: float) -> datetime:
        """The earliest that the database's time can have been at that instant."""
        return self.at + timedelta(seconds=monotonic - self.answered)

    def latest(self, monotonic: float) -> datetime:
        """The latest."""
        return self.at + timedelta(seconds=monotonic - self.asked)


@dataclass(frozen=True)
class ListReading:
    """What one pass over the task list showed."""

    tasks: tuple[Observation, ...]
    """Empty where they were not to be kept."""
    ids: AbstractSet[str]
    complete: bool
    by_count: bool
    """Complete as a whole, not back to some time."""
    skew: Skew
    began: datetime
    pages: int
    total: int


def read_list(
    rt: Runtime,
    *,
    since: datetime | None,
    list_lag: float,
    on_page: Callable[[Sequence[Observation]], None],
    keep: bool = True,
) -> ListReading:
    """Read the task list until it is complete: in whole, or back to `since` (our clock).

    `on_page` gets each page: renew leases there, apply what was seen. Raises ApiError if a page
    can't be had. A reading that ends without being complete says so. `keep`: whether its tasks are
    wanted afterwards, or their ids alone.
    """
    with rt.engine.connect() as conn:
        clock = DatabaseClock.read(conn)
        settled = clock.at - timedelta(seconds=list_lag)
        ours = watch.lately_known(conn, settled)
        known: frozenset[str] = frozenset()
        if since is not None:
            known = watch.created_since(conn, since, settled)
    reading = Reading(keep=keep)
    # One interval over all samples so far: of a long list there are as many as tasks.
    samples: list[Skew] = []
    complete = False
    while not complete and reading.pages < MAX_PAGES and not reading.ended:
        answer = rt.client.list_tasks(reading.pages + 1, PAGE_SIZE)
        seen = tuple(observation(task) for task in answer.data)
        reading.add(Page(seen, answer.total, PAGE_SIZE, len(answer.unreadable)))
        samples += _skew_of_answer(answer.exchange, clock)
        samples += _skew_of_tasks(rt, seen)
        samples = [Skew.of(samples)] if samples else []
        on_page(seen)
        complete = (reading.full and reading.is_of(ours)) or (
            since is not None
            and reading.stopped(since + Skew.of(samples).lowest - timedelta(seconds=2), known)
        )
    if not complete:
        log.warning(
            "the task list drifted while it was read: %d tasks of %s on %d pages",
            len(reading.ids),
            answer.total,
            reading.pages,
        )
    return ListReading(
        tuple(reading.tasks.values()),
        reading.ids,
        complete,
        complete and reading.full,
        Skew.of(samples),
        clock.at,
        reading.pages,
        answer.total or 0,
    )


MAX_NEWEST = 5
"""Pages that a search among the newest tasks reads at most."""


@dataclass(frozen=True)
class Newest:
    """The newest tasks of the list, as far as they were read."""

    tasks: tuple[Observation, ...]
    skew: Skew


def read_newest(rt: Runtime, *, since: datetime) -> Newest:
    """Return the newest tasks of the list, back to `since` (our clock) or a few pages.

    Nothing follows from what is missing. A list that shows its oldest task first is read from its
    end. Raises ApiError if a page can't be had.
    """
    with rt.engine.connect() as conn:
        clock = DatabaseClock.read(conn)
    first = rt.client.list_tasks(1, PAGE_SIZE)
    tasks = [observation(task) for task in first.data]
    samples = [*_skew_of_answer(first.exchange, clock), *_skew_of_tasks(rt, tasks)]
    last = -(-(first.total or 0) // max(1, len(first.data)))
    numbers = range(last, 1, -1) if _oldest_first(tasks) else range(2, last + 1)
    page = tasks
    for number in numbers[: MAX_NEWEST - 1]:
        start = since + Skew.of(samples).lowest
        if not _oldest_first(page) and _all_before(page, start):
            break
        answer = rt.client.list_tasks(number, PAGE_SIZE)
        page = [observation(task) for task in answer.data]
        samples += _skew_of_answer(answer.exchange, clock)
        samples += _skew_of_tasks(rt, page)
        tasks += page
        if _oldest_first(page) and _all_before(page[:1], start):
            break
    return Newest(tuple(tasks), Skew.of(samples))


def _oldest_first(tasks: Sequence[Observation]) -> bool:
    stamps = [task.created_at for task in tasks if task.created_at is not None]
    return len(stamps) > 1 and stamps[0] < stamps[-1]


def _all_before(tasks: Sequence[Observation], start: datetime) -> bool:
    return all(task.created_at is not None and task.created_at < start for task in tasks)


def seen(reading: ListReading) -> Seen:
    """The reading as the next one is held against it."""
    return Seen(frozenset(reading.ids), reading.by_count)


def _skew_of_answer(exchange: Exchange | None, clock: DatabaseClock) -> list[Skew]:
    if exchange is None or exchange.date is None:
        return []
    return [
        Skew.of_answer(
            date=exchange.date,
            sent=clock.earliest(exchange.sent),
            received=clock.latest(exchange.received),
        )
    ]


def _skew_of_tasks(rt: Runtime, seen: Sequence[Observation]) -> list[Skew]:
    """From tasks of ours whose submission was answered; those of the last hour tell most."""
    stamped = {task.task_id: task.created_at for task in seen if task.created_at is not None}
    with rt.engine.connect() as conn:
        times = watch.answered_times(conn, list(stamped))
    return [
        Skew.of_task(created=stamped[task_id], intended=intended, answered=answered)
        for task_id, (intended, answered) in times.items()
    ]


def with_seeds(
    rt: Runtime, tasks: Sequence[Observation], *, on_task: Callable[[], None]
) -> list[Observation]:
    """GET each task that shows no seed in the list: the task itself may show it.

    One that can't be had stays as it was: without a seed it could be anybody's. `on_task` is
    called before each GET: renew leases there.
    """
    found = []
    for task in tasks:
        if task.seed in (None, -1):
            on_task()
            try:
                task = observation(rt.client.get(task.task_id))
            except ApiError as error:
                log.info("remote task %s can't be read for its seed: %s", task.task_id, error)
        found.append(task)
    return found
