"""Deciding what became of a POST whose answer was lost, from the provider's task list. Pure.

The rules are those of protocol.md ("Resolving", "A complete reading", "Skew"):

* adopt narrowly: only what carries the attempt's own mark;
* send again widely: only if nothing in two complete readings could possibly be ours;
* otherwise decide nothing: an operator does.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from models.lifecycle import Observation
from models.marks import ECHOED, NOT_A_SEED

TRUNCATION = timedelta(seconds=1)
"""Stamps may come without their fraction of a second."""

UNKNOWN_SKEW = timedelta(minutes=5)
"""Assumed both ways while the provider has shown no clock."""


@dataclass(frozen=True)
class Skew:
    """How far the provider's clock is from ours, as an interval that surely holds it."""

    lowest: timedelta = -UNKNOWN_SKEW
    highest: timedelta = UNKNOWN_SKEW

    @staticmethod
    def of(samples: Iterable["Skew"]) -> "Skew":
        """The interval over all samples; ± `UNKNOWN_SKEW` without any."""
        known = list(samples)
        if not known:
            return Skew()
        return Skew(min(s.lowest for s in known), max(s.highest for s in known))

    @staticmethod
    def of_answer(*, date: datetime, sent: datetime, received: datetime) -> "Skew":
        """From an answer's Date header, which has whole seconds, and our two times around it."""
        return Skew(date - received, date + TRUNCATION - sent)

    @staticmethod
    def of_task(*, created: datetime, intended: datetime, answered: datetime) -> "Skew":
        """From a task of ours: it was created between its intent and its answer."""
        return Skew(created - answered, created + TRUNCATION - intended)


@dataclass(frozen=True)
class Window:
    """When, by the provider's clock, a task of an attempt can have been created."""

    start: datetime
    end: datetime

    def holds(self, created_at: datetime | None) -> bool:
        """A task without a stamp can't be excluded."""
        return created_at is None or self.start <= created_at <= self.end


@dataclass(frozen=True)
class Attempt:
    """One POST without a definite answer."""

    number: int
    seed: int
    seed_drawn: bool
    started_at: datetime
    settle_at: datetime

    def window(self, skew: Skew) -> Window:
        """The window of this attempt, as wide as clocks and stamps may be off."""
        return Window(
            self.started_at + skew.lowest - TRUNCATION, self.settle_at + skew.highest + TRUNCATION
        )


@dataclass(frozen=True)
class Case:
    """One generation in doubt: its open attempts, and what may be assumed."""

    generation_id: UUID
    request: Mapping[str, Any]
    attempts: tuple[Attempt, ...]
    key_exclusive: bool = False
    """Nobody else uses this API key (a setting)."""
    rival: bool = False
    """Another generation has an open attempt with the same fingerprint."""


@dataclass(frozen=True)
class Adopt:
    """This remote task is the generation's; `others` are further ones of it, to be flagged.

    `by_mark`: it shows a seed drawn for one attempt alone, which proves itself; otherwise two
    complete readings must agree.
    """

    task: Observation
    attempt: int
    by_mark: bool
    others: tuple[tuple[Observation, int], ...] = ()


@dataclass(frozen=True)
class Absent:
    """No remote task is the generation's: it may be sent again."""


@dataclass(frozen=True)
class Undecided:
    """Something could be the generation's, and nothing shows that it is."""

    why: str
    task_ids: tuple[str, ...] = ()


Verdict = Adopt | Absent | Undecided


def carries_mark(attempt: Attempt, task: Observation) -> bool:
    """The task shows the seed that was drawn for this attempt alone. Its stamps don't matter."""
    return attempt.seed_drawn and task.seed not in NOT_A_SEED and task.seed == attempt.seed


def looks_equal(case: Case, attempt: Attempt, task: Observation, window: Window) -> bool:
    """All that the list echoes equals what was asked, and it was created in the window."""
    echoed = all(getattr(task, name) == case.request.get(name) for name in ECHOED)
    in_window = task.created_at is not None and window.holds(task.created_at)
    return echoed and task.seed == attempt.seed and in_window


def could_be(attempt: Attempt, task: Observation, window: Window) -> bool:
    """Whether the task could possibly be of this attempt, however the provider shows it.

    A shown seed other than the attempt's excludes it; other fields may be normalised, so they
    exclude nothing; a stamp outside the window does.
    """
    if carries_mark(attempt, task):
        return True
    if task.seed not in NOT_A_SEED and task.seed not in _as_it_may_be_shown(attempt.seed):
        return False
    return window.holds(task.created_at)


def _as_it_may_be_shown(seed: int) -> set[int]:
    """A seed, and what is left of it in 31 or 32 bits. A drawn one always fits."""
    low = seed % 2**32
    return {seed, seed % 2**31, low, low - 2**32 if low >= 2**31 else low}


def judge(case: Case, unknown: Sequence[Observation], skew: Skew) -> Verdict:
    """What one complete reading says of a generation in doubt.

    `unknown` are the remote tasks that no generation follows.
    """
    marked = [
        (task, attempt.number)
        for attempt in case.attempts
        for task in unknown
        if carries_mark(attempt, task)
    ]
    if marked:
        return _adopt(marked, by_mark=True)

    windows = {attempt.number: attempt.window(skew) for attempt in case.attempts}
    equal = [
        (task, attempt.number)
        for attempt in case.attempts
        for task in unknown
        if not attempt.seed_drawn and looks_equal(case, attempt, task, windows[attempt.number])
    ]
    distinct = {task.task_id for task, _ in equal}
    possible = {
        task.task_id
        for attempt in case.attempts
        for task in unknown
        if could_be(attempt, task, windows[attempt.number])
    }
    if not possible:
        return Absent()
    listed = tuple(sorted(possible))
    if not distinct:
        return Undecided("a remote task shows no seed and could be its own", listed)
    if not case.key_exclusive:
        return Undecided(
            "an equal remote task exists, and the key is not declared exclusive", listed
        )
    if case.rival:
        return Undecided("an equal remote task could be another generation's", listed)
    if possible != distinct or len(distinct) > len(case.attempts):
        return Undecided("more remote tasks could be its own than were sent", listed)
    return _adopt(equal, by_mark=False)


def _adopt(matches: list[tuple[Observation, int]], *, by_mark: bool) -> Adopt:
    """The earliest task is adopted, whichever attempt it is of."""
    first_of: dict[str, tuple[Observation, int]] = {}
    for task, number in matches:
        first_of.setdefault(task.task_id, (task, number))
    ordered = sorted(
        first_of.values(),
        key=lambda match: (
            match[0].created_at is None,
            match[0].created_at.timestamp() if match[0].created_at else 0.0,
            match[0].task_id,
        ),
    )
    (task, number), *others = ordered
    return Adopt(task, number, by_mark, tuple(others))


def agree(first: Verdict, second: Verdict) -> Verdict:
    """What two complete readings say together; where they differ, nothing is decided.

    A drawn seed proves itself, in whichever reading it shows.
    """
    match first, second:
        case _, Adopt(by_mark=True):
            return second
        case Adopt(by_mark=True), _:
            return first
        case Absent(), Absent():
            return second
        case Adopt(), Adopt() if first.task.task_id == second.task.task_id:
            return second
        case Undecided(), _:
            return first
        case _, Undecided():
            return second
        case _:
            return Undecided("two readings of the task list disagree")


def proven(verdict: Verdict) -> bool:
    """Whether it needs no second reading, nor a complete one: a drawn seed was seen."""
    return isinstance(verdict, Adopt) and verdict.by_mark


def heeded(verdict: Verdict, *, complete: bool) -> Verdict:
    """What a reading's verdict is worth: a reading that missed pages proves no absence."""
    if complete or proven(verdict):
        return verdict
    return Undecided("the task list could not be read completely")


def early(verdict: Verdict) -> Adopt | None:
    """Return what an early, incomplete scan may decide: adoption, and nothing else.

    A scan proves that a task exists, whatever else it missed, so an adoption by the narrow rule
    counts like one by a drawn seed. It is safe only if the deciding transaction applies `still`:
    the scan may have begun before the attempt that it is held against.
    """
    return verdict if isinstance(verdict, Adopt) else None


def still(verdict: Verdict, *, followed: Collection[str]) -> Verdict:
    """The verdict again in the deciding transaction, with the tasks that are followed by now."""
    if isinstance(verdict, Adopt) and verdict.task.task_id in followed:
        return Undecided("the remote task was adopted by another generation meanwhile")
    return verdict


# --- a complete reading ------------------------------------------------------------------------


@dataclass(frozen=True)
class Page:
    """One page of the task list. `unreadable` items were there but could not be understood."""

    tasks: tuple[Observation, ...]
    total: int | None
    size: int
    unreadable: int = 0


@dataclass
class Reading:
    """A pass over the task list, and whether nothing can have been missed.

    FULL: `total` was the same on every page, and that many distinct tasks were seen.
    STOP: creation times did not increase so far, a whole page was older than the window in
    both stamps, and every task known to be in the window was seen, at least one. Nothing may
    have left the list or moved up in it meanwhile, which would pull an unread task past the
    reader: `total` never fell, and no more was seen again than `total` grew by.
    """

    tasks: dict[str, Observation] = field(default_factory=dict)
    """What was seen, as it was last shown; empty where it is not kept."""
    ids: set[str] = field(default_factory=set)
    keep: bool = True
    """Whether the tasks are wanted afterwards: a long list of them takes much memory."""
    pages: int = 0
    ended: bool = False
    _total: int | None = None
    _first_total: int = 0
    _repeated: int = 0
    _steady: bool = True
    _ordered: bool = True
    _oldest: datetime | None = None
    _last: Page | None = None

    def add(self, page: Page) -> None:
        """Take in the next page."""
        self.pages += 1
        if page.total is None or page.unreadable or self._total not in (None, page.total):
            self._steady = False
        self._account(page)
        self._total = page.total
        for task in page.tasks:
            if task.created_at is None or (self._oldest and task.created_at > self._oldest):
                self._ordered = False
            if task.created_at is not None:
                self._oldest = task.created_at
            self.ids.add(task.task_id)
            if self.keep:
                self.tasks[task.task_id] = _newer(self.tasks.get(task.task_id), task)
        if page.unreadable:
            self._ordered = False
        self._last = page
        self.ended = len(page.tasks) + page.unreadable < page.size

    def _account(self, page: Page) -> None:
        """In a list that only grows at its head, each new task shows one seen task again."""
        if page.total is None:
            self._ordered = False
            return
        if self._total is None:
            self._first_total = self._total = page.total
        self._repeated += sum(task.task_id in self.ids for task in page.tasks)
        if page.total < self._total or self._repeated > page.total - self._first_total:
            self._ordered = False

    @property
    def full(self) -> bool:
        """Complete by count."""
        return self._steady and self._total is not None and len(self.ids) == self._total

    def is_of(self, ours: frozenset[str]) -> bool:
        """Whether it can be our account's: it shows one of our latest tasks, if there are any."""
        return not ours or not ours.isdisjoint(self.ids)

    def stopped(self, start: datetime, known: frozenset[str]) -> bool:
        """Complete by order: what is left is older than `start`.

        `known` are the tasks that we know to have been created since `start`.
        """
        page = self._last
        if page is None or not self._ordered or len(page.tasks) < page.size:
            return False
        older = all(
            task.created_at is not None
            and task.created_at < start
            and task.updated_at is not None
            and task.updated_at < start
            for task in page.tasks
        )
        return older and bool(known) and known <= self.ids


@dataclass(frozen=True)
class Seen:
    """What a finished reading saw, as far as the next one is held against it."""

    ids: frozenset[str]
    by_count: bool
    """Complete because as many distinct tasks were seen as `total` says (FULL)."""


def borne_out(first: Seen, second: Seen) -> bool:
    """Whether the second reading shows that the first, complete by count, was not fooled.

    A count is fooled where a task left the list and another came while it was read: one that
    stayed was pulled past the reader, and the one that left was counted in its stead. So all that
    was counted must still be there.
    """
    return not first.by_count or (second.by_count and first.ids <= second.ids)


def _newer(before: Observation | None, seen: Observation) -> Observation:
    """Of two sightings in one pass the later; a seed once shown stays known."""
    if before is None or seen.seed not in NOT_A_SEED:
        return seen
    return replace(seen, seed=before.seed)
