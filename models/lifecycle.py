"""The lifecycle of a generation: its statuses, its transitions, and what an observation means.

Everything here is data or a pure function. `models.transitions` turns a transition into one
guarded UPDATE; nothing else may write `generations.status`.

    accepted -> uploading -> submitting -> running -> completed | failed | cancelled | expired
                                |  ^                     (by observation only)
                                v  |
                             uncertain -> running | accepted | cancelled | failed
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from types import MappingProxyType
from typing import Any

from models import storable


class Status(StrEnum):
    """Where a generation stands. design.md names who moves each."""

    ACCEPTED = "accepted"
    UPLOADING = "uploading"
    SUBMITTING = "submitting"
    UNCERTAIN = "uncertain"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


TERMINAL = frozenset({Status.COMPLETED, Status.FAILED, Status.CANCELLED, Status.EXPIRED})
"""Nothing moves a generation out of these."""

LIVE = frozenset({Status.UPLOADING, Status.SUBMITTING, Status.UNCERTAIN, Status.RUNNING})
"""Past admission and not ended: each holds a slot of `max_in_flight` (unless in attention)."""

IN_DOUBT = frozenset({Status.SUBMITTING, Status.UNCERTAIN})
"""The POST may have happened and its answer is not known: these hold the fingerprint lock."""

RESERVED = IN_DOUBT | {Status.RUNNING}
"""An intent was committed and no end is known: the provider may charge, so the estimate is set
aside."""

UNSENT = frozenset({Status.ACCEPTED, Status.UPLOADING})
"""No POST of the latest attempt can be on the wire."""


OPEN_OUTCOMES = ("unknown", "absent", "given_up")
"""Outcomes of an attempt that are no definite answer: a remote task of it may still appear."""


class Event(StrEnum):
    """The name of each transition, as `generation_events.event` keeps it."""

    ACCEPT = "accept"
    REJECT = "reject"
    ADMIT = "admit"
    PUT_BACK = "put_back"
    INTEND = "intend"
    NOT_SENT = "not_sent"
    DECLINE = "decline"
    REFUSE = "refuse"
    DOUBT = "doubt"
    SUBMIT = "submit"
    ADOPT = "adopt"
    ABSENT = "absent"
    EXHAUST = "exhaust"
    COMPLETE = "complete"
    FAIL = "fail"
    END_CANCELLED = "end_cancelled"
    END_EXPIRED = "end_expired"
    CANCEL = "cancel"
    LAPSE = "lapse"
    POISON = "poison"
    GIVE_UP = "give_up"


class Note(StrEnum):
    """Events that tell something without moving the status."""

    PROGRESS = "progress"
    UPLOADED = "uploaded"
    CANCEL_ASKED = "cancel_asked"
    CANCEL_SENT = "cancel_sent"
    BLOCKED = "blocked"
    ATTENTION = "attention"
    SECOND_TASK = "second_task"
    CONTRADICTION = "contradiction"
    CHARGED = "charged"
    UNKNOWN_STATUS = "unknown_status"
    CALLED_BACK = "called_back"
    NOTICE_RESENT = "notice_resent"
    ARCHIVED = "archived"
    LOST = "lost"
    RETRIED = "retried"


class Fence(StrEnum):
    """What must still be as the writer knew it for its transition to count."""

    NONE = "none"
    LEASE = "lease"
    ATTEMPT = "attempt"


@dataclass(frozen=True)
class Transition:
    """From which statuses an event may move a generation, where to, and whose word counts."""

    sources: frozenset[Status]
    target: Status
    means: str
    fence: Fence


def _t(target: Status, means: str, *sources: Status, fence: Fence = Fence.NONE) -> Transition:
    return Transition(frozenset(sources), target, means, fence)


_S = Status
_LEASE, _ATTEMPT = Fence.LEASE, Fence.ATTEMPT
TRANSITIONS: Mapping[Event, Transition] = MappingProxyType(
    {
        Event.ADMIT: _t(_S.UPLOADING, "a slot is free", _S.ACCEPTED),
        Event.PUT_BACK: _t(
            _S.ACCEPTED, "may not be sent now; gives its slot up", _S.UPLOADING, fence=_LEASE
        ),
        Event.INTEND: _t(
            _S.SUBMITTING, "the intent to POST is committed", _S.UPLOADING, fence=_LEASE
        ),
        Event.NOT_SENT: _t(
            _S.ACCEPTED, "the POST was never written", _S.SUBMITTING, fence=_ATTEMPT
        ),
        Event.DECLINE: _t(
            _S.ACCEPTED, "the provider refused for now", _S.SUBMITTING, fence=_ATTEMPT
        ),
        Event.REFUSE: _t(_S.FAILED, "the provider refused for good", _S.SUBMITTING, fence=_ATTEMPT),
        Event.DOUBT: _t(
            _S.UNCERTAIN, "the POST's outcome is unknown", _S.SUBMITTING, fence=_ATTEMPT
        ),
        Event.SUBMIT: _t(
            _S.RUNNING,
            "the answer named the remote task, late or not",
            _S.SUBMITTING,
            _S.UNCERTAIN,
            _S.ACCEPTED,
            _S.UPLOADING,
            fence=_ATTEMPT,
        ),
        Event.ADOPT: _t(
            _S.RUNNING,
            "the remote task was found in the task list",
            _S.SUBMITTING,
            _S.UNCERTAIN,
            _S.ACCEPTED,
            _S.UPLOADING,
            fence=_ATTEMPT,
        ),
        Event.ABSENT: _t(
            _S.ACCEPTED, "no remote task exists: safe to send again", _S.UNCERTAIN, fence=_ATTEMPT
        ),
        Event.EXHAUST: _t(
            _S.FAILED, "no remote task exists, attempts used up", _S.UNCERTAIN, fence=_ATTEMPT
        ),
        Event.COMPLETE: _t(_S.COMPLETED, "the remote task completed", _S.RUNNING),
        Event.FAIL: _t(_S.FAILED, "the remote task failed", _S.RUNNING),
        Event.END_CANCELLED: _t(_S.CANCELLED, "the remote task was cancelled", _S.RUNNING),
        Event.END_EXPIRED: _t(_S.EXPIRED, "the remote task expired", _S.RUNNING),
        Event.CANCEL: _t(
            _S.CANCELLED,
            "cancelled before a remote task existed",
            _S.ACCEPTED,
            _S.UPLOADING,
            _S.SUBMITTING,  # only with the POST known not to have been written
            _S.UNCERTAIN,  # only with two empty complete readings
            # Past the intent, its caller fences by the attempt as well.
        ),
        Event.LAPSE: _t(
            _S.EXPIRED, "deadline passed before it was sent", _S.ACCEPTED, _S.UPLOADING
        ),
        Event.REJECT: _t(
            _S.FAILED, "it can't be carried out", _S.ACCEPTED, _S.UPLOADING, fence=_LEASE
        ),
        Event.POISON: _t(
            _S.FAILED, "workers died of it again and again", _S.UPLOADING, fence=_LEASE
        ),
        Event.GIVE_UP: _t(
            _S.FAILED,
            "an operator ended it",
            _S.UNCERTAIN,
            _S.ACCEPTED,
            _S.UPLOADING,
            fence=_ATTEMPT,
        ),
    }
)
"""Every allowed move. ACCEPT and a REJECT at the door create the row and so have no source."""


# --- observing the remote task ---------------------------------------------------------------

_RANK = {"pending": 1, "queued": 2, "processing": 3}
_ENDS = {
    "completed": Event.COMPLETE,
    "failed": Event.FAIL,
    "cancelled": Event.END_CANCELLED,
    "expired": Event.END_EXPIRED,
}
UNSPECIFIED = "UNSPECIFIED"
"""`error_code` of a failure that the provider gave no code for."""

TOO_MANY = "CONCURRENCY_LIMIT_REACHED"
"""Code of a refusal for the number of tasks; "task is queued", it says: one may exist."""


def rank(remote_status: str | None) -> int:
    """How far along a remote status is: unknown ones rank lowest, terminal ones highest."""
    if remote_status in _ENDS:
        return 9
    return _RANK.get(remote_status or "", 0)


_KEPT: Mapping[tuple[str, ...], Callable[[Any], Any]] = MappingProxyType(
    {
        ("task_id", "status", "model", "resolution", "ratio"): storable.text,
        ("error_code", "error_message", "video_url", "last_frame_url"): storable.text,
        ("seed",): storable.seed,
        ("duration",): storable.integer,
        ("credit_cost",): storable.credits,
        ("created_at", "updated_at"): storable.instant,
    }
)


@dataclass(frozen=True, slots=True)
class Observation:
    """What the provider showed of one remote task, by GET or in the task list."""

    task_id: str
    status: str
    seed: int | None = None
    model: str | None = None
    resolution: str | None = None
    ratio: str | None = None
    duration: int | None = None
    generate_audio: bool | None = None
    credit_cost: Decimal | None = None
    error_code: str | None = None
    error_message: str | None = None
    video_url: str | None = field(default=None, repr=False)  # signed: kept out of logs
    last_frame_url: str | None = field(default=None, repr=False)
    created_at: datetime | None = None
    updated_at: datetime | None = None

    def __post_init__(self) -> None:
        """Keep what the tables can hold: an odd value costs itself, not the observation."""
        for names, keep in _KEPT.items():
            for name in names:
                object.__setattr__(self, name, keep(getattr(self, name)))


@dataclass(frozen=True)
class Followed:
    """The part of a generation that an observation is held against."""

    status: Status
    remote_task_id: str | None
    remote_status: str | None


@dataclass(frozen=True)
class Finish:
    """The remote task has ended: move the generation by `event`."""

    event: Event


@dataclass(frozen=True)
class Progress:
    """The remote task got further."""


@dataclass(frozen=True)
class Nothing:
    """Stale, or nothing new."""


@dataclass(frozen=True)
class Contradiction:
    """The remote task shows another end than the one recorded. Told, never followed."""


Decision = Finish | Progress | Nothing | Contradiction


def observe(followed: Followed, seen: Observation) -> Decision:
    """What an observation does to the generation that follows `seen.task_id`.

    Guarded by rank and terminality, so that replays and stale answers change nothing and any
    order of observations gives the same end.
    """
    if followed.remote_task_id != seen.task_id:
        return Nothing()
    if followed.status in TERMINAL:
        ended_otherwise = seen.status in _ENDS and seen.status != followed.remote_status
        return Contradiction() if ended_otherwise else Nothing()
    if followed.status is not Status.RUNNING:
        return Nothing()
    if seen.status in _ENDS:
        return Finish(_ENDS[seen.status])
    if rank(seen.status) > rank(followed.remote_status):
        return Progress()
    return Nothing()


def is_known(remote_status: str) -> bool:
    """Whether the provider's document has this status."""
    return remote_status in _RANK or remote_status in _ENDS
