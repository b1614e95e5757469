"""The model's bridge to the real decision functions: a state's facts in their words, and back.

Nothing is decided here. Each call goes to `models.decisions`, `models.resolution` or the table
`models.lifecycle.TRANSITIONS`, looked up at the time of the call, so that a test can take a rule
out. Answers are kept, as a search asks the same again and again.
"""

from datetime import UTC, datetime, timedelta
from functools import cache
from uuid import UUID

from models import decisions, lifecycle, resolution
from models.decisions import Candidate, Ground, IntentFacts, SendFacts, Sent, Stray
from models.lifecycle import Event, Fence, Followed, Observation
from models.resolution import Absent, Adopt, Attempt, Case, Skew, Undecided, Verdict
from tests.model import state as m
from tests.model.state import STATUSES

REQUEST = {
    "model": "seedance-2.0",
    "resolution": "720p",
    "ratio": "16:9",
    "duration": 5,
    "generate_audio": True,
}
TICK = timedelta(seconds=10)
"""Longer than what stamps may be cut by."""
NOW = datetime(2026, 1, 1, tzinfo=UTC)
IN_STEP = Skew(timedelta(0), timedelta(0))

ABSENT, UNDECIDED = ("absent",), ("undecided",)


def generation_id(gen: int) -> UUID:
    return UUID(int=gen + 1)


def _task_id(index: int) -> str:
    return f"T{index}"


class Deciders:
    """The real functions, on the model's facts, for one search."""

    def __init__(self, *, seeds_shown: bool, key_exclusive: bool) -> None:
        self.seeds_shown = seeds_shown
        self.key_exclusive = key_exclusive
        self.is_open = {
            outcome: decisions.is_open(outcome)
            for outcome in (
                None,
                *("submitted", "refused", "not_sent", "unknown", "adopted", "absent", "given_up"),
            )
        }
        for name in (
            "may",
            "target",
            "obstacle_to_intent",
            "may_be_own",
            "obstacle_to_sending",
            "closed_as_not_sent",
            "after_absence",
            "taken_back",
            "judged",
            "together",
            "still",
            "early",
            "sighting",
            "claimed",
            "outranked",
            "ends",
            "refusal",
        ):
            setattr(self, name, cache(getattr(self, name)))

    # --- transitions ----------------------------------------------------------------------------

    def may(self, event: Event, status: int, current: int, named: int, has_lease: bool) -> bool:
        """Whether the guarded UPDATE of this transition finds its row."""
        transition = lifecycle.TRANSITIONS[event]
        if STATUSES[status] not in transition.sources:
            return False
        match transition.fence:
            case Fence.ATTEMPT:
                return current == named
            case Fence.LEASE:
                return has_lease
            case Fence.NONE:
                return True

    def target(self, event: Event) -> int:
        return STATUSES.index(lifecycle.TRANSITIONS[event].target)

    # --- intent and POST ------------------------------------------------------------------------

    def obstacle_to_intent(
        self, wish: bool, own_task: bool, holder: int
    ) -> decisions.Obstacle | None:
        return decisions.obstacle_to_intent(
            IntentFacts(
                cancel_wished=wish,
                own_task="T" if own_task else None,
                holder=None if holder == m.NOBODY else generation_id(holder),
            )
        )

    def may_be_own(self, task: m.Task, attempt: m.Attempt) -> bool:
        return decisions.may_be_own(
            Stray(
                "T",
                task.kind,
                None if task.flagged == m.NOBODY else generation_id(task.flagged),
                self._shown(task),
                NOW + task.created * TICK,
            ),
            self._sent(attempt),
        )

    def obstacle_to_sending(
        self, status: int, current: int, wish: bool, named: int, age: int, budget: int
    ) -> bool:
        facts = SendFacts(STATUSES[status], current, wish)
        return decisions.obstacle_to_sending(
            facts, intended=named
        ) is not None or decisions.too_old(age, send_budget=budget)

    def closed_as_not_sent(self, status: int, current: int, unsent: int) -> bool:
        return decisions.closed_as_not_sent(STATUSES[status], attempt=current, unsent=unsent)

    def taken_back(self, event: Event, wish: bool) -> Event:
        return decisions.taken_back(event, cancel_wished=wish)

    # --- resolving ------------------------------------------------------------------------------

    def settled(self, attempts: tuple[m.Attempt, ...]) -> bool:
        return decisions.settled([attempt.settle for attempt in attempts])

    def judged(
        self,
        attempts: tuple[m.Attempt, ...],
        rival: bool,
        unknown: tuple[tuple[int, m.Task], ...],
        complete: bool,
    ) -> tuple:
        """One reading's verdict, in the model's words."""
        case = Case(
            generation_id(attempts[0].gen) if attempts else generation_id(0),
            REQUEST,
            tuple(
                Attempt(a.number, a.seed, a.drawn, NOW + a.started * TICK, NOW + a.settle * TICK)
                for a in attempts
            ),
            key_exclusive=self.key_exclusive,
            rival=rival,
        )
        verdict = resolution.judge(
            case, [self._observed(task, index) for index, task in unknown], IN_STEP
        )
        return _told(resolution.heeded(verdict, complete=complete))

    def proven(self, verdict: tuple) -> bool:
        return resolution.proven(_verdict(verdict))

    def together(self, first: tuple, second: tuple) -> tuple:
        return _told(resolution.agree(_verdict(first), _verdict(second)))

    def still(self, verdict: tuple, followed: frozenset[int]) -> tuple:
        return _told(resolution.still(_verdict(verdict), followed={_task_id(i) for i in followed}))

    def early(self, verdict: tuple) -> tuple | None:
        """What an early scan may decide; None: nothing."""
        decided = resolution.early(_verdict(verdict))
        return None if decided is None else _told(decided)

    def after_absence(self, wish: bool, before: int, most: int) -> Event:
        return decisions.after_absence(cancel_wished=wish, absent_before=before, max_attempts=most)

    # --- watching -------------------------------------------------------------------------------

    def sighting(
        self, task: m.Task, attempts: tuple[tuple[m.Attempt, bool], ...]
    ) -> tuple[decisions.Sighting, int, int]:
        """What the task is taken for, and the generation and attempt that it matches."""
        seen = self._observed(task, 0)
        candidates = [
            Candidate(self._sent(attempt), REQUEST, "other" if follows else None)
            for attempt, follows in attempts
        ]
        match = decisions.whose(seen, candidates)
        if match is None:
            return decisions.sighting(seen, match), m.NOBODY, 0
        return decisions.sighting(seen, match), match.sent.generation_id.int - 1, match.sent.number

    def outranked(self, kind: str, recorded: str) -> bool:
        return decisions.outranked(kind, recorded=recorded or None)

    def claimed(self, status: int, follows: int, task: int) -> decisions.Claimed:
        return decisions.claimed(
            STATUSES[status],
            follows=None if follows == m.NOBODY else _task_id(follows),
            task_id=_task_id(task),
        )

    def ends(self, shown: str) -> int:
        """The status of a running generation after its task shows this end."""
        seen = Observation("T", shown)
        decision = lifecycle.observe(Followed(lifecycle.Status.RUNNING, "T", "processing"), seen)
        assert isinstance(decision, lifecycle.Finish)
        return self.target(decision.event)

    # --- an operator ----------------------------------------------------------------------------

    def refusal(
        self, kind: str, status: int, current: int, settled: bool, named: int
    ) -> decisions.Refusal | None:
        ground = Ground(STATUSES[status], current, settled)
        match kind:
            case "adopt":
                return decisions.refuse_adoption(ground, named=named)
            case "resubmit":
                return decisions.refuse_resubmission(ground, named=named)
            case _:
                return decisions.refuse_ending(ground, named=named)

    # --- words ----------------------------------------------------------------------------------

    def _shown(self, task: m.Task) -> int | None:
        return task.seed if self.seeds_shown else None

    def _observed(self, task: m.Task, index: int) -> Observation:
        created = NOW + task.created * TICK
        shown = "processing" if not task.ended else task.ended
        return Observation(
            _task_id(index), shown, seed=self._shown(task), created_at=created, **REQUEST
        )

    def _sent(self, a: m.Attempt) -> Sent:
        return Sent(
            generation_id(a.gen), a.number, a.seed, a.drawn, a.outcome, NOW + a.started * TICK
        )


def _told(verdict: Verdict) -> tuple:
    match verdict:
        case Adopt(task=task, attempt=number, by_mark=by_mark, others=others):
            more = tuple((int(t.task_id[1:]), n) for t, n in others)
            return ("adopt", int(task.task_id[1:]), number, by_mark, more)
        case Absent():
            return ABSENT
        case Undecided():
            return UNDECIDED


def _verdict(told: tuple) -> Verdict:
    match told:
        case ("adopt", index, number, by_mark, more):
            others = tuple((_seen(i), n) for i, n in more)
            return Adopt(_seen(index), number, by_mark, others)
        case ("absent",):
            return Absent()
        case _:
            return Undecided("as it was")


def _seen(index: int) -> Observation:
    return Observation(_task_id(index), "processing")
