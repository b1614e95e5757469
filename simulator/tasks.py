"""One task of the provider: where it stands is computed from the time, never set by a timer."""

import random
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from simulator.directives import Directives
from simulator.validation import Submission

TERMINAL = frozenset({"completed", "failed", "cancelled", "expired"})

_RENDER_SECONDS = {"480p": 4.5, "720p": 9.0, "1080p": 15.0}


@dataclass(frozen=True, slots=True)
class Phases:
    """How long a task stays in each status, in simulated seconds."""

    pending: float
    queued: float
    processing: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a task ends, if nothing stops it before."""

    status: str = "completed"
    error_code: str | None = None
    error_message: str | None = None


def draw_phases(work: Submission, directives: Directives, rng: random.Random) -> Phases:
    """Plausible durations: 1–5 minutes in all, by length and resolution of the video."""
    factor = 0.6 if work.model.endswith("-fast") else 1.0
    render = 40 + work.duration * _RENDER_SECONDS[work.resolution] * factor
    pending, queued = rng.uniform(1, 3), rng.uniform(3, 12)
    processing = render * rng.uniform(0.9, 1.05)
    wish = directives.numbers
    if "seconds" in wish:
        share = wish["seconds"] / (pending + queued + processing)
        pending, queued, processing = pending * share, queued * share, processing * share
    return Phases(
        wish.get("pending", pending),
        wish.get("queued", queued),
        wish.get("processing", processing),
    )


@dataclass(slots=True, eq=False)
class Task:
    """A task and its time line. Times ending in `_sim` are simulated, `_wall` real."""

    task_id: str
    api_key: str
    number: int
    work: Submission
    body: dict[str, Any]
    seed_used: int
    cost: Decimal
    phases: Phases
    outcome: Outcome
    created_sim: float
    created_wall: float
    # When it got one of the account's slots; None while it waits in `queued` for one.
    slot_sim: float | None
    origin: str = "submit"
    directives: Directives = field(default_factory=Directives)
    headers: dict[str, str] = field(default_factory=dict)
    # Visibility counts from here, whatever created_at claims.
    added_wall: float = 0.0
    # Set once, when it ends.
    final: str | None = None
    ended_sim: float = 0.0
    charged: Decimal = Decimal(0)
    touched_wall: float = 0.0
    # An injected task's own word for updated_at.
    updated_wall: float | None = None
    cancel_asked_sim: float | None = None
    reads: int = 0
    callbacks: list[str] = field(default_factory=list)

    @property
    def position(self) -> tuple[float, int]:
        """Order of creation."""
        return self.created_wall, self.number

    def _starts(self) -> tuple[float, float]:
        """When queued and processing begin."""
        queued = self.created_sim + self.phases.pending
        if self.slot_sim is None:
            return queued, float("inf")
        return queued, max(queued, self.slot_sim) + self.phases.queued

    @property
    def due_sim(self) -> float:
        """When it ends by itself; infinite while it waits for a slot."""
        return self._starts()[1] + self.phases.processing

    def status_at(self, now: float) -> str:
        """The document's status at a simulated moment."""
        if self.final is not None:
            return self.final
        queued, processing = self._starts()
        if now < queued:
            return "pending"
        # Its end is booked by the store, in order; until then it is still at work.
        return "queued" if now < processing else "processing"

    def updated_sim(self, now: float) -> float:
        """When it last changed its status."""
        if self.final is not None:
            return self.ended_sim
        queued, processing = self._starts()
        if now < queued:
            return self.created_sim
        return queued if now < processing else processing
