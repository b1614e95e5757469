"""Each rule of the protocol, and how it is taken out: the search must then find what it is for.

A rule that is a decision is taken out of the real function; one that is an order of steps, out of
the model's. `breaks` is the shortest thing that goes wrong.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import pytest

from models import decisions, lifecycle, resolution, submission
from models.lifecycle import Event, Fence, Status
from models.resolution import Attempt, Case, Verdict, Window
from tests.model import promise
from tests.model.scenario import Steps

ALL = Steps()


@dataclass(frozen=True)
class Rule:
    """One rule: where protocol.md has it, and the scenario that shows what it is for."""

    name: str
    section: str
    scenario: str
    breaks: str
    take_out: Callable[[pytest.MonkeyPatch], None] = lambda _: None
    steps: Steps = ALL


def _instead(module: Any, name: str, other: Any) -> Callable[[pytest.MonkeyPatch], None]:
    return lambda patch: patch.setattr(module, name, other)


def _transition(event: Event, **changes: Any) -> Callable[[pytest.MonkeyPatch], None]:
    table = dict(lifecycle.TRANSITIONS)
    table[event] = replace(table[event], **changes)
    return _instead(lifecycle, "TRANSITIONS", MappingProxyType(table))


def _judging(**assumed: bool) -> Callable[[pytest.MonkeyPatch], None]:
    real = resolution.judge

    def judge(case: Case, *rest: Any) -> Verdict:
        return real(replace(case, **assumed), *rest)

    return _instead(resolution, "judge", judge)


def _settling(*parts: str) -> Callable[[pytest.MonkeyPatch], None]:
    """The time until an outcome may be resolved, without one of its parts."""
    return _instead(
        submission.Timing, "settle", property(lambda t: sum(getattr(t, p) for p in parts))
    )


def _only_what_shows_the_seed(attempt: Attempt, task: Any, window: Window) -> bool:
    return bool(task.seed == attempt.seed) and window.holds(task.created_at)


def _whatever_the_row_is(
    facts: decisions.SendFacts, *, intended: int, real: Any = decisions.obstacle_to_sending
) -> str | None:
    taken_for = replace(facts, status=Status.SUBMITTING, attempt=intended)
    obstacle: str | None = real(taken_for, intended=intended)
    return obstacle


def _about_any_attempt(
    ground: decisions.Ground, *, named: int, real: Any = decisions.refuse_adoption
) -> decisions.Refusal | None:
    del named
    refusal: decisions.Refusal | None = real(ground, named=ground.attempt)
    return refusal


def _is_open_until_absent(outcome: str | None) -> bool:
    return outcome in (None, "unknown", "given_up")


DRAWN = "drawn seeds"
OPERATOR = "drawn seeds, an operator"
FIXED = "a fixed seed, the key ours"
EQUAL = "equal fixed seeds, the key ours"
LATE_FIXED = "created too late, a fixed seed"

RULES = (
    Rule(
        "the POST follows a confirmed COMMIT of its intent",
        "Intent",
        DRAWN,
        promise.TWICE,
        steps=Steps(intent_before_post=False),
    ),
    Rule(
        "a drawn seed is fresh for each attempt",
        "Attempts",
        "drawn seeds, two generations",
        promise.SWAPPED,
        steps=Steps(fresh_seeds=False),
    ),
    Rule(
        "attempts found absent stay open",
        "Attempts",
        LATE_FIXED,
        promise.KNOWINGLY,
        _instead(decisions, "is_open", _is_open_until_absent),
    ),
    Rule(
        "no intent while an unknown task matches an open attempt",
        "Intent",
        LATE_FIXED,
        promise.KNOWINGLY,
        _instead(decisions, "may_be_own", lambda *_: False),
    ),
    Rule(
        "equal rows are never in doubt together",
        "The fingerprint lock",
        EQUAL,
        promise.TOGETHER,
        steps=Steps(fingerprint_lock=False),
    ),
    Rule(
        "an intent older than B is not sent",
        "Just before the POST",
        DRAWN,
        promise.TWICE,
        _instead(decisions, "too_old", lambda *_, **__: False),
    ),
    Rule(
        "the check before the POST sees that the row was taken over",
        "Just before the POST",
        OPERATOR,
        promise.SENT_ANYWAY,
        _instead(decisions, "obstacle_to_sending", _whatever_the_row_is),
    ),
    Rule(
        "no answer is doubt, never 'not sent'",
        "Answers",
        DRAWN,
        promise.TWICE,
        steps=Steps(silence_is_doubt=False),
    ),
    Rule(
        "an answer is fenced by its attempt, not by the lease",
        "Answers",
        DRAWN,
        promise.ALONE,
        _transition(Event.SUBMIT, fence=Fence.LEASE),
    ),
    Rule(
        "terminal stays",
        "Observations",
        OPERATOR,
        promise.REVIVED,
        _transition(
            Event.SUBMIT,
            sources=lifecycle.TRANSITIONS[Event.SUBMIT].sources | {Status.FAILED},
        ),
    ),
    Rule(
        "nothing is resolved before it has settled",
        "Resolving",
        DRAWN,
        promise.TWICE,
        _instead(decisions, "settled", lambda _: True),
    ),
    *(
        Rule(
            f"the time to settle counts {part}",
            "Times",
            DRAWN,
            promise.TWICE,
            _settling(*(p for p in ("send_budget", "late_creation", "list_lag") if p != part)),
        )
        for part in ("late_creation", "list_lag")
    ),
    Rule(
        "two readings, not one",
        "Resolving",
        DRAWN,
        promise.TWICE,
        steps=Steps(two_readings=False),
    ),
    Rule(
        "two readings that agree",
        "Resolving",
        DRAWN,
        promise.TWICE,
        _instead(resolution, "agree", lambda first, second: second),
    ),
    Rule(
        "only a complete reading proves absence",
        "A complete reading",
        DRAWN,
        promise.TWICE,
        _instead(resolution, "heeded", lambda verdict, *, complete: verdict),
    ),
    Rule(
        "narrow to adopt: the key is ours alone",
        "Resolving",
        "a fixed seed, a foreign task",
        promise.SWAPPED,
        _judging(key_exclusive=True),
    ),
    Rule(
        "narrow to adopt: no other generation's open attempt looks the same",
        "Resolving",
        EQUAL,
        promise.SWAPPED,
        _judging(rival=False),
    ),
    Rule(
        "wide to send again: a task that shows no seed could be ours",
        "Resolving",
        "seeds not shown",
        promise.LOST,
        _instead(resolution, "could_be", _only_what_shows_the_seed),
    ),
    Rule(
        "an early scan decides presence alone",
        "Resolving",
        DRAWN,
        promise.TWICE,
        _instead(resolution, "early", lambda verdict: verdict),
    ),
    Rule(
        "an early scan only adopts what no generation follows",
        "Resolving",
        EQUAL,
        promise.SHARED,
        _instead(resolution, "still", lambda verdict, *, followed: verdict),
        # The unique index on `remote_task_id` would refuse it as well.
        steps=Steps(one_follower=False),
    ),
    Rule(
        "absence is fenced by the attempt",
        "Resolving",
        OPERATOR,
        promise.TWICE,
        _transition(Event.ABSENT, fence=Fence.NONE),
    ),
    Rule(
        "in doubt, a cancel waits for the readings",
        "Cancel",
        "drawn seeds, a cancel",
        promise.LOST,
        steps=Steps(cancel_waits=False),
    ),
    Rule(
        "every unknown task is held against all attempts",
        "Watching",
        "created too late",
        promise.SILENT,
        steps=Steps(watching=False),
    ),
    Rule(
        "an operator's decision names its attempt",
        "Operator",
        OPERATOR,
        promise.TWICE,
        _instead(decisions, "refuse_adoption", _about_any_attempt),
    ),
    Rule(
        "an operator can't send again before it has settled",
        "Operator",
        OPERATOR,
        promise.TWICE,
        _instead(decisions, "refuse_resubmission", decisions.refuse_adoption),
    ),
)
