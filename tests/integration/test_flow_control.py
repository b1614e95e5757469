"""Flow control in the database: evidence of answers, the state it makes, and whom it admits."""

import re
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, func, select, text
from sqlalchemy.exc import IntegrityError

from models import schedule, transitions
from models.flow_control import evidence, report, rules
from models.flow_control import state as flow_state
from models.flow_control.rules import ConcurrencyLimit
from models.flow_control.state import Allowance, FlowState
from models.lifecycle import Status
from models.schedule import Claim
from models.transitions import Answered
from models.wait_reasons import retry
from tests.integration import rows
from tests.waiting import wait_for

_TIMES = (
    "rate_changed_at",
    "resume_at",
    "concurrency_changed_at",
    "failed_at",
    "outage_since",
    "probe_at",
    "ramp_since",
)


def earlier(conn: Connection, seconds: float) -> None:
    """Let that many seconds pass."""
    given = {"s": seconds}
    moved = ", ".join(f"{name} = {name} - make_interval(secs => :s)" for name in _TIMES)
    conn.execute(text(f"UPDATE flow_control SET {moved}"), given)
    conn.execute(
        text(
            "UPDATE submit_attempts SET answered_at = answered_at - make_interval(secs => :s),"
            " started_at = started_at - make_interval(secs => :s)"
        ),
        given,
    )


def state(conn: Connection) -> FlowState:
    return flow_state.read(conn)


def allowed(conn: Connection) -> Allowance | None:
    return flow_state.allowance(conn, state(conn))


def throttle(
    conn: Connection, measured: float = 10.0, retry_after: float | None = None
) -> FlowState:
    return evidence.throttled(
        conn, measured=measured, retry_after=retry_after, reason="RATE_LIMIT_EXCEEDED"
    )


def submitting(conn: Connection) -> uuid.UUID:
    generation_id = rows.make(conn, Status.SUBMITTING)
    # All are of one transaction here, and sent one after the other.
    conn.execute(
        text("UPDATE submit_attempts SET started_at = clock_timestamp() WHERE generation_id = :id"),
        {"id": generation_id},
    )
    return generation_id


def succeed(conn: Connection, generation_id: uuid.UUID | None = None) -> uuid.UUID:
    """A submit that made a task."""
    generation_id = generation_id or submitting(conn)
    answer = Answered(generation_id, 1, f"task-{generation_id.hex}", "pending", None, 60.0)
    assert transitions.submitted(conn, answer) is not None
    return generation_id


def refuse(
    conn: Connection, *, provider_ok: bool | None = False, code: str = "SERVICE_BUSY"
) -> None:
    """A submit whose attempt was declined."""
    moved = transitions.declined(
        conn,
        submitting(conn),
        1,
        code=code,
        wait=retry("a test"),
        seconds=60.0,
        provider_ok=provider_ok,
    )
    assert moved is not None


def fail(conn: Connection, times: int = 1) -> list[bool]:
    """Submits that the provider failed; True for each that begins an outage."""
    found = []
    for _ in range(times):
        refuse(conn)
        found.append(evidence.failed(conn, reason="SERVICE_BUSY"))
    return found


def outage(conn: Connection) -> None:
    assert fail(conn, rules.OUTAGE_SAMPLE)[-1]


def test_one_generation_that_is_always_refused_is_no_outage(conn):
    generation_id = submitting(conn)
    for number in range(2, 40):
        transitions.declined(
            conn,
            generation_id,
            number - 1,
            code="SERVICE_BUSY",
            wait=retry("SERVICE_BUSY"),
            seconds=0.0,
            provider_ok=False,
        )
        assert not evidence.failed(conn, reason="SERVICE_BUSY")
        conn.execute(
            text("UPDATE generations SET status = 'submitting', attempt = :n WHERE id = :id"),
            {"n": number, "id": generation_id},
        )
        conn.execute(
            text(
                "INSERT INTO submit_attempts (generation_id, number, seed, seed_drawn, fingerprint,"
                " started_at, settle_at) SELECT :id, :n, :n, false, 'x', clock_timestamp(), now()"
            ),
            {"n": number, "id": generation_id},
        )
    assert state(conn).outage_age is None


def test_probes_of_an_outage_take_turns(conn):
    first, second = (rows.make(conn, Status.ACCEPTED) for _ in range(2))
    outage(conn)
    earlier(conn, rules.MIN_PROBE)
    # The one that was accepted first was the last probe: it is due again, after the other.
    for generation_id, age, due in ((first, 90, 1), (second, 60, 9)):
        conn.execute(
            text(
                "UPDATE generations SET created_at = now() - make_interval(secs => :age),"
                " due_at = now() - make_interval(secs => :due) WHERE id = :id"
            ),
            {"id": generation_id, "age": age, "due": due},
        )
    assert [claim.id for claim in admit(conn)] == [second]


@pytest.fixture
def shared(engine: Engine) -> Iterator[Engine]:
    """A database whose changes are committed, and deleted at the end."""
    yield engine
    with engine.begin() as conn:
        conn.execute(text("SET LOCAL session_replication_role = replica"))
        for table in ("flow_control", "generations", "submit_attempts", "generation_events"):
            conn.execute(text(f"DELETE FROM {table}"))
        conn.execute(text("DELETE FROM ledger_entries"))


def together(count: int, act: Callable[[int], Any]) -> list[Any]:
    """Run it in as many threads at the same moment; the results, in their order."""
    barrier = threading.Barrier(count)

    def one(number: int) -> Any:
        barrier.wait(10)
        return act(number)

    with ThreadPoolExecutor(count) as threads:
        return [done.result(20) for done in [threads.submit(one, n) for n in range(count)]]


# --- the request rate ---------------------------------------------------------------------------


def test_without_evidence_nothing_is_limited(conn):
    assert state(conn) == FlowState()
    assert state(conn).calm
    assert allowed(conn) is None
    assert report.limits(conn, state(conn)) == []


def test_throttling_lowers_the_rate_and_stops_requests(conn):
    found = throttle(conn, measured=10.0, retry_after=5.0)
    assert found.rate is not None
    assert found.rate.lowered_to == pytest.approx(7.0)
    assert found.rate.refused == pytest.approx(10.0)
    assert 4.0 < found.resume_in <= 5.0
    assert found.reason == "RATE_LIMIT_EXCEEDED"
    assert allowed(conn) == Allowance(0, "throttled")


def test_refusals_of_one_episode_lower_the_rate_once(conn):
    first = throttle(conn, measured=10.0)
    for _ in range(20):
        again = throttle(conn, measured=10.0)
    assert first.rate is not None
    assert again.rate is not None
    assert again.rate.lowered_to == first.rate.lowered_to
    earlier(conn, rules.SAME_EPISODE)
    next_episode = throttle(conn, measured=10.0).rate
    assert next_episode is not None
    assert next_episode.lowered_to < first.rate.lowered_to


@pytest.mark.parametrize("waits", [(60.0, 1.0), (1.0, 60.0), (60.0, None)])
def test_longest_retry_after_is_honoured(conn, waits):
    for wait in waits:
        found = throttle(conn, retry_after=wait)
    assert 59.0 < found.resume_in <= 60.0


def test_throttling_without_retry_after_pauses_briefly(conn):
    assert 0.0 < throttle(conn).resume_in <= evidence.PAUSE


def test_absurd_retry_after_is_capped(conn):
    assert throttle(conn, retry_after=1e9).resume_in <= evidence.MAX_RETRY_AFTER


def test_after_the_pause_generations_are_admitted_ahead_by_the_rate(conn):
    throttle(conn, measured=10.0)
    earlier(conn, 2.0)
    found = state(conn)
    assert found.rate is not None
    ahead = round(2 * found.rate.now)
    assert ahead in {14, 15}
    assert flow_state.allowance(conn, found) == Allowance(ahead, "rate")
    for _ in range(4):
        submitting(conn)  # it has had its turn
        rows.make(conn, Status.UPLOADING)
    assert flow_state.allowance(conn, found) == Allowance(ahead - 4, "rate")


def test_rate_is_forgotten_once_it_reaches_the_setting(conn):
    throttle(conn, measured=10.0)
    earlier(conn, rules.RATE_RECOVERY)
    evidence.relax(conn, max_in_flight=50, max_rate=20.0)
    assert state(conn).rate is not None
    evidence.relax(conn, max_in_flight=50, max_rate=10.0)
    assert state(conn).rate is None
    assert state(conn).calm


def test_rate_of_the_report_says_why_since_when_and_what_raises_it(conn):
    throttle(conn, measured=10.0)
    earlier(conn, 3.0)
    [limit] = report.limits(conn, state(conn))
    assert limit.name == "rate"
    assert limit.value == pytest.approx(7.3, abs=0.1)
    for part in ("7.3 requests/s", "at 10/s", "3 s ago", "RATE_LIMIT_EXCEEDED", "rises while"):
        assert part in limit.text


# --- the concurrency limit ----------------------------------------------------------------------


def refused_as_one_too_many(conn: Connection, generation_id: uuid.UUID) -> int:
    transitions.doubt(conn, generation_id, 1, why="CONCURRENCY_LIMIT_REACHED")
    return evidence.concurrency_refused(conn, generation_id, 1)


def test_burst_of_refusals_converges_to_what_is_present(conn):
    """Twelve are sent at once, and five become tasks: the limit is five after their answers."""
    sent = [submitting(conn) for _ in range(12)]
    for generation_id in sent[:5]:
        succeed(conn, generation_id)
    found = [refused_as_one_too_many(conn, generation_id) for generation_id in sent[5:]]
    assert found == [11, 10, 9, 8, 7, 6, 5]
    assert state(conn).concurrency is not None
    assert state(conn).concurrency.value == 5
    assert state(conn).concurrency.refused == 6


def test_refusals_in_any_order_converge_to_the_same_limit(conn):
    sent = [submitting(conn) for _ in range(12)]
    found = refused_as_one_too_many(conn, sent[11])
    for generation_id in sent[:5]:
        succeed(conn, generation_id)
    for generation_id in sent[5:11]:
        found = refused_as_one_too_many(conn, generation_id)
    assert found == 5


def test_refusal_of_a_post_sent_before_the_limit_lowers_nothing_twice(conn):
    for _ in range(5):
        succeed(conn)
    late, *_ = old = [submitting(conn) for _ in range(3)]
    assert refused_as_one_too_many(conn, old[1]) == 7
    assert refused_as_one_too_many(conn, old[2]) == 6
    assert refused_as_one_too_many(conn, late) == 5
    # Another POST of that time: five are still at work, so nothing new is known.
    stale = submitting(conn)
    conn.execute(
        text(
            "UPDATE submit_attempts SET started_at = now() - interval '10 s'"
            " WHERE generation_id = :id"
        ),
        {"id": stale},
    )
    assert refused_as_one_too_many(conn, stale) == 5


def test_refusal_of_a_post_sent_under_the_limit_lowers_it_by_one(conn):
    for _ in range(6):
        succeed(conn)
    assert refused_as_one_too_many(conn, submitting(conn)) == 6
    earlier(conn, 5.0)
    fresh = submitting(conn)
    conn.execute(
        text("UPDATE submit_attempts SET started_at = clock_timestamp() WHERE generation_id = :id"),
        {"id": fresh},
    )
    assert refused_as_one_too_many(conn, fresh) == 5


def test_limit_is_one_at_least(conn):
    assert refused_as_one_too_many(conn, submitting(conn)) == 1


def relax(conn: Connection, max_in_flight: int = 50) -> int | None:
    evidence.relax(conn, max_in_flight=max_in_flight, max_rate=20.0)
    limit = state(conn).concurrency
    return None if limit is None else limit.value


def test_limit_is_probed_by_one_while_every_slot_is_in_use(conn):
    for _ in range(3):
        succeed(conn)
    assert refused_as_one_too_many(conn, submitting(conn)) == 3
    earlier(conn, rules.PROBE_AFTER - 1)
    assert relax(conn) == 3, "not before its time"
    earlier(conn, rules.MAX_PROBE_AFTER)
    assert relax(conn) == 4
    earlier(conn, rules.MAX_PROBE_AFTER)
    assert relax(conn) == 4, "the fourth slot is free: nothing is known of it"
    succeed(conn)
    earlier(conn, rules.GROW_EVERY)
    assert relax(conn) == 5, "the refused number was exceeded: it grows quickly"


def test_limit_is_forgotten_at_the_setting(conn):
    for _ in range(3):
        succeed(conn)
    assert refused_as_one_too_many(conn, submitting(conn)) == 3
    assert relax(conn, max_in_flight=3) is None
    assert state(conn).calm


def test_uncertain_generations_hold_no_slot(conn):
    for _ in range(4):
        succeed(conn)
    before = schedule.in_flight(conn)
    generation_id = submitting(conn)
    assert schedule.in_flight(conn) == before + 1
    refused_as_one_too_many(conn, generation_id)
    assert schedule.in_flight(conn) == before
    assert schedule.at_work(conn) == 4


# --- failures and outages -----------------------------------------------------------------------


def test_twelve_failures_in_a_row_are_an_outage_and_begin_it_once(conn):
    assert fail(conn, rules.OUTAGE_SAMPLE) == [False] * (rules.OUTAGE_SAMPLE - 1) + [True]
    assert fail(conn, 3) == [False] * 3
    found = state(conn)
    assert found.outage_age is not None
    assert found.reason == "SERVICE_BUSY"
    assert found.failed_ago is not None


def test_success_in_between_prevents_the_outage(conn):
    fail(conn, rules.OUTAGE_SAMPLE - 1)
    succeed(conn)
    assert fail(conn, rules.OUTAGE_SAMPLE - 1) == [False] * (rules.OUTAGE_SAMPLE - 1)
    assert state(conn).outage_age is None
    assert fail(conn) == [True]


def test_permanent_refusal_counts_as_a_success(conn):
    fail(conn, rules.OUTAGE_SAMPLE - 1)
    transitions.refused(conn, submitting(conn), 1, code="INVALID_PARAMETER", message="no")
    assert fail(conn) == [False]


@pytest.mark.parametrize("code", ["RATE_LIMIT_EXCEEDED", "CONCURRENCY_LIMIT_REACHED"])
def test_throttled_and_too_many_attempts_are_no_failures(conn, code):
    for _ in range(rules.OUTAGE_SAMPLE - 1):
        refuse(conn)
    for _ in range(5):
        refuse(conn, provider_ok=None, code=code)
    assert not evidence.failed(conn, reason="SERVICE_BUSY"), "eleven failures only"
    assert fail(conn) == [True], "they do not interrupt the run either"


def test_old_failures_are_no_outage(conn):
    fail(conn, rules.OUTAGE_SAMPLE - 1)
    earlier(conn, rules.OUTAGE_SPAN + 10)
    assert fail(conn) == [False]


def test_unreachable_provider_counts_as_failure_and_a_late_check_does_not(conn):
    for code in ["UNREACHABLE"] * (rules.OUTAGE_SAMPLE - 1) + [None] * 5:
        moved = transitions.not_sent(
            conn, submitting(conn), 1, wait=retry("a test"), seconds=1.0, code=code
        )
        assert moved is not None
    assert not evidence.failed(conn, reason="UNREACHABLE")
    assert fail(conn) == [True]


def test_later_verdict_about_an_attempt_does_not_change_its_evidence(conn):
    """An ambiguous answer was a failure of the provider, also once its task was found."""
    generation_id = submitting(conn)
    transitions.doubt(conn, generation_id, 1, why="500", code="X", provider_ok=False)
    transitions.adopt(
        conn,
        generation_id,
        1,
        latest_attempt=1,
        seen=rows.seen("task-found"),
        sources=frozenset({Status.UNCERTAIN}),
        by="a test",
    )
    row = conn.execute(
        text("SELECT outcome, provider_ok FROM submit_attempts WHERE generation_id = :id"),
        {"id": generation_id},
    ).one()
    assert tuple(row) == ("adopted", False)


def test_outage_allows_a_probe_only_when_due_and_until_it_is_taken(conn):
    outage(conn)
    assert allowed(conn) == Allowance(0, "outage")
    earlier(conn, rules.MIN_PROBE)
    assert allowed(conn) == Allowance(1, "outage")
    submitting(conn)  # its answer may never come, and its worker may be gone
    assert allowed(conn) == Allowance(1, "outage")
    assert evidence.take_probe(conn, state(conn))
    assert allowed(conn) == Allowance(0, "outage")


def test_probe_is_given_to_one_of_many_concurrent_callers(shared):
    with shared.begin() as conn:
        outage(conn)
        earlier(conn, rules.MIN_PROBE)
        found = state(conn)

    def take(_: int) -> bool:
        with shared.begin() as conn:
            return evidence.take_probe(conn, found)

    assert sum(together(8, take)) == 1
    assert sum(together(8, take)) == 0, "the interval has not passed"
    with shared.begin() as conn:
        earlier(conn, rules.MAX_PROBE)
    assert sum(together(8, take)) == 1


def test_probes_of_a_long_outage_are_a_tenth_of_its_age_apart(conn):
    outage(conn)
    earlier(conn, 100.0)
    assert evidence.take_probe(conn, state(conn))
    assert 9.0 < state(conn).probe_in <= 10.5
    earlier(conn, 10_000.0)
    assert evidence.take_probe(conn, state(conn))
    assert rules.MAX_PROBE - 1 < state(conn).probe_in <= rules.MAX_PROBE


def test_recovery_ends_the_outage_once_and_ramps_up(conn):
    outage(conn)
    earlier(conn, 20.0)
    assert evidence.recovered(conn)
    assert not evidence.recovered(conn)
    found = state(conn)
    assert found.outage_age is None
    assert found.ramp_age is not None
    assert allowed(conn) == Allowance(rules.RAMP_START, "ramp")


def test_ramp_allows_more_with_each_success_and_ends(conn):
    outage(conn)
    earlier(conn, 20.0)
    evidence.recovered(conn)
    succeed(conn)
    pending = [submitting(conn) for _ in range(3)]
    assert allowed(conn) == Allowance(rules.RAMP_START + 1 - 3, "ramp")
    for generation_id in pending:
        succeed(conn, generation_id)
    for _ in range(rules.RAMP_DONE - 5):
        succeed(conn)
    # Their answers came after the ramp began: one more ends it.
    assert relax(conn) is None
    assert state(conn).ramp_age is not None
    succeed(conn)
    earlier(conn, 5.0)
    relax(conn)
    assert state(conn).ramp_age is None
    assert allowed(conn) is None


def test_ramp_ends_after_its_time_however_few_succeed(conn):
    outage(conn)
    evidence.recovered(conn)
    earlier(conn, rules.MAX_RAMP - 1)
    relax(conn)
    assert state(conn).ramp_age is not None
    earlier(conn, 2)
    assert allowed(conn) is None
    relax(conn)
    assert state(conn).ramp_age is None


def test_new_outage_ends_the_ramp(conn):
    outage(conn)
    evidence.recovered(conn)
    succeed(conn)
    outage(conn)
    assert state(conn).ramp_age is None
    assert state(conn).outage_age is not None


def test_share_of_failures_limits_submits_and_old_ones_do_not(conn):
    for _ in range(4):
        fail(conn, 4)
        succeed(conn)
    earlier(conn, 2.0)
    found = allowed(conn)
    assert found is not None
    assert found.cause == "failures"
    assert 1 <= found.count <= 8, "twice the four successes, of some seconds"
    for _ in range(found.count):
        submitting(conn)
    assert allowed(conn) == Allowance(0, "failures")
    assert [limit.name for limit in report.limits(conn, state(conn))] == ["failures"]
    earlier(conn, rules.WINDOW + 1)
    assert allowed(conn) is None


def test_few_failures_limit_nothing(conn):
    """One refusal in ten leaves the fleet at full speed."""
    for _ in range(5):
        fail(conn)
        for _ in range(9):
            succeed(conn)
    assert allowed(conn) is None
    assert report.limits(conn, state(conn)) == []


def test_report_of_an_outage_says_when_it_is_probed(conn):
    outage(conn)
    earlier(conn, 100.0)
    [limit] = report.limits(conn, state(conn))
    assert limit.name == "outage"
    assert limit.value == pytest.approx(100, abs=10)
    assert re.match(r"outage for 10\d s \(SERVICE_BUSY\): one probe every 1\d s", limit.text)


# --- two writers at once ------------------------------------------------------------------------


def test_concurrent_evidence_neither_deadlocks_nor_is_lost(shared):
    """Answers of every kind, eight at a time, each in the transaction of its generation."""
    with shared.begin() as conn:
        ids = [submitting(conn) for _ in range(40)]

    def answer(number: int) -> None:
        for step, generation_id in enumerate(ids[number::8]):
            with shared.begin() as conn:
                match (number + step) % 4:
                    case 0:
                        succeed(conn, generation_id)
                        evidence.recovered(conn)
                    case 1:
                        refused_as_one_too_many(conn, generation_id)
                    case 2:
                        transitions.doubt(conn, generation_id, 1, why="x", provider_ok=False)
                        evidence.failed(conn, reason="x")
                    case _:
                        transitions.declined(
                            conn, generation_id, 1, code="X", wait=retry("a test"), seconds=1.0
                        )
                        throttle(conn)
            with shared.begin() as conn:
                evidence.relax(conn, max_in_flight=50, max_rate=20.0)

    together(8, answer)
    with shared.connect() as conn:
        found = state(conn)
        assert found.rate is not None
        assert found.concurrency is not None
        assert found.failed_ago is not None
        assert (
            conn.execute(select(func.count()).select_from(text("flow_control"))).scalar_one() == 1
        )


def test_first_two_writers_of_an_account_make_one_row(shared):
    def write(_: int) -> None:
        with shared.begin() as conn:
            throttle(conn)

    together(6, write)
    with shared.connect() as conn:
        [row] = conn.execute(text("SELECT account, rate FROM flow_control")).all()
    assert tuple(row) == ("default", pytest.approx(7.0))


def test_relaxing_does_not_undo_a_cut_that_came_meanwhile(shared):
    """The recovered rate was read, then the provider throttled: the new cut stays."""
    with shared.begin() as conn:
        throttle(conn)
        earlier(conn, 1_000.0)
    with shared.connect() as first:
        first.begin()
        throttle(first)
        waiting = threading.Thread(target=_relax_alone, args=(shared,))
        waiting.start()
        _await_lock_waiter(shared)
        first.commit()
        waiting.join(20)
        assert not waiting.is_alive()
    with shared.connect() as conn:
        found = state(conn).rate
    assert found is not None, "the cut was forgotten"


def _relax_alone(engine: Engine) -> None:
    with engine.begin() as conn:
        evidence.relax(conn, max_in_flight=50, max_rate=20.0)


def _await_lock_waiter(engine: Engine) -> None:
    def waits() -> bool:
        with engine.connect() as conn:
            return bool(
                conn.execute(
                    text(
                        "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
                        " AND datname = current_database()"
                    )
                ).scalar_one()
            )

    wait_for(waits, "a transaction waits for the lock")


# --- admission ----------------------------------------------------------------------------------


def admit(conn: Connection, limit: int = 100, max_in_flight: int = 50) -> list[Claim]:
    admitted = schedule.admit(
        conn, limit, max_in_flight=max_in_flight, lease_seconds=30.0, ceiling=None
    )
    assert admitted is not None
    return admitted


def accepted(conn: Connection, count: int) -> None:
    for _ in range(count):
        rows.make(conn, Status.ACCEPTED)


def set_limit(conn: Connection, limit: ConcurrencyLimit) -> None:
    conn.execute(
        text(
            "INSERT INTO flow_control (account, concurrency, concurrency_refused,"
            " concurrency_changed_at) VALUES ('default', :value, :refused, now())"
        ),
        {"value": limit.value, "refused": limit.refused},
    )


def test_admission_respects_the_concurrency_limit(conn):
    accepted(conn, 10)
    succeed(conn)
    set_limit(conn, ConcurrencyLimit(4, 5, 0.0))
    assert len(admit(conn)) == 3
    assert admit(conn) == []
    assert schedule.in_flight(conn) == 4


def test_admission_never_exceeds_the_setting(conn):
    accepted(conn, 5)
    set_limit(conn, ConcurrencyLimit(40, 41, 0.0))
    assert len(admit(conn, max_in_flight=2)) == 2


def test_uncertain_generations_do_not_block_admission(conn):
    accepted(conn, 5)
    for _ in range(3):
        transitions.doubt(conn, submitting(conn), 1, why="lost")
    assert len(admit(conn, max_in_flight=3)) == 3


def test_admission_follows_the_ramp(conn):
    accepted(conn, 20)
    outage(conn)
    earlier(conn, 20.0)
    evidence.recovered(conn)
    assert len(admit(conn)) == rules.RAMP_START
    assert admit(conn) == []


def test_admission_during_an_outage_admits_one_probe_when_due(conn):
    accepted(conn, 5)
    outage(conn)
    assert admit(conn) == []
    earlier(conn, rules.MIN_PROBE)
    assert len(admit(conn)) == 1
    assert len(admit(conn)) == 1, "the message of the first may be lost"
    assert evidence.take_probe(conn, state(conn))
    assert admit(conn) == []


def test_nothing_is_admitted_while_the_provider_throttles(conn):
    accepted(conn, 3)
    throttle(conn, retry_after=30.0)
    assert admit(conn) == []
    earlier(conn, 31.0)
    assert len(admit(conn)) == 3


def test_admission_stays_ahead_of_the_rate_by_two_seconds(conn):
    accepted(conn, 30)
    throttle(conn, measured=5.0)
    earlier(conn, 1.5)
    assert len(admit(conn)) == 7
    assert admit(conn) == []


def test_calm_account_admits_to_every_free_slot(conn):
    accepted(conn, 30)
    assert len(admit(conn, max_in_flight=25)) == 25


# --- the database refuses a state that contradicts itself ----------------------------------------


@pytest.mark.parametrize(
    ("values", "constraint"),
    [
        ("rate = 0, rate_refused = 1, rate_changed_at = now()", "rate_positive"),
        ("rate = 1", "rate_complete"),
        ("rate_refused = 1", "rate_complete"),
        ("concurrency = 0, concurrency_refused = 1, concurrency_changed_at = now()", "positive"),
        ("concurrency = 1", "concurrency_complete"),
        ("outage_since = now()", "outage_has_probe"),
        ("probe_at = now()", "outage_has_probe"),
    ],
)
def test_contradictory_state_is_refused(conn, values, constraint):
    throttle(conn)
    earlier(conn, 0)
    conn.execute(
        text("UPDATE flow_control SET rate = NULL, rate_refused = NULL, rate_changed_at = NULL")
    )
    with pytest.raises(IntegrityError, match=constraint):
        conn.execute(text(f"UPDATE flow_control SET {values}"))
