"""What the submit protocol decides, apart from the database: facts in, a decision out. Pure.

`models.submission`, `watch`, `transitions` and `worker.operator` read the facts in a transaction,
ask here, and act in the same transaction. Which move may leave which status, and what fences it,
is data in `models.lifecycle.TRANSITIONS`; what the task list says of a lost answer is decided in
`models.resolution`. `tests/model` runs all three against every interleaving within small bounds.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any
from uuid import UUID

from models.lifecycle import IN_DOUBT, OPEN_OUTCOMES, UNSENT, Event, Observation, Status
from models.marks import ECHOED, NOT_A_SEED
from models.resolution import UNKNOWN_SKEW
from models.wait_reasons import Wait, retry

LATE = timedelta(hours=1)
"""How long before an attempt a task may seem to be made and still be of it, or after it: clocks
may be off, and a creation late."""


@dataclass(frozen=True)
class Sent:
    """One attempt as it is recorded; `outcome` is None until there is one."""

    generation_id: UUID
    number: int
    seed: int
    seed_drawn: bool
    outcome: str | None
    started_at: datetime


def is_open(outcome: str | None) -> bool:
    """No definite answer: a remote task of such an attempt may exist, or still appear."""
    return outcome is None or outcome in OPEN_OUTCOMES


# --- the intent --------------------------------------------------------------------------------


@dataclass(frozen=True)
class IntentFacts:
    """What must be known before an intent is committed; None where there is no such thing."""

    late: bool = False
    """Its deadline has passed."""
    cancel_wished: bool = False
    hold: Wait | None = None
    """A pause, an open breaker, throttling, or as many tasks at work as fit."""
    own_task: str | None = None
    """A remote task that nobody follows and that may be this generation's (`may_be_own`)."""
    called_back: bool = False
    """The provider called an attempt of it back that was not answered with a task."""
    holder: UUID | None = None
    """Another generation in doubt that could be mistaken for this one."""


class Obstacle(StrEnum):
    """Why no intent is made."""

    LATE = "late"
    CANCELLED = "cancelled"
    HOLD = "hold"
    OWN_TASK = "own task"
    CALLED_BACK = "called back"
    EQUAL = "equal"


def obstacle_to_intent(facts: IntentFacts) -> Obstacle | None:
    """The first thing that forbids to send; None if nothing does."""
    if facts.late:
        return Obstacle.LATE
    if facts.cancel_wished:
        return Obstacle.CANCELLED
    if facts.hold is not None:
        return Obstacle.HOLD
    if facts.own_task is not None:
        return Obstacle.OWN_TASK
    if facts.called_back:
        return Obstacle.CALLED_BACK
    return Obstacle.EQUAL if facts.holder is not None else None


@dataclass(frozen=True)
class Stray:
    """A remote task that no generation was seen to follow, as it is recorded."""

    task_id: str
    kind: str
    generation_id: UUID | None
    seed: int | None
    created_at: datetime | None
    followed: bool = False
    """Its answer came meanwhile: it is no stray any more."""


def may_be_own(stray: Stray, attempt: Sent) -> bool:
    """Whether it forbids the attempt's generation to send again.

    It is flagged as this generation's, or shows the seed of one of its open attempts. A task from
    long before the attempt is not of it.
    """
    if stray.followed:
        return False
    flagged = stray.generation_id == attempt.generation_id
    shows = stray.seed == attempt.seed and stray.kind != "second" and is_open(attempt.outcome)
    return (flagged or shows) and (
        stray.created_at is None or stray.created_at > attempt.started_at - LATE
    )


STRAY_KINDS = ("foreign", "possible", "second")
"""From the least to the most that is known of a stray task."""


def outranked(kind: str, *, recorded: str | None) -> bool:
    """Return whether a sighting shows less of a stray than is recorded.

    The recorded kind, generation and attempt then stay: an equal seed must not move a second task
    that an answer named to another generation, which would be charged for it.
    """
    return recorded is not None and STRAY_KINDS.index(recorded) > STRAY_KINDS.index(kind)


# --- just before the POST ----------------------------------------------------------------------

TAKEN_OVER = retry("no longer the row's attempt")


@dataclass(frozen=True)
class SendFacts:
    """What can have changed between the intent and its POST."""

    status: Status | None
    """None: the row is gone."""
    attempt: int
    cancel_wished: bool = False
    hold: Wait | None = None
    """A pause, an open breaker, throttling or an outage."""
    called_back: bool = False
    """An earlier attempt was: its remote task exists."""
    late: bool = False


def obstacle_to_sending(facts: SendFacts, *, intended: int) -> Wait | None:
    """Return what forbids to send the POST of attempt `intended`; None if nothing does."""
    if facts.status is not Status.SUBMITTING or facts.attempt != intended:
        return TAKEN_OVER
    if facts.cancel_wished:
        return retry("cancel asked")
    if facts.called_back:
        return retry("an earlier attempt was called back")
    if facts.late:
        return retry("deadline passed")
    return facts.hold


def too_old(age: float, *, send_budget: float) -> bool:
    """Whether an intent of this age (seconds, counting sleep) must not be sent any more.

    Fencing guards rows, not the wire: a worker that slept and wakes is stopped by this alone.
    """
    return age > send_budget


# --- out of submitting and uncertain -----------------------------------------------------------


def taken_back(event: Event, *, cancel_wished: bool) -> Event:
    """No remote task exists, for certain: the way back, or the end if that was asked for."""
    return Event.CANCEL if cancel_wished else event


def after_absence(
    *,
    cancel_wished: bool,
    absent_before: int,
    max_attempts: int,
    counts: bool = True,
    too_long: bool = False,
) -> Event:
    """Return what follows from complete readings that showed no task of any attempt.

    It is sent again, cancelled if that was asked for, or failed: after `max_attempts` lost answers
    that ended this way (`counts`: the latest is one), or `too_long` after its first attempt.
    Failures that the provider itself named are bounded in time, not in number: where half of all
    submits fail, five in a row are ordinary.
    """
    exhausted = absent_before + 1 >= max_attempts if counts else too_long
    return taken_back(Event.EXHAUST if exhausted else Event.ABSENT, cancel_wished=cancel_wished)


def closed_as_not_sent(status: Status, *, attempt: int, unsent: int) -> bool:
    """Whether attempt `unsent`, which was never written, is closed as such.

    Not where its row was found in doubt meanwhile: its readings go on.
    """
    return not (status in IN_DOUBT and attempt == unsent)


def settled(settle_in: Iterable[float]) -> bool:
    """Whether the provider can no longer be working, unseen, on any of a row's open attempts.

    `settle_in`: seconds until `settle_at` of each.
    """
    return all(seconds <= 0 for seconds in settle_in)


EARLY_SCAN = 2.0
"""Seconds after an outcome became uncertain until its remote task is first searched for."""


def next_search(uncertain_for: float, *, settle_in: float, list_lag: float) -> float:
    """Return the seconds until the remote task of an uncertain attempt is searched for next.

    Early, since a task that exists mostly shows at once; once more when the list can lag no
    longer; then when the attempt has settled, which alone can show that there is none.
    """
    for after in (EARLY_SCAN, list_lag):
        # Not for a few milliseconds: the search that is due now comes that much too early.
        if uncertain_for < after - 0.1:
            return min(after - uncertain_for, max(0.0, settle_in))
    return max(0.0, settle_in)


# --- watching ----------------------------------------------------------------------------------

ADOPTING = frozenset({Status.ACCEPTED, Status.UPLOADING, Status.UNCERTAIN})
"""Who is adopted on sight of its mark. A generation that is `submitting` may still get its
answer, which says the same; once its lease has ended the resolve stage adopts it."""


@dataclass(frozen=True)
class Candidate:
    """An attempt that an unknown remote task may be of, with its generation."""

    sent: Sent
    request: Mapping[str, Any]
    follows: str | None
    """The remote task that its generation follows."""


def shows_seed(task: Observation) -> bool:
    """Whether the provider shows the seed that it used."""
    return task.seed not in NOT_A_SEED


def whose(task: Observation, candidates: Iterable[Candidate]) -> Candidate | None:
    """The attempt that an unknown remote task is, or could be, of.

    By its seed: the open attempt that drew it; else an open one that fixed it, all echoed fields
    equal; else the answered one that drew it: a producer may use again a seed that it liked.
    Without a seed: the latest open attempt from about its creation, model and duration equal; what
    may be normalised by the provider excludes nothing.
    """
    if not shows_seed(task):
        return _of_that_time(task, candidates)
    same_seed = [one for one in candidates if one.sent.seed == task.seed]
    drawn = next((one for one in same_seed if one.sent.seed_drawn), None)
    if drawn is not None and is_open(drawn.sent.outcome):
        return drawn
    fixed = [
        one
        for one in same_seed
        if not one.sent.seed_drawn
        and is_open(one.sent.outcome)
        and all(getattr(task, name) == one.request.get(name) for name in ECHOED)
    ]
    return min(fixed, key=lambda one: one.sent.started_at, default=drawn)


def _of_that_time(task: Observation, candidates: Iterable[Candidate]) -> Candidate | None:
    if task.created_at is None:
        return None
    first, last = task.created_at - LATE, task.created_at + UNKNOWN_SKEW
    possible = [
        one
        for one in candidates
        if is_open(one.sent.outcome)
        and one.follows is None
        and first <= one.sent.started_at <= last
        and task.model == one.request.get("model")
        and task.duration == one.request.get("duration")
    ]
    return max(possible, key=lambda one: one.sent.started_at, default=None)


class Sighting(StrEnum):
    """What an unknown remote task is taken for."""

    FOREIGN = "foreign"
    POSSIBLE = "possible"
    """Could be this attempt's, and nothing proves it."""
    MARKED = "marked"
    """Shows a seed that was drawn for this attempt alone."""


def sighting(task: Observation, match: Candidate | None) -> Sighting:
    """What a remote task that no generation follows is, given the attempt it matches."""
    if match is None:
        return Sighting.FOREIGN
    proven = match.sent.seed_drawn and shows_seed(task)
    return Sighting.MARKED if proven else Sighting.POSSIBLE


class Claimed(StrEnum):
    """What is done with a remote task that carries a generation's mark."""

    ADOPT = "adopt"
    WAIT = "wait"
    """Its answer may still come, or it is followed already."""
    SECOND = "second"
    """The generation has another one, or has ended."""


def claimed(status: Status, *, follows: str | None, task_id: str) -> Claimed:
    """What is done, by the status of the generation that drew its seed."""
    if status in ADOPTING:
        return Claimed.ADOPT
    if status is Status.SUBMITTING or follows == task_id:
        return Claimed.WAIT
    return Claimed.SECOND


# --- an operator -------------------------------------------------------------------------------

OPERATOR_ADOPTING = UNSENT | {Status.UNCERTAIN}
"""Whose doubt an operator may end. While it is `submitting`, its answer may still come."""


@dataclass(frozen=True)
class Ground:
    """What an operator's decision stands on."""

    status: Status
    attempt: int
    settled: bool
    """All its open attempts have."""


class Refusal(StrEnum):
    """Why a decision is not carried out."""

    STALE = "about an older attempt"
    STATUS = "not in this status"
    UNSETTLED = "a task may still appear"


def refuse_adoption(ground: Ground, *, named: int) -> Refusal | None:
    """Whether a remote task may be adopted for attempt `named`; None if it may."""
    if ground.attempt != named:
        return Refusal.STALE
    return None if ground.status in OPERATOR_ADOPTING else Refusal.STATUS


def refuse_ending(ground: Ground, *, named: int) -> Refusal | None:
    """Whether a generation may be ended as failed after attempt `named`; None if it may."""
    return refuse_adoption(ground, named=named)


def refuse_resubmission(ground: Ground, *, named: int) -> Refusal | None:
    """Whether a generation may be sent again after attempt `named`; None if it may."""
    refusal = refuse_adoption(ground, named=named)
    if refusal is None and not ground.settled:
        return Refusal.UNSETTLED
    return refusal
