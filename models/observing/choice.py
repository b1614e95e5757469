"""The task list or a GET for each: what costs fewer requests. Pure.

The list is asked for by the page of 100, and how many pages hold what runs is only known from
reading them: its order is not documented, and everything that ever ended stands in it too. So it
is tried where it should pay, left where it did not, and tried again ever more seldom.
"""

from dataclasses import dataclass

PAGE_SIZE = 100

BARREN = 3
"""So many pages in a row without anything sought, once something was found, end a pass."""

REST = 60.0
"""Seconds until the list is tried again where it did not pay; doubled each time, up to an hour."""
LONGEST_REST = 3600.0

MOST_LIMITED = 10
"""So many passes in a row that a request rate cut short are borne: GETs would need more of it."""

MOST_TRIES = 3
"""A pass that was begun so often and never ended is left alone for a while: workers die of it."""


def engage(soon: int, running: int, *, least: int) -> bool:
    """Whether to follow by the list: `soon` GETs are due within one interval, `running` tasks in
    all. `least`: never for fewer; 0: never.
    """
    return 0 < least <= soon and soon > 2 * at_best(running)


def outweighed(soon: int) -> int:
    """The most running tasks for which so many GETs are more than reading the list."""
    return max(0, PAGE_SIZE * ((soon - 1) // 2 - 1))


def at_best(running: int) -> int:
    """Pages that a pass takes where what runs stands at one end of the list."""
    return -(-running // PAGE_SIZE) + 1


def budget(expected: int, running: int) -> int:
    """Pages after which a pass gives up: as many as there would be GETs, and fair room."""
    return max(expected, 2 * at_best(running))


@dataclass(frozen=True)
class Pass:
    """How one pass over the list went."""

    pages: int
    sought: int
    """Running generations that the list could show."""
    expected: int
    """Generations past their first look: each would cost a GET in every interval or two."""
    missed: int
    """Of those, how many it did not show."""
    left: int
    """Generations that are past their first look now, or will be within an interval."""
    failed: bool = False
    """A page could not be had."""
    limited: float | None = None
    """Seconds to wait, where that was for a limit on the rate of requests."""

    @property
    def worth_it(self) -> bool:
        """It cost less than GETs, and showed most of what was sought."""
        return self.showed_them and self.pages <= self.expected

    @property
    def showed_them(self) -> bool:
        """It showed most of what was looked for."""
        return not self.failed and 2 * self.missed <= self.expected


@dataclass(frozen=True)
class Verdict:
    """What follows from a pass."""

    engaged: bool
    backward: bool
    failures: int
    rest: float
    """Seconds until the next pass may begin, at least."""


def judge(done: Pass, *, backward: bool, failures: int, least: int, every: float) -> Verdict:
    """Whether to go on by the list, from which end, and when."""
    if done.worth_it:
        return Verdict(2 * done.left >= least, backward, 0, every)
    if done.showed_them:
        # Few are left to be followed: GETs are cheaper, and nothing is wrong with the list.
        return Verdict(False, backward, 0, every)
    failures += 1
    if done.limited is not None:
        if failures < MOST_LIMITED:
            return Verdict(True, backward, failures, min(LONGEST_REST, max(every, done.limited)))
        return Verdict(False, backward, failures, REST)
    if done.failed:
        # One page that can't be had is nothing yet.
        again = failures < MOST_TRIES
    else:
        # What is sought may stand at the other end.
        backward, again = not backward, failures == 1
    rest = every if again else min(LONGEST_REST, REST * 2.0 ** min(failures - 1, 16))
    return Verdict(again, backward, failures, rest)
