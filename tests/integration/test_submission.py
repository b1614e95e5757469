"""The intent to submit: each guard of protocol.md, and what a held generation is left as."""

import uuid
from collections.abc import Iterator
from datetime import timedelta
from decimal import Decimal

import pytest
from sqlalchemy import Connection, Engine, func, select, text
from sqlalchemy.exc import IntegrityError

from models import submission, transitions
from models.base import table_of
from models.flow_control import breakers, evidence
from models.flow_control.breakers import BreakerName
from models.flow_control.table import FlowControl
from models.lifecycle import Status
from models.marks import SEED_BOUND, fingerprint
from models.operating import pauses
from models.operating.actions import By
from models.submission import Held, Intent, Timing, Wanted
from models.tables import StrayTask, SubmitAttempt
from models.wait_reasons import Wait, WaitReason, retry
from tests.integration import rows
from tests.integration.rows import REQUEST, attempts, events, make, read

S = Status
TIMING = Timing(10, 60, 15, 5)
FIXED = {**REQUEST, "seed": 42}
MARK = fingerprint(FIXED, 42)


@pytest.fixture
def conn(engine: Engine) -> Iterator[Connection]:
    """A connection whose changes are undone at the end."""
    with engine.connect() as conn:
        yield conn


def begin(conn: Connection, generation_id: uuid.UUID, lease: int = 7) -> Intent | Held:
    return submission.begin(conn, Wanted(generation_id, lease), TIMING)


def stray(conn: Connection, kind: str, **values) -> str:
    row = {"task_id": f"stray-{uuid.uuid4().hex}", "kind": kind, "status": "queued", **values}
    conn.execute(table_of(StrayTask).insert().values(row))
    return row["task_id"]


def held(conn: Connection, generation_id: uuid.UUID, because: str) -> None:
    """The intent is refused; no attempt was written and the lease is not kept for nothing."""
    before = attempts(conn, generation_id)
    result = begin(conn, generation_id)
    assert isinstance(result, Held)
    assert because in result.why
    assert attempts(conn, generation_id) == before


# --- the intent --------------------------------------------------------------------------------


def test_the_intent_is_an_attempt_with_a_fresh_seed_and_a_time_to_settle(conn):
    generation_id = make(conn, S.UPLOADING, estimated_cost=9)
    intent = begin(conn, generation_id)
    assert isinstance(intent, Intent)
    row = read(conn, generation_id)
    [attempt] = conn.execute(select(table_of(SubmitAttempt))).all()
    assert (row.status, row.attempt, row.lease) == (S.SUBMITTING, 1, 8)
    assert (intent.lease, intent.attempt, intent.estimate) == (8, 1, Decimal(9))
    assert row.due_at == attempt.settle_at == rows.db_now(conn) + timedelta(seconds=90)
    assert (attempt.seed, attempt.seed_drawn, attempt.outcome) == (intent.seed, True, None)
    assert 0 <= attempt.seed < SEED_BOUND
    assert row.fingerprint == attempt.fingerprint == fingerprint(REQUEST, intent.seed)
    assert events(conn, generation_id) == [("intend", "uploading", "submitting")]


def test_each_attempt_draws_its_own_seed(conn):
    generation_id = make(conn, S.UPLOADING, attempt=2)
    first = begin(conn, generation_id)
    assert isinstance(first, Intent)
    assert first.attempt == 3
    seeds = conn.execute(select(table_of(SubmitAttempt).c.seed)).scalars().all()
    assert len(set(seeds)) == 3


@pytest.mark.parametrize("seed", [None, -1])
def test_minus_one_is_as_good_as_no_seed(conn, seed):
    intent = begin(conn, make(conn, S.UPLOADING, request={**REQUEST, "seed": seed}))
    assert isinstance(intent, Intent)
    assert intent.seed >= 0
    assert conn.execute(select(table_of(SubmitAttempt).c.seed_drawn)).scalar_one()


@pytest.mark.parametrize("seed", [0, 42])
def test_a_producers_seed_is_sent_as_it_is_and_is_no_mark(conn, seed):
    intent = begin(conn, make(conn, S.UPLOADING, request={**REQUEST, "seed": seed}))
    assert isinstance(intent, Intent)
    assert intent.seed == seed
    assert not conn.execute(select(table_of(SubmitAttempt).c.seed_drawn)).scalar_one()


def test_a_seed_that_anything_had_before_is_not_drawn(conn, monkeypatch):
    other = make(conn, S.COMPLETED)
    taken = conn.execute(
        select(table_of(SubmitAttempt).c.seed).where(
            table_of(SubmitAttempt).c.generation_id == other
        )
    ).scalar_one()
    stray(conn, "foreign", seed=5)
    drawn = iter([taken, 5, 6])
    monkeypatch.setattr(submission, "draw_seed", lambda: next(drawn))
    intent = begin(conn, make(conn, S.UPLOADING))
    assert isinstance(intent, Intent)
    assert intent.seed == 6


def test_two_that_draw_the_same_seed_at_once_are_told_apart_by_the_table(conn):
    rows.attempt(conn, make(conn, S.ACCEPTED), 1, seed=5)
    with pytest.raises(IntegrityError, match="uq_submit_attempts_seed"):
        rows.attempt(conn, make(conn, S.ACCEPTED), 1, seed=5)


# --- the guards --------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [s for s in S if s is not S.UPLOADING])
def test_only_an_uploading_row_is_submitted(conn, status):
    generation_id = make(conn, status)
    before = rows.image(conn, generation_id)
    assert begin(conn, generation_id) == Held("lease lost")
    assert rows.image(conn, generation_id) == before


@pytest.mark.parametrize("lease", [6, 8])
def test_a_lost_lease_makes_no_intent(conn, lease):
    generation_id = make(conn, S.UPLOADING)
    before = rows.image(conn, generation_id)
    assert begin(conn, generation_id, lease) == Held("lease lost")
    assert rows.image(conn, generation_id) == before


def test_a_message_that_comes_twice_makes_one_intent(conn):
    generation_id = make(conn, S.UPLOADING)
    assert isinstance(begin(conn, generation_id), Intent)
    assert begin(conn, generation_id) == Held("lease lost")
    assert len(attempts(conn, generation_id)) == 1


def test_past_its_deadline_it_expires(conn):
    generation_id = make(conn, S.UPLOADING, deadline_at=func.now())
    held(conn, generation_id, "deadline")
    assert read(conn, generation_id).status == S.EXPIRED


def test_with_cancel_asked_it_is_cancelled(conn):
    generation_id = make(conn, S.UPLOADING, cancel_requested_at=func.now())
    held(conn, generation_id, "cancel")
    assert read(conn, generation_id).status == S.CANCELLED


def put_back(conn: Connection, generation_id: uuid.UUID, wait: Wait) -> None:
    """Check that no intent is made, and that the generation waits for this and fails nothing."""
    held(conn, generation_id, str(wait))
    row = read(conn, generation_id)
    assert (row.status, row.failures) == (S.ACCEPTED, 0)
    assert (row.wait_reason, row.wait_detail) == (wait.reason, wait.detail)


@pytest.mark.parametrize("name", BreakerName)
def test_an_open_breaker_puts_it_back_without_failing_it(conn, name):
    breakers.trip(conn, name, "why", probe_in=30)
    put_back(conn, make(conn, S.UPLOADING), Wait(WaitReason.BREAKER, {"breaker": str(name)}))


THROTTLED = Wait(WaitReason.RATE, {"cause": "throttled"})
OUTAGE = Wait(WaitReason.RATE, {"cause": "outage"})


def test_no_intent_is_made_before_retry_after_has_passed(conn):
    evidence.throttled(conn, measured=10, retry_after=60, reason="RATE_LIMIT_EXCEEDED")
    put_back(conn, make(conn, S.UPLOADING), THROTTLED)
    conn.execute(text("UPDATE flow_control SET resume_at = now()"))
    assert isinstance(begin(conn, make(conn, S.UPLOADING)), Intent)


def outage(conn: Connection, *, probe_in: float) -> None:
    """Put the account into an outage whose next probe is due in that many seconds."""
    conn.execute(
        table_of(FlowControl)
        .insert()
        .values(
            account="default",
            outage_since=func.now(),
            probe_at=func.now() + timedelta(seconds=probe_in),
        )
    )


def test_an_outage_puts_it_back_between_two_probes(conn):
    outage(conn, probe_in=1)
    put_back(conn, make(conn, S.UPLOADING), OUTAGE)


def test_a_due_probe_of_an_outage_makes_one_intent(conn):
    outage(conn, probe_in=0)
    probe = begin(conn, make(conn, S.UPLOADING))
    assert isinstance(probe, Intent)
    assert probe.probe
    put_back(conn, make(conn, S.UPLOADING), OUTAGE)


def test_a_probe_is_not_spent_on_what_something_else_forbids_to_send(conn):
    outage(conn, probe_in=0)
    late = make(conn, S.UPLOADING, deadline_at=func.now())
    held(conn, late, "deadline")
    probe = begin(conn, make(conn, S.UPLOADING))
    assert isinstance(probe, Intent)
    assert probe.probe


def limit(conn: Connection, tasks: int) -> None:
    """Limit the account to this many tasks at a time."""
    conn.execute(
        table_of(FlowControl)
        .insert()
        .values(
            account="default",
            concurrency=tasks,
            concurrency_refused=tasks + 1,
            concurrency_changed_at=func.now(),
        )
    )


def test_no_more_intents_are_made_than_the_provider_runs_tasks(conn):
    limit(conn, 2)
    make(conn, S.RUNNING)
    make(conn, S.UNCERTAIN)
    make(conn, S.RUNNING, attention="look", attention_at=func.now())
    assert isinstance(begin(conn, make(conn, S.UPLOADING)), Intent)
    put_back(conn, make(conn, S.UPLOADING), Wait(WaitReason.CONCURRENCY, {"provider_limit": 2}))


def test_what_the_credits_cover_passes_the_credit_breaker(conn):
    breakers.trip(conn, BreakerName.CREDIT, "402", probe_in=0, refused_estimate=Decimal(50))
    breakers.record_balance(conn, total=Decimal(100), used=Decimal(80), remain=Decimal(20))
    cheap = make(conn, S.UPLOADING, estimated_cost=20)
    dear = make(conn, S.UPLOADING, estimated_cost=Decimal("20.0001"))
    assert isinstance(begin(conn, cheap), Intent)
    held(conn, dear, "credit")


def test_an_unknown_task_with_a_seed_of_its_own_stops_it_and_asks(conn):
    """Nothing adopted it yet: sending now would pay twice."""
    generation_id = make(conn, S.UPLOADING, attempt=1, attempts=0)
    seed = rows.attempt(conn, generation_id, 1, outcome="absent")
    task_id = stray(conn, "foreign", seed=seed)
    held(conn, generation_id, task_id)
    row = read(conn, generation_id)
    assert row.status == S.ACCEPTED
    assert task_id in row.attention


def test_a_possible_task_of_its_own_stops_it_and_asks(conn):
    generation_id = make(conn, S.UPLOADING, attempt=1, request=FIXED, attempts=0)
    rows.attempt(conn, generation_id, 1, outcome="absent", seed=42, seed_drawn=False)
    task_id = stray(conn, "possible", generation_id=generation_id, attempt=1, seed=42)
    held(conn, generation_id, task_id)


@pytest.mark.parametrize("outcome", ["refused", "not_sent"])
def test_a_closed_attempt_has_no_task_to_wait_for(conn, outcome):
    generation_id = make(conn, S.UPLOADING, attempt=1, attempts=0)
    seed = rows.attempt(conn, generation_id, 1, outcome=outcome)
    stray(conn, "foreign", seed=seed)
    assert isinstance(begin(conn, generation_id), Intent)


def test_a_task_older_than_the_attempt_is_not_of_it(conn):
    generation_id = make(conn, S.UPLOADING, attempt=1, attempts=0)
    seed = rows.attempt(conn, generation_id, 1, outcome="absent")
    stray(conn, "foreign", seed=seed, remote_created_at=func.now() - timedelta(hours=2))
    assert isinstance(begin(conn, generation_id), Intent)


def test_somebody_elses_tasks_stop_nobody(conn):
    generation_id = make(conn, S.UPLOADING, attempt=1)
    stray(conn, "foreign", seed=7)
    stray(conn, "foreign", seed=None)
    assert isinstance(begin(conn, generation_id), Intent)


@pytest.mark.parametrize("status", [S.SUBMITTING, S.UNCERTAIN])
def test_an_equal_one_in_doubt_blocks_it(conn, status):
    holder = make(conn, status, request=FIXED, fingerprint=MARK)
    generation_id = make(conn, S.UPLOADING, request=FIXED)
    held(conn, generation_id, str(holder))
    row = read(conn, generation_id)
    assert (row.status, row.blocked_by) == (S.ACCEPTED, holder)


@pytest.mark.parametrize("status", [S.RUNNING, S.COMPLETED])
def test_an_equal_one_out_of_doubt_does_not(conn, status):
    make(conn, status, request=FIXED, fingerprint=MARK)
    assert isinstance(begin(conn, make(conn, S.UPLOADING, request=FIXED)), Intent)


def test_a_seed_drawn_for_another_that_equals_the_producers_blocks_it(conn):
    """By chance; an adopted task would go to whoever drew it."""
    other = make(conn, S.UNCERTAIN, attempts=0)
    rows.attempt(conn, other, 1, seed=42, outcome="unknown")
    generation_id = make(conn, S.UPLOADING, request=FIXED)
    held(conn, generation_id, str(other))


def test_two_equal_ones_at_the_same_moment(engine):
    """The index lets one through; the other is put back, and goes when the first has left doubt."""
    with engine.begin() as conn:
        one, two = (make(conn, S.UPLOADING, request=FIXED) for _ in range(2))
    try:
        with engine.connect() as first, engine.connect() as second:
            assert isinstance(begin(first, one), Intent)
            # The second has looked before the first committed: only the index can tell.
            held_by = submission.fingerprint_holder(second, MARK, 42, two)
            assert held_by is None
            first.commit()
            second.rollback()
            with pytest.raises(IntegrityError, match="uq_generations_in_doubt"):
                transitions.intend(
                    second, transitions.Intending(two, 7, 1, MARK, 42, False), settle_seconds=90
                )
            second.rollback()
            submission.put_back_blocked(second, two, 7, None)
            assert read(second, two).status == S.ACCEPTED
    finally:
        with engine.begin() as conn:
            conn.execute(text("TRUNCATE generations CASCADE"))


# --- just before the POST ----------------------------------------------------------------------


def intended(conn: Connection) -> Intent:
    intent = begin(conn, make(conn, S.UPLOADING))
    assert isinstance(intent, Intent)
    return intent


def test_nothing_changed_and_it_may_be_sent(conn):
    assert obstacle(conn, intended(conn)) is None


def obstacle(conn: Connection, intent: Intent) -> Wait | None:
    return submission.before_sending(conn, intent).obstacle


def test_cancel_stops_it_on_the_last_metre(conn):
    intent = intended(conn)
    transitions.cancel(conn, intent.generation_id)
    assert obstacle(conn, intent) == retry("cancel asked")


@pytest.mark.parametrize("name", BreakerName)
def test_a_breaker_that_opened_meanwhile_stops_it(conn, name):
    intent = intended(conn)
    breakers.trip(conn, name, "why", probe_in=30)
    assert obstacle(conn, intent) == Wait(WaitReason.BREAKER, {"breaker": str(name)})


def test_the_credit_breaker_lets_what_the_balance_covers_be_sent(conn):
    intent = intended(conn)
    breakers.trip(conn, BreakerName.CREDIT, "402", probe_in=0, refused_estimate=Decimal(50))
    breakers.record_balance(conn, total=Decimal(100), used=Decimal(80), remain=Decimal(20))
    assert obstacle(conn, intent) is None


def test_throttling_that_came_meanwhile_stops_it(conn):
    intent = intended(conn)
    evidence.throttled(conn, measured=10, retry_after=60, reason="RATE_LIMIT_EXCEEDED")
    found = submission.before_sending(conn, intent)
    assert found.obstacle == THROTTLED
    assert 59 < found.flow.resume_in <= 60, "the caller learns for how long"


def test_an_outage_that_began_meanwhile_stops_it(conn):
    intent = intended(conn)
    outage(conn, probe_in=30)
    assert obstacle(conn, intent) == OUTAGE


def test_a_probe_is_sent_although_the_outage_goes_on(conn):
    outage(conn, probe_in=0)
    intent = intended(conn)
    assert obstacle(conn, intent) is None


def test_a_concurrency_limit_that_was_lowered_meanwhile_stops_nothing(conn):
    """The intent is one of the tasks that fit: it was counted under the old limit."""
    intent = intended(conn)
    limit(conn, 1)
    make(conn, S.RUNNING)
    assert obstacle(conn, intent) is None


def test_a_pause_that_began_meanwhile_stops_it(conn):
    intent = intended(conn)
    pauses.pause(conn, None, By("ana", "maintenance"))
    found = obstacle(conn, intent)
    assert found is not None
    assert found.reason is WaitReason.PAUSE


def test_a_deadline_that_passed_meanwhile_stops_it(conn):
    intent = intended(conn)
    conn.execute(text("UPDATE generations SET deadline_at = now()"))
    assert obstacle(conn, intent) == retry("deadline passed")


def test_a_callback_of_an_earlier_attempt_stops_the_next(conn):
    intent = begin(conn, make(conn, S.UPLOADING, attempt=1))
    assert isinstance(intent, Intent)
    assert obstacle(conn, intent) is None
    conn.execute(text("UPDATE submit_attempts SET callback_at = now() WHERE number = 1"))
    assert obstacle(conn, intent) == retry("an earlier attempt was called back")


def test_a_row_that_is_gone_stops_it(conn):
    intent = intended(conn)
    conn.execute(text("DELETE FROM submit_attempts; DELETE FROM generations"))
    assert obstacle(conn, intent) == retry("no longer the row's attempt")


def test_a_row_that_went_on_without_it_stops_it(conn):
    intent = intended(conn)
    transitions.doubt(conn, intent.generation_id, intent.attempt, why="lease ended")
    assert obstacle(conn, intent) == retry("no longer the row's attempt")


def test_a_later_attempt_stops_it(conn):
    intent = intended(conn)
    conn.execute(text("UPDATE generations SET attempt = attempt + 1"))
    assert obstacle(conn, intent) == retry("no longer the row's attempt")


# --- refusals ----------------------------------------------------------------------------------


def test_refusals_and_unreachable_attempts_are_counted_from_the_first(conn):
    generation_id = make(conn, S.UPLOADING, attempt=5, attempts=0)
    ago = [func.now() - timedelta(seconds=seconds) for seconds in (900, 600, 300, 60, 1)]
    for number, (outcome, code) in enumerate(
        [
            ("absent", "SERVICE_BUSY"),
            ("refused", "SERVICE_BUSY"),
            ("not_sent", "UNREACHABLE"),
            ("not_sent", None),
            ("unknown", "INTERNAL_ERROR"),
        ],
        start=1,
    ):
        rows.attempt(
            conn, generation_id, number, outcome=outcome, code=code, started_at=ago[number - 1]
        )
    assert submission.refusals(conn, generation_id) == submission.Refusals(2, None)
    conn.execute(text("UPDATE submit_attempts SET provider_ok = false WHERE number <> 4"))
    # A lost answer is no refusal, and what could not be sent was not refused.
    assert submission.refusals(conn, generation_id) == submission.Refusals(2, 600.0)


def test_a_generation_that_was_never_refused_has_no_refusals(conn):
    generation_id = make(conn, S.SUBMITTING)
    assert submission.refusals(conn, generation_id) == submission.Refusals(0, None)


# --- a second task -----------------------------------------------------------------------------


def test_a_second_task_is_told_once_and_its_credits_are_kept(conn):
    generation_id = make(conn, S.RUNNING)
    for status, cost in (("queued", None), ("completed", Decimal(9))):
        submission.flag_second_task(
            conn, generation_id, 1, task_id="second", status=status, credit_cost=cost
        )
    assert [event for event, _, _ in events(conn, generation_id)] == ["second_task", "charged"]
    [kept] = conn.execute(select(table_of(StrayTask))).all()
    assert (kept.kind, kept.status, kept.credit_cost) == ("second", "completed", Decimal(9))
    assert (kept.generation_id, kept.attempt) == (generation_id, 1)


def test_a_foreign_task_found_to_be_a_second_one_is_told(conn):
    generation_id = make(conn, S.RUNNING)
    submission.upsert_stray(conn, task_id="t", kind="foreign", status="queued")
    submission.flag_second_task(
        conn, generation_id, 1, task_id="t", status="queued", credit_cost=None
    )
    assert [event for event, _, _ in events(conn, generation_id)] == ["second_task"]
