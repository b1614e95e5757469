"""Observe: follow everything that runs by the task list, a page of 100 for each request.

One pass reads from the end of the list at which running tasks were last found until all of them
have been shown, and applies each page in one transaction. Order and drift of the list are not
trusted: what it does not show is looked at by its own GET, and a list that does not pay is left
(`models.observing.choice`).
"""

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from itertools import count

from sqlalchemy.exc import DBAPIError

from api_client import ApiError, RateLimited, TaskPage
from models import schedule, transitions
from models.lifecycle import Observation, Status
from models.observing import turns
from models.observing.choice import BARREN, PAGE_SIZE
from models.observing.turns import Begun
from models.observing.usual import kind_of
from models.transitions import Page
from worker import reading_ahead
from worker.crash_points import reached
from worker.limiter import NoTokenError
from worker.reading_ahead import Pages
from worker.runtime import Runtime
from worker.stages import common

log = logging.getLogger(__name__)

MOST_REST = 600.0
"""Seconds that the provider may ask to wait; for longer it is not taken at its word."""


@dataclass
class _Pass:
    """How far a pass has come."""

    pages: int = 0
    shown: set[str] = field(default_factory=set)
    young: set[str] = field(default_factory=set)
    """Seen as well, though the list need not show them yet."""
    ended: int = 0
    barren: int = 0
    newest: datetime | None = None
    """When the youngest task of all pages was created, by the provider's clock."""
    aged: bool = False
    """The latest page showed only tasks so old that what is young stands on none after it."""
    latency: float = 0.0
    """Seconds that the latest answer took."""
    applying: float = 0.0
    """Seconds that its page took afterwards."""

    def add(self, page: Page, tasks: Sequence[Observation], *, list_lag: float) -> None:
        """One page more, and what it showed."""
        self.pages += 1
        fresh = (set(page.shown) - self.shown) | (set(page.young) - self.young)
        self.barren = 0 if fresh else self.barren + 1
        self.shown.update(page.shown)
        self.young.update(page.young)
        self.ended += len(page.ended)
        created = max((task.created_at for task in tasks if task.created_at), default=None)
        self.newest = max(filter(None, (self.newest, created)), default=None)
        self.aged = (
            created is None
            or self.newest is None
            or created < self.newest - timedelta(seconds=list_lag)
        )

    def over(self, begun: Begun) -> bool:
        """Nothing more is to be had, or not for what it costs."""
        # Of what the list must show some was found; where only young ones are sought, some of
        # these, or there was nothing as young as they are.
        shows_them = bool(self.shown) or (begun.sought == 0 and (bool(self.young) or self.aged))
        return (
            self._left(begun) <= 0
            or self.pages >= begun.budget
            or (shows_them and self.barren >= BARREN)
        )

    def _left(self, begun: Begun) -> int:
        """How many are still sought: what the list must show, and what is due, however young."""
        found = len(self.shown)
        return max(begun.sought - found, begun.expected - found - len(self.young))

    def ahead(self, begun: Begun, per_second: float) -> int:
        """How many pages to have under way: none for a pass that is over, and none that what is
        still sought doesn't ask for.
        """
        if self.over(begun):
            return 0
        needed = -(-self._left(begun) // PAGE_SIZE)
        wide = reading_ahead.width(self.latency, self.applying, per_second)
        return max(1, min(wide, needed, begun.budget - self.pages))


def run(rt: Runtime, lease: int) -> None:
    """One pass over the list, under this turn's lease."""
    settings = rt.settings
    rt.usual.exchange(rt.engine)
    with rt.engine.begin() as conn:
        begun = turns.begin(
            conn,
            lease,
            list_lag=settings.list_lag,
            every=settings.poll_min,
            lease_seconds=settings.lease,
            stalled_after=settings.stalled_after,
        )
    if begun is None:
        return
    reached("observe.after_begin")
    began = time.monotonic()
    passed = _Pass()
    failed, limited = False, None
    try:
        with reading_ahead.reader(partial(_read, rt)) as read:
            for answer in _pages(rt, read, begun, passed):
                arrived = time.monotonic()
                seen = [common.observation(task) for task in answer.data]
                page = _apply(rt, begun, seen)
                passed.add(page, seen, list_lag=settings.list_lag)
                reached("observe.after_page")
                with rt.engine.begin() as conn:
                    if not turns.hold_on(conn, lease, lease_seconds=settings.lease):
                        return
                passed.applying = time.monotonic() - arrived
    except NoTokenError:
        # Perhaps since the provider asked to send nothing for a while.
        failed, limited = True, min(max(0.0, rt.flow.now().resume_in), MOST_REST)
    except ApiError as error:
        failed = True
        if isinstance(error, RateLimited):
            limited = min(error.retry_after or 0.0, MOST_REST)
        log.warning("the task list can't be read: %s", error)
        common.report(rt, error)
    with rt.engine.begin() as conn:
        verdict = turns.end(
            conn,
            begun,
            passed.shown,
            young=passed.young,
            pages=passed.pages,
            failed=failed,
            limited=limited,
            least=settings.observe_from,
            every=settings.poll_min,
            lease_seconds=settings.lease,
        )
    if verdict is not None:
        log.info(
            "observed %d of %d running generations on %d pages in %.1f s: %d ended%s",
            len(passed.shown),
            begun.sought,
            passed.pages,
            time.monotonic() - began,
            passed.ended,
            "" if verdict.engaged else "; polled one by one from now on",
        )


def _read(rt: Runtime, number: int) -> TaskPage:
    return rt.client.list_tasks(number, PAGE_SIZE, retry=False)


def _pages(rt: Runtime, read: Pages, begun: Begun, passed: _Pass) -> Iterator[TaskPage]:
    """Pages from the first on; or the first, for the total, and then from the last backwards."""
    first = _read(rt, 1)
    passed.latency = _latency(first)
    yield first
    if not begun.backward and not first.data:
        return
    last = -(-(first.total or 0) // PAGE_SIZE)
    numbers = range(last, 1, -1) if begun.backward else count(2)
    for answer in read(numbers, lambda: passed.ahead(begun, rt.limiter.per_second)):
        passed.latency = _latency(answer)
        yield answer
        if not begun.backward and not answer.data:
            return


def _latency(answer: TaskPage) -> float:
    made = answer.exchange
    return 0.0 if made is None else made.received - made.sent


def _apply(rt: Runtime, begun: Begun, seen: Sequence[Observation]) -> Page:
    """A page in one transaction; where the tables refuse what a task shows, by halves.

    One task's odd data must not keep the other ninety-nine from being seen.
    """
    try:
        with rt.engine.begin() as conn:
            page = transitions.apply_page(conn, seen, before=begun.before)
            if page.ended:
                schedule.wake_if_waiting(conn)
    except DBAPIError as error:
        if not common.refused_as_data(error):
            raise
        if len(seen) == 1:
            log.error("remote task %s is passed over: %s", seen[0].task_id[:80], error)  # noqa: TRY400
            return Page()
        middle = len(seen) // 2
        first, rest = _apply(rt, begun, seen[:middle]), _apply(rt, begun, seen[middle:])
        return first + rest
    for kind, seconds in page.took:
        rt.usual.note(kind_of(kind), seconds)
    for moved in page.ended:
        of = {"generation": str(moved.id)}
        log.info("generation %s is %s", moved.id, Status(moved.status), extra=of)
    return page
