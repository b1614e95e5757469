"""The rules of flow control: which evidence changes which limit, and by how much."""

import random
from datetime import UTC, datetime
from decimal import Decimal
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.flow_control import rules
from models.flow_control.breakers import BreakerName, Breakers, OpenBreaker
from models.flow_control.rules import ConcurrencyLimit, RateLimit
from models.flow_control.state import FlowState
from models.submission import Timing

rates = st.floats(0.0, 10_000.0)
ages = st.floats(0.0, 100_000.0)
counts = st.integers(0, 10_000)
limits = st.builds(ConcurrencyLimit, st.integers(1, 5_000), st.integers(1, 5_000), ages)


# --- request rate ------------------------------------------------------------------------------


def test_first_throttling_cuts_the_measured_rate():
    assert rules.lower_rate(20.0, None) == RateLimit(20.0 * rules.RATE_CUT, 20.0, 0.0)


def test_cut_starts_from_the_rate_in_force_where_more_was_measured():
    current = RateLimit(7.0, 10.0, rules.RATE_RECOVERY / 2)
    assert current.now == pytest.approx(8.5)
    lowered = rules.lower_rate(100.0, current)
    assert lowered is not None
    assert lowered.refused == pytest.approx(8.5)


def test_cut_starts_from_the_measured_rate_where_less_was_sent():
    assert rules.lower_rate(4.0, RateLimit(7.0, 10.0, 20.0)) == RateLimit(
        pytest.approx(4.0 * rules.RATE_CUT), 4.0, 0.0
    )


@pytest.mark.parametrize(
    ("age", "is_cut"), [(0.0, False), (0.999, False), (rules.SAME_EPISODE, True)]
)
def test_refusals_of_one_episode_cut_once(age, is_cut):
    assert (rules.lower_rate(10.0, RateLimit(7.0, 10.0, age)) is not None) is is_cut


@given(rates, st.lists(st.tuples(rates, ages), max_size=30))
def test_rate_is_never_below_its_floor(first, later):
    rate = rules.lower_rate(first, None)
    assert rate is not None
    for measured, age in later:
        aged = RateLimit(rate.lowered_to, rate.refused, age)
        assert aged.now >= rules.MIN_RATE
        rate = rules.lower_rate(measured, aged) or rate
        assert rate.lowered_to >= rules.MIN_RATE
        assert rate.lowered_to <= rate.refused


@given(st.floats(rules.MIN_RATE, 1_000.0), st.lists(ages, min_size=2, max_size=20))
def test_rate_recovers_monotonically(refused, moments):
    rate = rules.lower_rate(refused, None)
    assert rate is not None
    found = [RateLimit(rate.lowered_to, rate.refused, age).now for age in sorted(moments)]
    assert all(earlier <= later * (1 + 1e-9) for earlier, later in pairwise(found))


@pytest.mark.parametrize(
    ("age", "expected"),
    [
        (0.0, 7.0),
        (rules.RATE_RECOVERY / 2, 8.5),
        (rules.RATE_RECOVERY, 10.0),
        (rules.RATE_RECOVERY + 10, 10.0 * rules.RATE_GROWTH**10),
    ],
)
def test_rate_returns_linearly_to_the_refused_rate_and_then_grows_by_a_factor(age, expected):
    assert RateLimit(7.0, 10.0, age).now == pytest.approx(expected)


def test_limit_that_rose_tenfold_is_reached_within_80_seconds():
    assert RateLimit(7.0, 10.0, 80.0).now >= 100.0


def test_steady_limit_is_refused_seldom_and_mostly_used():
    """A provider that takes 10 requests/s sees few refusals, and most of its rate is used."""
    rate, sent, refusals, budget = RateLimit(14.0, 20.0, 0.0), 0.0, 0, 10.0
    steps = 6_000
    for _ in range(steps):
        now = rate.now
        budget = min(10.0, budget + 1.0) - now * 0.1
        if budget < 0:
            budget = 0.0
            refusals += 1
            rate = rules.lower_rate(now, rate) or rate
        else:
            sent += now * 0.1
        rate = RateLimit(rate.lowered_to, rate.refused, rate.age + 0.1)
    assert sent >= 0.8 * steps * 0.1 * 10
    assert refusals <= 0.1 * sent


# --- concurrency -------------------------------------------------------------------------------


@given(limits, counts, st.booleans())
def test_concurrency_limit_is_never_below_one_and_a_refusal_never_raises_it(limit, present, fresh):
    lowered = limit.refuse(present, fresh=fresh)
    assert 1 <= lowered.value <= limit.value
    if lowered is not limit:
        assert lowered.refused == lowered.value + 1
        assert lowered.age == 0.0


def test_refusal_of_an_old_crowd_does_not_lower_the_limit():
    limit = ConcurrencyLimit(8, 9, rules.SAME_CROWD + 1)
    assert limit.refuse(3, fresh=False) is limit
    assert limit.refuse(30, fresh=True).value == 7


@pytest.mark.parametrize(
    ("value", "present", "fresh", "expected"),
    [
        (10, 7, True, 7),  # only 7 others were at work, and one more was refused
        (10, 30, True, 9),  # sent under this limit: it is too high
        (10, 30, False, 10),  # sent before the limit was lowered: nothing new
        (10, 4, False, 4),
        (1, 0, True, 1),
        (1, 1, True, 1),
    ],
)
def test_refusal_lowers_the_limit_to_what_was_present(value, present, fresh, expected):
    assert ConcurrencyLimit(value, value + 1, 5.0).refuse(present, fresh=fresh).value == expected


@given(limits, counts, st.floats(0.0, 1_000.0))
def test_limit_never_grows_while_a_slot_is_free(limit, in_use, per_second):
    grown = limit.grow(in_use=in_use, per_second=per_second)
    if in_use < limit.value:
        assert grown is None
    if grown is not None:
        assert grown.value > limit.value
        assert grown.refused == limit.refused, "what was refused is remembered"
        assert grown.age == 0.0


@pytest.mark.parametrize(
    ("age", "per_second", "grows"),
    [
        (rules.PROBE_AFTER - 0.1, 10.0, False),
        (rules.PROBE_AFTER, 10.0, True),
        (39.9, rules.PROBE_SHARE / 40, False),  # slow work: one refusal in 20 submissions at most
        (40.0, rules.PROBE_SHARE / 40, True),
        (rules.MAX_PROBE_AFTER - 0.1, 0.0, False),
        (rules.MAX_PROBE_AFTER, 0.0, True),
        (rules.MAX_PROBE_AFTER, 1e-9, True),
    ],
)
def test_refused_value_is_probed_by_one_and_seldom(age, per_second, grows):
    grown = ConcurrencyLimit(5, 6, age).grow(in_use=5, per_second=per_second)
    assert (grown == ConcurrencyLimit(6, 6, 0.0)) is grows
    assert (grown is None) is not grows


@pytest.mark.parametrize(
    ("value", "age", "expected"),
    [
        (6, rules.GROW_EVERY - 0.1, None),
        (6, rules.GROW_EVERY, 7),
        (40, rules.GROW_EVERY, 50),
        (1, rules.GROW_EVERY, 2),
    ],
)
def test_limit_grows_by_a_quarter_once_the_refused_value_was_exceeded(value, age, expected):
    grown = ConcurrencyLimit(value, min(value, 6), age).grow(in_use=value, per_second=1.0)
    assert (None if grown is None else grown.value) == expected


def test_limit_that_rose_from_5_to_50_is_used_to_80_percent_within_a_minute():
    limit, seconds = ConcurrencyLimit(5, 6, 0.0), 0
    while limit.value < 40:
        seconds += 1
        limit = ConcurrencyLimit(limit.value, limit.refused, limit.age + 1)
        limit = limit.grow(in_use=limit.value, per_second=limit.value / 2) or limit
        assert seconds <= 60, limit


# --- failures ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answered", "succeeded", "limited"),
    [
        (rules.MIN_SAMPLE - 1, 0, False),  # too few to judge
        (rules.MIN_SAMPLE, 0, True),
        (rules.MIN_SAMPLE, rules.MIN_SAMPLE // 2, False),  # half of them may fail
        (rules.MIN_SAMPLE, rules.MIN_SAMPLE // 2 - 1, True),
        (1_000, 900, False),
        (1_000, 1_000, False),
    ],
)
def test_failures_limit_submits_when_more_than_half_of_a_sample_fail(answered, succeeded, limited):
    allowed = rules.failure_allowance(
        answered=answered, succeeded=succeeded, span=5.0, lately=0, in_progress=0
    )
    assert (allowed is not None) is limited


@pytest.mark.parametrize(
    ("succeeded", "span", "lately", "in_progress", "expected"),
    [
        (40, 10.0, 0, 0, 8),  # twice the successes of a second
        (40, 10.0, 3, 2, 3),
        (40, 10.0, 8, 0, 0),
        (40, 10.0, 5, 9, 0),
        (40, 2.0, 0, 0, 40),  # they came within two seconds: the fleet is that fast
        (40, 0.0, 0, 0, 80),
        (0, 10.0, 0, 0, 1),  # one a second is always sent
        (0, 10.0, 1, 0, 0),
    ],
)
def test_failing_fleet_sends_twice_the_successes_per_second(
    succeeded, span, lately, in_progress, expected
):
    allowed = rules.failure_allowance(
        answered=100, succeeded=succeeded, span=span, lately=lately, in_progress=in_progress
    )
    assert allowed == expected


def test_fleet_of_which_a_random_half_fails_is_hardly_slowed():
    """Ten answers a second, in which the share of failures passes one half now and then."""
    rng = random.Random(3)
    answers: list[tuple[int, bool]] = []
    sent = 0
    for tick in range(600):  # of a tenth of a second
        window = [(at, ok) for at, ok in answers if at > tick - 100]
        allowed = rules.failure_allowance(
            answered=len(window),
            succeeded=sum(ok for _, ok in window),
            span=(tick - window[0][0]) / 10 if window else 0.0,
            lately=sum(at > tick - 10 for at, _ in window),
            in_progress=0,
        )
        if allowed is None or allowed > 0:
            sent += 1
            answers.append((tick, rng.random() < 0.5))
    assert sent > 0.7 * 600


def test_fleet_of_which_most_fails_slows_down():
    rng = random.Random(3)
    answers: list[tuple[int, bool]] = []
    for tick in range(1_200):
        window = [(at, ok) for at, ok in answers if at > tick - 100]
        allowed = rules.failure_allowance(
            answered=len(window),
            succeeded=sum(ok for _, ok in window),
            span=(tick - window[0][0]) / 10 if window else 0.0,
            lately=sum(at > tick - 10 for at, _ in window),
            in_progress=0,
        )
        if allowed is None or allowed > 0:
            answers.append((tick, rng.random() < 0.2))
    assert sum(at >= 600 for at, _ in answers) < 0.4 * 600


@given(counts, counts, counts, counts, st.floats(0, rules.WINDOW), counts)
def test_failure_allowance_is_monotone_and_never_negative(
    answered, succeeded, more, in_progress, span, lately
):
    """More successes never allow less; more in progress never allows more."""
    succeeded = min(succeeded, answered)
    better = min(answered, succeeded + more)

    def allowed(ok: int, progress: int) -> float:
        found = rules.failure_allowance(
            answered=answered, succeeded=ok, span=span, lately=lately, in_progress=progress
        )
        assert found is None or found >= 0
        return float("inf") if found is None else found

    assert allowed(better, in_progress) >= allowed(succeeded, in_progress)
    assert allowed(succeeded, in_progress + more) <= allowed(succeeded, in_progress)


@given(st.lists(st.booleans(), max_size=40))
def test_outage_needs_a_full_sample_of_failures_and_nothing_else(latest):
    failures = next((i for i, ok in enumerate(latest) if ok), len(latest))
    assert rules.is_outage(latest) is (failures >= rules.OUTAGE_SAMPLE)


@pytest.mark.parametrize(
    ("latest", "expected"),
    [
        ([], False),
        ([False] * (rules.OUTAGE_SAMPLE - 1), False),
        ([False] * rules.OUTAGE_SAMPLE, True),
        ([True] + [False] * rules.OUTAGE_SAMPLE, False),  # the newest succeeded
        ([False] * (rules.OUTAGE_SAMPLE - 1) + [True], False),
        ([False] * rules.OUTAGE_SAMPLE + [True], True),  # a success before the run of failures
        ([None] * 20 + [False] * rules.OUTAGE_SAMPLE, True),  # the newest have no answer yet
        ([False] * rules.OUTAGE_SAMPLE + [None] * 32, True),  # slow ones were sent before
        ([False, None] * rules.OUTAGE_SAMPLE, False),  # others may yet succeed
    ],
)
def test_outage_boundaries(latest, expected):
    assert rules.is_outage(latest) is expected


@given(ages, ages)
def test_probe_interval_stays_within_its_bounds_and_grows_with_the_outage(age, more):
    interval = rules.probe_interval(age)
    assert rules.MIN_PROBE <= interval <= rules.MAX_PROBE
    assert rules.probe_interval(age + more) >= interval


def test_outage_of_30_seconds_costs_at_most_40_submits():
    age, probes = rules.MIN_PROBE, 0
    while age < 30:
        probes += 1
        age += rules.probe_interval(age)
    assert rules.OUTAGE_SAMPLE + probes <= 40


@pytest.mark.parametrize(
    ("succeeded", "in_progress", "expected"),
    [
        (0, 0, rules.RAMP_START),
        (0, rules.RAMP_START, 0),
        (0, rules.RAMP_START + 5, 0),
        (rules.RAMP_START, rules.RAMP_START, rules.RAMP_START),  # one round doubles it
        (rules.RAMP_DONE - 1, 0, rules.RAMP_START + rules.RAMP_DONE - 1),
        (rules.RAMP_DONE, 0, None),
        (rules.RAMP_DONE + 1, 1_000, None),
    ],
)
def test_ramp_allows_one_more_in_progress_for_each_success(succeeded, in_progress, expected):
    assert rules.ramp_allowance(succeeded=succeeded, in_progress=in_progress) == expected


def test_ramp_is_over_after_few_rounds_of_answers():
    succeeded, rounds = 0, 0
    while (allowed := rules.ramp_allowance(succeeded=succeeded, in_progress=0)) is not None:
        succeeded += allowed
        rounds += 1
    assert rounds <= 5


# --- one generation ----------------------------------------------------------------------------


@given(st.integers(-5, 10_000), st.integers())
def test_retry_delay_stays_within_its_bounds(refusals, seed):
    delay = rules.retry_delay(refusals, random.Random(seed))
    assert 0.05 <= delay <= rules.MAX_RETRY
    if refusals <= 1:
        assert delay <= rules.RETRY_BASE


def test_retry_delay_has_full_jitter_and_grows_to_its_bound():
    rng = random.Random(1)
    most = [max(rules.retry_delay(n, rng) for _ in range(300)) for n in (1, 4, 8, 40)]
    least = [min(rules.retry_delay(n, rng) for _ in range(300)) for n in (1, 4, 8, 40)]
    assert all(earlier < later for earlier, later in pairwise(most))
    assert most[-1] > 0.9 * rules.MAX_RETRY
    assert all(low < 0.1 * high + 0.05 for low, high in zip(least, most, strict=True))


def test_ten_refusals_in_a_row_cost_seconds_rather_than_minutes():
    rng = random.Random(1)
    totals = [sum(rules.retry_delay(n, rng) for n in range(1, 11)) for _ in range(200)]
    assert sum(totals) / len(totals) < 60


# --- the state ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "state",
    [
        FlowState(rate=RateLimit(1.0, 2.0, 3.0)),
        FlowState(resume_in=0.1),
        FlowState(outage_age=0.0),
        FlowState(ramp_age=0.0),
        FlowState(failed_ago=rules.WINDOW),
    ],
)
def test_any_evidence_ends_the_calm(state):
    assert not state.calm


@pytest.mark.parametrize(
    "state",
    [
        FlowState(),
        FlowState(resume_in=-5.0),
        FlowState(failed_ago=rules.WINDOW + 0.1),
        FlowState(concurrency=ConcurrencyLimit(3, 4, 1.0)),  # bounds slots, not how fast
    ],
)
def test_old_evidence_leaves_the_account_calm(state):
    assert state.calm


def test_state_that_ages_recovers_its_rate_and_ends_its_pause():
    state = FlowState(rate=RateLimit(7.0, 10.0, 0.0), resume_in=5.0).aged(rules.RATE_RECOVERY)
    assert state.rate is not None
    assert state.rate.now == pytest.approx(10.0)
    assert state.resume_in == 5.0 - rules.RATE_RECOVERY


# --- breakers ----------------------------------------------------------------------------------

credits_ = st.decimals(0, 10_000, places=4)


def opened(name: BreakerName, refused: Decimal | None = None) -> OpenBreaker:
    return OpenBreaker(name, "why", datetime(2026, 1, 1, tzinfo=UTC), refused)


some_open = st.lists(
    st.builds(opened, st.sampled_from(BreakerName), st.none() | credits_),
    max_size=2,
    unique_by=lambda breaker: breaker.name,
).map(tuple)


@given(some_open, st.none() | credits_ | st.decimals(-100, 0, places=4), credits_)
def test_ceiling_admits_exactly_what_no_breaker_blocks(breakers, remaining, cost):
    found = Breakers(breakers, remaining)
    admitted = found.ceiling is None or cost <= found.ceiling
    assert admitted == (found.obstacle(cost) is None)


def test_everything_passes_while_all_breakers_are_closed():
    assert Breakers().ceiling is None
    assert Breakers().obstacle(Decimal(10**9)) is None


def test_rejected_key_blocks_every_generation():
    found = Breakers((opened(BreakerName.API_KEY, Decimal(5)),), Decimal(100))
    for cost in (Decimal(0), Decimal(4)):
        obstacle = found.obstacle(cost)
        assert obstacle is not None
        assert obstacle.name is BreakerName.API_KEY


@pytest.mark.parametrize(
    ("remaining", "refused", "cost", "passes"),
    [
        ("10", "20", "9", True),
        ("10", "20", "10", True),
        ("10", "20", "10.0001", False),
        ("30", "20", "20", False),  # as expensive as what was refused
        ("30", "20", "19.9999", True),
        ("0", "20", "0.0001", False),
    ],
)
def test_refusal_of_an_expensive_generation_lets_cheaper_ones_pass(
    remaining, refused, cost, passes
):
    found = Breakers((opened(BreakerName.CREDIT, Decimal(refused)),), Decimal(remaining))
    assert (found.obstacle(Decimal(cost)) is None) == passes


@pytest.mark.parametrize(("remaining", "refused"), [(None, Decimal(5)), (Decimal(5), None)])
def test_without_a_known_balance_or_refused_estimate_nothing_passes(remaining, refused):
    found = Breakers((opened(BreakerName.CREDIT, refused),), remaining)
    assert found.obstacle(Decimal(0)) is not None


def test_cheap_generation_is_still_blocked_by_another_breaker():
    both = (opened(BreakerName.CREDIT, Decimal(50)), opened(BreakerName.API_KEY))
    obstacle = Breakers(both, Decimal(40)).obstacle(Decimal(1))
    assert obstacle is not None
    assert obstacle.name is BreakerName.API_KEY


def test_settle_time_covers_everything_that_can_delay_a_task():
    assert Timing(10, 60, 15, 5).settle == 90
