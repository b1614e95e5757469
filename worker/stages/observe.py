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

from sqlalchemy.exc import DBAPIError

from api_client import ApiError, Disposition, RateLimited, TaskPage
from models import transitions
from models.lifecycle import Observation, Status
from models.observing import turns
from models.observing.choice import BARREN, PAGE_SIZE
from models.observing.turns import Begun
from models.observing.usual import kind_of
from models.transitions import Page
from worker.crash_points import reached
from worker.limiter import NoTokenError
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
    ended: int = 0
    barren: int = 0

    def add(self, page: Page) -> None:
        """One page more."""
        self.pages += 1
        fresh = set(page.shown) - self.shown
        self.barren = 0 if fresh else self.barren + 1
        self.shown |= fresh
        self.ended += len(page.ended)

    def over(self, begun: Begun) -> bool:
        """Nothing more is to be had, or not for what it costs."""
        found = len(self.shown)
        return (
            found >= begun.sought
            or self.pages >= begun.budget
            or (found > 0 and self.barren >= BARREN)
        )


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
        for answer in _pages(rt, begun, passed):
            page = _apply(rt, begun, [common.observation(task) for task in answer.data])
            passed.add(page)
            reached("observe.after_page")
            with rt.engine.begin() as conn:
                if not turns.hold_on(conn, lease, lease_seconds=settings.lease):
                    return
    except NoTokenError:
        failed, limited = True, 0.0
    except ApiError as error:
        failed = True
        if isinstance(error, RateLimited):
            limited = min(error.retry_after or 0.0, MOST_REST)
        log.warning("the task list can't be read: %s", error)
        if error.disposition is Disposition.HOLD or isinstance(error, RateLimited):
            common.hold(rt, error)
    with rt.engine.begin() as conn:
        verdict = turns.end(
            conn,
            begun,
            passed.shown,
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


def _pages(rt: Runtime, begun: Begun, passed: _Pass) -> Iterator[TaskPage]:
    """Pages from the first on; or the first, for the total, and then from the last backwards."""
    answer = rt.client.list_tasks(1, PAGE_SIZE, retry=False)
    yield answer
    last = -(-(answer.total or 0) // PAGE_SIZE)
    number = last if begun.backward else 2
    while number > 1 and not passed.over(begun):
        if not begun.backward and not answer.data:
            return
        answer = rt.client.list_tasks(number, PAGE_SIZE, retry=False)
        yield answer
        number += -1 if begun.backward else 1


def _apply(rt: Runtime, begun: Begun, seen: Sequence[Observation]) -> Page:
    """A page in one transaction; where the tables refuse what a task shows, by halves.

    One task's odd data must not keep the other ninety-nine from being seen.
    """
    try:
        with rt.engine.begin() as conn:
            page = transitions.apply_page(conn, seen, before=begun.before)
    except DBAPIError as error:
        if not common.refused_as_data(error):
            raise
        if len(seen) == 1:
            log.error("remote task %s is passed over: %s", seen[0].task_id[:80], error)  # noqa: TRY400
            return Page()
        middle = len(seen) // 2
        first, rest = _apply(rt, begun, seen[:middle]), _apply(rt, begun, seen[middle:])
        return Page(first.shown + rest.shown, first.ended + rest.ended, first.took + rest.took)
    for kind, seconds in page.took:
        rt.usual.note(kind_of(kind), seconds)
    for moved in page.ended:
        log.info("generation %s is %s", moved.id, Status(moved.status))
    return page
