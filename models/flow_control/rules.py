"""The rules of flow control: evidence in, limits out. Pure; times in seconds, rates per second.

Each rule answers one kind of evidence:

* throttling (RATE_LIMIT_EXCEEDED, Retry-After) lowers the request rate of all calls (`RateLimit`);
* CONCURRENCY_LIMIT_REACHED lowers how many tasks may be at work (`ConcurrencyLimit`);
* failed submits slow the fleet in proportion to their share (`failure_allowance`);
* a run of failures without one success is an outage: one probe at a time (`is_outage`,
  `probe_interval`), then a ramp (`ramp_allowance`).

One refused generation changes none of them: it waits for its own `retry_delay`.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import dropwhile

# --- request rate ------------------------------------------------------------------------------

RATE_CUT = 0.7
"""Factor applied to the measured rate when the provider throttles."""

RATE_RECOVERY = 30.0
"""Seconds in which a lowered rate returns, linearly, to the rate that was refused."""

RATE_GROWTH = 1.05
"""Factor per second beyond the refused rate: a limit that was raised is found within a minute."""

MIN_RATE = 1.0
"""Requests per second that are always allowed: fewer are no evidence of a limit that low."""

SAME_EPISODE = 1.0
"""Seconds after a cut in which further refusals belong to it: they were sent before it."""


@dataclass(frozen=True)
class RateLimit:
    """A request rate discovered by throttling."""

    lowered_to: float
    refused: float
    """The rate at which the provider refused."""
    age: float
    """Seconds since it was lowered."""

    @property
    def now(self) -> float:
        """Requests per second that may be sent: recovers linearly, then grows by a factor."""
        if self.age <= RATE_RECOVERY:
            share = self.age / RATE_RECOVERY
            return self.lowered_to + (self.refused - self.lowered_to) * share
        return self.refused * float(RATE_GROWTH ** min(self.age - RATE_RECOVERY, 300.0))


def lower_rate(measured: float, current: RateLimit | None) -> RateLimit | None:
    """Return the rate after a refusal at `measured` requests/s; None: part of the last cut."""
    if current is not None:
        if current.age < SAME_EPISODE:
            return None
        measured = min(measured, current.now)
    refused = max(measured, MIN_RATE)
    return RateLimit(max(MIN_RATE, refused * RATE_CUT), refused, 0.0)


# --- concurrency -------------------------------------------------------------------------------

PROBE_AFTER = 30.0
"""Fewest seconds between two attempts to exceed a limit that was refused."""

PROBE_SHARE = 20
"""Submissions between two such attempts, at least: each costs one refusal."""

MAX_PROBE_AFTER = 300.0

SAME_CROWD = 5.0
"""Seconds after a limit was found in which the refusals of the same crowd may lower it."""

GROW_EVERY = 2.0
"""Seconds between two raises once the refused value was exceeded: the old limit is gone."""


@dataclass(frozen=True)
class ConcurrencyLimit:
    """How many tasks the provider was found to run at a time."""

    value: int
    refused: int
    """The lowest number that was refused."""
    age: float
    """Seconds since it changed."""

    def refuse(self, present: int, *, fresh: bool) -> "ConcurrencyLimit":
        """Return the limit after a refusal with `present` other tasks at work or being submitted.

        `fresh`: the refused POST was sent under this very limit, so the limit is too high. One
        that was sent before only shows how many fit, and only as long as they can be the same.
        """
        if not fresh and self.age > SAME_CROWD:
            return self
        value = max(1, min(self.value - 1 if fresh else self.value, present))
        return ConcurrencyLimit(value, value + 1, 0.0)

    def grow(self, *, in_use: int, per_second: float) -> "ConcurrencyLimit | None":
        """Return the next limit to try, or None while nothing shows that more is needed.

        By one where that was refused before, and seldom; by a quarter once it was exceeded.
        """
        if in_use < self.value:
            return None
        if self.value >= self.refused:
            return self._grown(max(1, self.value // 4)) if self.age >= GROW_EVERY else None
        wait = PROBE_SHARE / per_second if per_second > 0 else MAX_PROBE_AFTER
        if self.age < min(MAX_PROBE_AFTER, max(PROBE_AFTER, wait)):
            return None
        return self._grown(1)

    def _grown(self, by: int) -> "ConcurrencyLimit":
        return ConcurrencyLimit(self.value + by, self.refused, 0.0)


# --- failures ----------------------------------------------------------------------------------

WINDOW = 10.0
"""Seconds of outcomes that the failure throttle considers."""

MIN_SAMPLE = 20
"""Answered submits in the window below which it throttles nothing."""

OVERCOMMIT = 2.0
"""Submits per success that are sent: K of client-side throttling (Google SRE, Handling Overload).
With 2, half of all submits may fail before the fleet slows down."""

MIN_FAILING_RATE = 1.0
"""Submits per second that are sent however many fail; an outage has its own interval."""

OUTAGE_SAMPLE = 12
"""Failed submits in a row that make an outage. Random failures of one half do so once in
4,096 submits, which costs a second."""

OUTAGE_SHARE = 2
"""Failed submits of one generation that count: one that is always refused is no outage."""

OUTAGE_SPAN = 120.0
"""Seconds within which these failures must have come."""

MIN_PROBE, MAX_PROBE = 1.0, 30.0

RAMP_START = 4
"""POSTs in progress that a ramp begins with."""

RAMP_DONE = 64
"""Successes that end a ramp."""

MAX_RAMP = 600.0
"""Seconds after which a ramp ends, however few submits there were."""


def failure_allowance(
    *, answered: int, succeeded: int, span: float, lately: int, in_progress: int
) -> int | None:
    """Return how many more submits may be sent now; None where failures do not limit them.

    `answered` and `succeeded`: submits of the window, the oldest of them `span` s ago; `lately`:
    answered in the last second; `in_progress`: not answered yet.

    The rate is what the successes allow, so that it falls with their share. Counted over the
    window instead, every submit above the share would stop the fleet until the window has passed.
    """
    if answered < MIN_SAMPLE or succeeded * OVERCOMMIT >= answered:
        return None
    per_second = max(MIN_FAILING_RATE, succeeded * OVERCOMMIT / max(1.0, span))
    return max(0, math.ceil(per_second) - lately - in_progress)


def is_outage(latest: Sequence[bool | None]) -> bool:
    """Return whether the submits that were sent last, the newest first, all failed.

    True is a success, None has no answer yet. In the order of sending: where failures come at once
    and successes take a second, the order of answers would show failures alone.
    """
    answered = list(dropwhile(lambda ok: ok is None, latest))[:OUTAGE_SAMPLE]
    return len(answered) == OUTAGE_SAMPLE and all(ok is False for ok in answered)


def probe_interval(outage_age: float) -> float:
    """Return the seconds between two probes: a tenth of the outage, from 1 to 30."""
    return min(MAX_PROBE, max(MIN_PROBE, outage_age / 10))


def ramp_allowance(*, succeeded: int, in_progress: int) -> int | None:
    """Return how many more submits may be sent during a ramp; None once it is over.

    One more in progress for each success: it doubles with each round of answers, like TCP's slow
    start.
    """
    if succeeded >= RAMP_DONE:
        return None
    return max(0, RAMP_START + succeeded - in_progress)


# --- one generation ----------------------------------------------------------------------------

RETRY_BASE, RETRY_GROWTH, MAX_RETRY = 0.3, 1.3, 30.0


def retry_delay(refusals: int, rng: random.Random | None = None) -> float:
    """Return the seconds until a generation that was refused `refusals` times is tried again.

    Capped, with full jitter. It grows by 30 % each time, so that ten refusals in a row, ordinary
    where every second submit is refused, cost some seconds and not minutes.
    """
    bound = min(MAX_RETRY, RETRY_BASE * RETRY_GROWTH ** min(max(refusals, 1) - 1, 64))
    return (rng or random).uniform(0.05, bound)
