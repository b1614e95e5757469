"""Waiting: how long, how far apart, and never all at once."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.lifecycle import Status
from models.schedule import Stage, backoff, poll_delay, stage_of

seeds = st.integers(0, 2**32).map(random.Random)


@given(st.integers(-5, 10_000), st.floats(0.01, 60), st.floats(0.01, 3600), seeds)
def test_backoff_is_capped_and_never_nothing(failures, base, cap, rng):
    wait = backoff(failures, base=base, cap=cap, rng=rng)
    full = min(cap, base * 2.0 ** min(max(failures, 0), 32))
    assert full / 2 <= wait <= full <= cap


def test_backoff_doubles_up_to_its_cap():
    rng = random.Random(1)
    waits = [sum(backoff(n, base=1, cap=60, rng=rng) for _ in range(500)) / 500 for n in range(10)]
    for n, wait in enumerate(waits):
        assert wait == pytest.approx(min(60, 2**n) * 0.75, rel=0.05)


@given(
    st.integers(-5, 10**6),
    st.floats(0.1, 60).flatmap(lambda low: st.tuples(st.just(low), st.floats(low, 600))),
    seeds,
)
def test_a_poll_is_never_too_early_nor_too_late(polls, bounds, rng):
    shortest, longest = bounds
    delay = poll_delay(polls, shortest=shortest, longest=longest, rng=rng)
    assert shortest <= delay <= longest * 1.1


@settings(max_examples=30)
@given(st.integers(0, 200))
def test_polls_get_rarer(polls):
    fixed = [
        poll_delay(n, shortest=5, longest=30, rng=random.Random(1)) for n in (polls, polls + 1)
    ]
    assert fixed[0] <= fixed[1]


@pytest.mark.parametrize(
    "wait",
    [
        lambda: backoff(3, base=1, cap=60),
        lambda: poll_delay(4, shortest=5, longest=30),
    ],
    ids=["backoff", "poll"],
)
def test_a_crowd_spreads_out(wait):
    """A thousand that failed together don't come back together: no twentieth of the span has more
    than twice its share."""
    waits = sorted(wait() for _ in range(1000))
    low, high = waits[0], waits[-1]
    bins = [0] * 20
    for one in waits:
        bins[min(19, int((one - low) / (high - low) * 20))] += 1
    assert max(bins) < 100
    assert min(bins) > 10


@pytest.mark.parametrize(
    ("status", "needs_upload", "stage"),
    [
        (Status.UPLOADING, True, Stage.UPLOAD),
        (Status.UPLOADING, False, Stage.SUBMIT),
        (Status.SUBMITTING, True, Stage.RESOLVE),
        (Status.SUBMITTING, False, Stage.RESOLVE),
        (Status.UNCERTAIN, False, Stage.RESOLVE),
        (Status.RUNNING, False, Stage.POLL),
        (Status.RUNNING, True, Stage.POLL),
    ],
)
def test_each_live_status_has_its_stage(status, needs_upload, stage):
    assert stage_of(status, needs_upload=needs_upload) is stage
