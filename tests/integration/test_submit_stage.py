"""Submit: intent, one POST, its outcome; with pauses, crashes and rivals at each place between."""

import contextlib
import random
import re
import socket
import threading
import time
import uuid
from dataclasses import replace

import pytest
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import make_url
from sqlalchemy.exc import DBAPIError

from api_client import Disposition, RateLimited
from models import schedule, transitions, workers
from models.database import make_engine
from models.flow_control import rules
from models.flow_control.rules import OUTAGE_SAMPLE
from models.lifecycle import Status
from models.marks import SEED_BOUND
from models.wait_reasons import WaitReason
from tests.integration.conftest import text_request
from tests.integration.invariants import HeldAnswer, in_background, laboratory, paused
from tests.waiting import wait_for
from worker import producer
from worker.limiter import Limiter, NoTokenError
from worker.stages import submit
from worker.stages.resolve import Outcome


@pytest.fixture
def lab(make_runtime, sim, caplog):
    with laboratory(make_runtime, sim, caplog) as lab:
        yield lab


# --- the intent ---------------------------------------------------------------------------------


def test_the_intent_is_there_before_the_post(lab):
    seen = []

    def look():
        [attempt] = lab.attempts(claim.id)
        seen.append((lab.get(claim.id).status, attempt.outcome, attempt.seed, lab.posts))

    claim = lab.start()
    submit.run(paused(lab.rt, before_check=look), [(claim.id, claim.lease)])

    [(status, outcome, seed, posts)] = seen
    assert (status, outcome, posts) == (Status.SUBMITTING, None, 0)
    [task] = lab.sim.tasks()
    assert task["seed"] == task["seed_given"] == seed
    assert 0 <= seed < SEED_BOUND
    # What must always be said, since providers' defaults differ.
    assert {"generate_audio", "ratio", "seed"} <= task["body"].keys()
    lab.complete(claim.id)


def test_it_settles_after_b_k_l_and_the_margin(lab):
    generation_id = lab.in_doubt()

    settle = lab.value("SELECT extract(epoch FROM settle_at - started_at) FROM submit_attempts")
    assert float(settle) == pytest.approx(10 + 0.5 + 0.3 + 0.2)
    lab.resolve(generation_id)
    lab.complete(generation_id)


def test_nothing_is_due_between_the_intent_and_settling_while_no_answer_came(lab):
    """Its answer may still come: another worker must not search for it meanwhile."""
    claim = lab.start()
    due = []

    def look():
        with lab.rt.engine.connect() as conn:
            due.append(schedule.next_due_in(conn))

    submit.run(paused(lab.rt, before_check=look), [(claim.id, claim.lease)])

    assert due == [pytest.approx(11, abs=1)]
    lab.complete(claim.id)


def test_an_uncertain_outcome_is_searched_for_two_seconds_later(lab):
    generation_id = lab.in_doubt()
    assert lab.due() == []
    with lab.rt.engine.connect() as conn:
        assert 1 < schedule.next_due_in(conn) <= 2
    lab.resolve(generation_id)
    lab.complete(generation_id)


@pytest.mark.parametrize(("given", "drawn"), [(None, True), (-1, True), (0, False), (7, False)])
def test_seeds_of_the_producer(lab, given, drawn):
    generation_id = lab.send(**({} if given is None else {"seed": given}))

    [attempt] = lab.attempts(generation_id)
    [task] = lab.sim.tasks()
    assert attempt.seed_drawn is drawn
    assert task["seed_given"] == attempt.seed
    assert drawn or attempt.seed == given
    lab.complete(generation_id)


def test_each_attempt_draws_a_fresh_seed(lab):
    generation_id = lab.in_doubt(kind="drop_before")
    assert lab.resolve(generation_id) is Outcome.ABSENT
    lab.send_again(generation_id)

    first, second = lab.attempts(generation_id)
    assert first.seed != second.seed
    lab.complete(generation_id)


def test_a_past_deadline_sends_nothing(lab):
    claim = lab.start()
    lab.sql("UPDATE generations SET deadline_at = now() - interval '1 second'")

    submit.run(lab.rt, [(claim.id, claim.lease)])

    assert lab.get(claim.id).status is Status.EXPIRED
    assert lab.posts == 0


def open_breaker(lab, name="api_key"):
    lab.sql(
        "INSERT INTO breakers (account, name, opened_at, reason)"
        " VALUES ('default', :name, now(), 'test')",
        name=name,
    )


def test_a_breaker_that_opened_since_the_admission_holds_it(lab):
    claim = lab.start()
    open_breaker(lab)

    submit.run(lab.rt, [(claim.id, claim.lease)])

    view = lab.get(claim.id)
    assert (view.status, view.waits_for) == (Status.ACCEPTED, "circuit breaker api_key")
    assert lab.attempts(claim.id) == []
    assert lab.posts == 0


def test_without_a_token_there_is_no_intent(lab):
    rt = lab.make_runtime(rate_limit="1/minute", broker_url="amqp://nowhere", lease=2.6)
    rt.limiter.wait()
    claim = lab.start()

    submit.run(rt, [(claim.id, claim.lease)])

    view = lab.get(claim.id)
    assert (view.status, view.waits_for) == (Status.ACCEPTED, "the request rate")
    assert lab.attempts(claim.id) == []
    assert isinstance(rt.limiter, Limiter)


def test_an_unknown_task_that_matches_an_open_attempt_forbids_sending(lab):
    """The producer's seed was seen on a task that nobody follows: an operator decides first."""
    generation_id = lab.in_doubt(kind="drop_before", seed=11)
    assert lab.resolve(generation_id) is Outcome.ABSENT
    lab.sim.inject(seed=11)
    assert len(lab.reconcile().possible) == 1

    lab.send_again(generation_id)

    view = lab.get(generation_id)
    assert view.status is Status.ACCEPTED
    assert view.wait_reason is WaitReason.OPERATOR
    assert "seedance resolve" in (view.attention or "")
    assert lab.posts == 1


def test_two_with_one_fingerprint_are_never_in_doubt_together(lab):
    """Both are past admission and reach their intents at the same moment."""
    first = lab.start(text_request(seed=5))
    second = admitted_all_the_same(lab, text_request("another prompt", seed=5))
    held = HeldAnswer(lab.rt, "submit")
    with in_background(lambda: submit.run(held.rt, [(first.id, first.lease)])):
        assert held.came.wait(30)
        submit.run(lab.rt, [(second, 1)])
        blocked = lab.get(second)
        assert blocked.status is Status.ACCEPTED
        assert blocked.blocked_by == first.id
        assert lab.posts == 1
        held.go.set()

    assert lab.get(first.id).status is Status.RUNNING
    woken = lab.get(second)
    assert woken.blocked_by is None
    [claim] = lab.admit()
    submit.run(lab.rt, [(claim.id, claim.lease)])
    assert lab.get(second).status is Status.RUNNING
    lab.end_tasks()


def test_the_unique_index_is_the_last_word(lab):
    """An equal intent, not yet committed, is invisible to the check and met in the index."""
    other = lab.start(text_request("one", seed=5))
    second = admitted_all_the_same(lab, text_request("two", seed=5))
    slow = lab.make_runtime()
    committing = threading.Event()
    go_on = threading.Event()

    @contextlib.contextmanager
    def begin():
        with engine_begin() as conn:
            yield conn
            if conn.exec_driver_sql("SELECT count(*) FROM submit_attempts").scalar_one():
                committing.set()
                assert go_on.wait(10)

    engine_begin = slow.engine.begin
    slow.engine.begin = begin
    # The first keeps its fingerprint until the second has looked again.
    looked = threading.Event()
    holding = paused(slow, before_check=lambda: looked.wait(8))
    with in_background(lambda: submit.run(holding, [(other.id, other.lease)])):
        assert committing.wait(10)
        with in_background(lambda: submit.run(lab.rt, [(second, 1)])):
            wait_for(lambda: lab.value("SELECT count(*) FROM pg_locks WHERE NOT granted") > 0)
            slow.engine.begin = engine_begin
            go_on.set()
        looked.set()
    assert lab.get(other.id).status is Status.RUNNING
    assert lab.get(second).status is Status.ACCEPTED
    assert lab.posts == 1


# --- pauses -------------------------------------------------------------------------------------


def test_an_intent_beyond_its_age_is_not_sent(lab):
    """Another connection holds up the intent itself for longer than B."""
    lab.rt = lab.make_runtime(send_budget=0.3)
    claim = lab.start()
    engine = lab.rt.engine
    with engine.connect() as holder:
        holder.exec_driver_sql("LOCK TABLE submit_attempts IN ACCESS EXCLUSIVE MODE")
        with in_background(lambda: submit.run(lab.rt, [(claim.id, claim.lease)])):
            wait_for(lambda: lab.value("SELECT count(*) FROM pg_locks WHERE NOT granted") > 0)
            time.sleep(0.4)  # the age itself is what is tested
            holder.rollback()

    view = lab.get(claim.id)
    assert view.status is Status.ACCEPTED
    assert lab.outcomes(claim.id) == ["not_sent"]
    assert "s old" in (view.waits_for or "")
    assert lab.posts == 0
    lab.rt = lab.make_runtime()
    lab.send_again(claim.id)
    lab.complete(claim.id)


def test_a_pause_between_intent_and_check_is_seen(lab):
    claim = lab.start()
    rt = paused(lab.make_runtime(send_budget=0.2), before_check=lambda: time.sleep(0.3))

    submit.run(rt, [(claim.id, claim.lease)])

    assert lab.outcomes(claim.id) == ["not_sent"]
    assert lab.posts == 0
    lab.send_again(claim.id)
    lab.complete(claim.id)


def test_a_pause_beyond_the_lease_sends_nothing(lab):
    """While it slept, others found no task, sent again, and followed that one."""
    claim = lab.start()

    def meanwhile():
        assert lab.resolve(claim.id) is Outcome.ABSENT
        assert lab.send_again(claim.id).status is Status.RUNNING

    submit.run(paused(lab.rt, before_check=meanwhile), [(claim.id, claim.lease)])

    assert lab.posts == 1
    assert lab.outcomes(claim.id) == ["not_sent", "submitted"]
    lab.complete(claim.id)


@pytest.mark.parametrize("stop", ["in doubt", "sent back", "let in again"])
def test_a_worker_that_wakes_finds_the_row_elsewhere(lab, stop):
    claim = lab.start()

    def meanwhile():
        if stop == "in doubt":
            lab.run(lab.claim(claim.id))  # not settled yet
            return
        lab.resolve(claim.id)
        if stop == "let in again":
            lab.readmit(claim.id)

    submit.run(paused(lab.rt, before_check=meanwhile), [(claim.id, claim.lease)])

    assert lab.posts == 0
    expected = {
        "in doubt": Status.UNCERTAIN,
        "sent back": Status.ACCEPTED,
        "let in again": Status.UPLOADING,
    }[stop]
    assert lab.get(claim.id).status is expected
    if stop == "in doubt":
        assert lab.resolve(claim.id) is Outcome.ABSENT
    if stop != "let in again":
        lab.send_again(claim.id)
        lab.complete(claim.id)


@pytest.mark.parametrize("breaker", ["api_key", "credit"])
def test_a_breaker_that_opens_after_the_intent_stops_it(lab, breaker):
    claim = lab.start()

    opens = paused(lab.rt, before_check=lambda: open_breaker(lab, breaker))
    submit.run(opens, [(claim.id, claim.lease)])

    view = lab.get(claim.id)
    assert view.status is Status.ACCEPTED
    assert (view.wait_reason, view.wait_detail) == (WaitReason.BREAKER, {"breaker": breaker})
    assert lab.outcomes(claim.id) == ["not_sent"]
    assert lab.posts == 0


def test_a_worker_that_was_taken_for_dead_does_not_send(lab):
    """Another worker released its claims: its row is uncertain before the POST is written."""
    lab.rt.membership.id = register_dead_worker(lab)
    claim = lab.start()
    released = []

    def release():
        with lab.rt.engine.begin() as conn:
            released.extend(workers.release_dead(conn, None))

    submit.run(paused(lab.rt, before_check=release), [(claim.id, claim.lease)])

    assert [(one.name, one.uncertain) for one in released] == [("dead:1", 1)]
    assert lab.posts == 0
    assert lab.get(claim.id).status is Status.UNCERTAIN
    assert lab.resolve(claim.id) is Outcome.ABSENT
    lab.send_again(claim.id)
    lab.complete(claim.id)


def register_dead_worker(lab):
    """Register a worker whose heartbeats have stopped, and return its id."""
    return lab.value(
        "INSERT INTO workers (name, locked, seen_at)"
        " VALUES ('dead:1', false, now() - interval '1 minute') RETURNING id"
    )


def test_frozen_between_check_and_write_it_is_flagged_and_never_silent(lab):
    """What remains (protocol.md): nothing stands between check and write, but it can freeze."""
    claim = lab.start()

    def meanwhile():
        assert lab.resolve(claim.id) is Outcome.ABSENT
        assert lab.send_again(claim.id).status is Status.RUNNING

    submit.run(paused(lab.rt, after_check=meanwhile), [(claim.id, claim.lease)])

    assert lab.posts == 2
    lab.second = 1
    [stray] = lab.strays(claim.id)
    assert (stray.kind, stray.attempt) == ("second", 1)
    assert "second_task" in lab.history(claim.id)
    lab.complete(claim.id)
    assert lab.reconcile().second == (stray.task_id,)
    assert lab.history(claim.id).count("second_task") == 1


def test_frozen_between_check_and_write_but_not_yet_sent_again_it_counts(lab):
    claim = lab.start()

    def meanwhile():
        assert lab.resolve(claim.id) is Outcome.ABSENT

    submit.run(paused(lab.rt, after_check=meanwhile), [(claim.id, claim.lease)])

    assert lab.get(claim.id).status is Status.RUNNING
    assert lab.outcomes(claim.id) == ["submitted"]
    assert lab.posts == 1
    lab.complete(claim.id)


# --- messages -----------------------------------------------------------------------------------


def test_the_same_message_twice_is_one_post(lab):
    claim = lab.start()
    submit.run(lab.rt, [(claim.id, claim.lease)])
    submit.run(lab.rt, [(claim.id, claim.lease)])
    assert lab.posts == 1
    assert lab.history(claim.id) == ["accept", "admit", "intend", "submit"]


def test_the_same_message_to_two_workers_at_once_is_one_post(lab):
    claims = [lab.start(text_request(f"cat {n}")) for n in range(5)]
    other = lab.make_runtime()
    for claim in claims:
        start = threading.Barrier(2)

        def work(rt, claim=claim, start=start):
            start.wait(10)
            submit.run(rt, [(claim.id, claim.lease)])

        with in_background(lambda work=work: work(lab.rt)):
            work(other)
    assert lab.posts == 5
    assert len(lab.submitted_tasks()) == 5


@pytest.mark.parametrize("lease", [-1, 0, 2, 10**12])
def test_a_message_of_another_lease_does_nothing(lab, lease):
    claim = lab.start()
    submit.run(lab.rt, [(claim.id, lease)])
    assert lab.posts == 0
    assert lab.get(claim.id).status is Status.UPLOADING


def test_a_message_for_nobody_does_nothing(lab):
    submit.run(lab.rt, [(uuid.uuid4(), 1)])
    assert lab.posts == 0


def test_an_old_message_after_the_row_was_put_back_does_nothing(lab):
    claim = lab.start()
    open_breaker(lab)
    submit.run(lab.rt, [(claim.id, claim.lease)])
    lab.calm()
    again = lab.readmit(claim.id)

    submit.run(lab.rt, [(claim.id, claim.lease)])
    assert lab.posts == 0
    submit.run(lab.rt, [(again.id, again.lease)])
    assert lab.posts == 1


# --- the database -------------------------------------------------------------------------------


def test_a_commit_that_fails_sends_nothing(lab):
    """The backend dies at COMMIT, before it took effect."""
    lab.sql(
        "CREATE FUNCTION die() RETURNS trigger LANGUAGE plpgsql AS"
        " 'BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); RETURN NULL; END'"
    )
    lab.sql(
        "CREATE CONSTRAINT TRIGGER die AFTER INSERT ON submit_attempts"
        " DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION die()"
    )
    claim = lab.start()
    with pytest.raises(DBAPIError):
        submit.run(lab.rt, [(claim.id, claim.lease)])
    lab.sql("DROP TRIGGER die ON submit_attempts")

    assert lab.posts == 0
    assert lab.get(claim.id).status is Status.UPLOADING
    lab.run(lab.claim(claim.id))
    assert lab.posts == 1
    lab.complete(claim.id)


def test_a_commit_of_unknown_outcome_sends_nothing(lab):
    """It took effect, but its confirmation was lost on the way: in doubt, and found absent."""
    with losing_commits(lab.rt.settings.database_url) as (url, arm):
        rt = lab.make_runtime(database_url=url)
        claim = lab.start()
        arm("INSERT INTO submit_attempts")
        with pytest.raises(DBAPIError):
            submit.run(rt, [(claim.id, claim.lease)])

    assert lab.get(claim.id).status is Status.SUBMITTING
    assert lab.posts == 0
    assert lab.resolve(claim.id) is Outcome.ABSENT
    lab.send_again(claim.id)
    assert lab.posts == 1
    lab.complete(claim.id)


def test_an_answer_outlives_an_outage_of_the_database(lab, postgres, caplog):
    """The result is written again and again; the task id is not thrown away."""
    database = make_url(lab.rt.settings.database_url).database
    outside = make_engine(postgres.url("postgres")).execution_options(isolation_level="AUTOCOMMIT")
    claim = lab.start()

    def outage():
        with outside.connect() as conn:
            conn.exec_driver_sql(f'ALTER DATABASE "{database}" ALLOW_CONNECTIONS false')
            conn.exec_driver_sql(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                f" WHERE datname = '{database}'"
            )

    with in_background(
        lambda: submit.run(paused(lab.rt, after_check=outage), [(claim.id, claim.lease)])
    ):
        wait_for(lambda: "a result can't be written" in caplog.text)
        assert lab.posts == 1
        with outside.connect() as conn:
            conn.exec_driver_sql(f'ALTER DATABASE "{database}" ALLOW_CONNECTIONS true')
    outside.dispose()
    assert lab.get(claim.id).status is Status.RUNNING
    lab.complete(claim.id)


def test_a_post_that_breaks_in_the_worker_is_in_doubt(lab):
    """Whatever went wrong after the intent: the POST may have been written."""

    def bug():
        raise RuntimeError("a bug of ours")

    claim = lab.start()
    with pytest.raises(RuntimeError):
        submit.run(paused(lab.rt, after_check=bug), [(claim.id, claim.lease)])

    assert lab.get(claim.id).status is Status.UNCERTAIN
    assert lab.resolve(claim.id) is Outcome.ABSENT
    lab.send_again(claim.id)
    lab.complete(claim.id)


def test_a_refusal_that_names_a_task_is_none(lab):
    """SERVICE_BUSY is definite, unless a task id stands beside it: the task may exist."""
    claim = lab.start()

    class Contradicts:
        def __getattr__(self, name):
            return getattr(lab.rt.client, name)

        def submit(self, request, **options):
            answer = lab.rt.client.submit(request, **options)
            raise RateLimited(
                "busy",
                endpoint="submit",
                disposition=Disposition.RETRY,
                code="SERVICE_BUSY",
                http_status=503,
                task_id=answer.task_id,
            )

    submit.run(replace(lab.rt, client=Contradicts()), [(claim.id, claim.lease)])

    assert lab.get(claim.id).status is Status.UNCERTAIN
    assert lab.resolve(claim.id) is Outcome.ADOPTED
    assert lab.posts == 1
    lab.complete(claim.id)


def test_a_log_line_names_the_task_before_the_answer_is_stored(lab, caplog):
    """Should the database be lost, the logs tell of which generation a task is."""
    generation_id = lab.send()
    [line] = [
        record
        for record in caplog.records
        if record.name == submit.__name__ and hasattr(record, "remote_task")
    ]
    assert line.generation == str(generation_id)
    assert line.remote_task == lab.get(generation_id).remote_task_id
    lab.complete(generation_id)


def test_a_second_attempt_is_not_sent_after_a_callback_of_the_first(lab):
    """The callback shows that the first one has a task."""
    generation_id = lab.in_doubt(kind="drop_before")
    assert lab.resolve(generation_id) is Outcome.ABSENT
    lab.sql("UPDATE submit_attempts SET callback_at = now()")

    view = lab.send_again(generation_id)

    assert (view.status, view.wait_reason) == (Status.ACCEPTED, WaitReason.OPERATOR)
    assert "called back" in (view.attention or "")
    assert lab.posts == 1


def test_an_answer_that_the_tables_refuse_leaves_the_row_to_be_resolved(lab):
    """The provider names a task that another generation follows already."""
    first = lab.send("first")
    taken = lab.get(first).remote_task_id
    claim = lab.start(text_request("second"))

    class NamesAnother:
        def submit(self, request, **options):
            answer = lab.rt.client.submit(request, **options)
            return answer.model_copy(update={"task_id": taken})

    with pytest.raises(DBAPIError):
        submit.run(replace(lab.rt, client=NamesAnother()), [(claim.id, claim.lease)])

    assert lab.get(claim.id).status is Status.SUBMITTING
    assert lab.resolve(claim.id) is Outcome.ADOPTED
    assert lab.get(claim.id).remote_task_id != taken
    assert lab.posts == 2
    lab.end_tasks()


# --- refusals for now ---------------------------------------------------------------------------


def delay(lab, generation_id):
    """Return the seconds by which the latest answer delayed the generation."""
    return float(
        lab.value(
            "SELECT extract(epoch FROM g.due_at - a.decided_at) FROM generations g"
            " JOIN submit_attempts a ON a.generation_id = g.id AND a.number = g.attempt"
            " WHERE g.id = :id",
            id=generation_id,
        )
    )


def put_aside(lab, generation_id):
    """Delay a generation beyond the test, so that no later admission includes it."""
    lab.sql(
        "UPDATE generations SET due_at = now() + interval '1 hour' WHERE id = :id",
        id=generation_id,
    )


def test_a_busy_answer_delays_that_generation_alone(lab):
    lab.sim.fault("submit", "service_busy", times=1)

    refused = lab.send()

    view = lab.get(refused)
    assert view.status is Status.ACCEPTED
    assert (view.wait_reason, view.wait_detail) == (WaitReason.RETRY, {"code": "SERVICE_BUSY"})
    assert delay(lab, refused) <= rules.RETRY_BASE
    put_aside(lab, refused)
    others = [lab.send(f"dog {n}") for n in range(3)]
    assert {lab.get(i).status for i in others} == {Status.RUNNING}
    assert lab.breakers() == set()
    assert lab.posts == 4
    lab.send_again(refused)
    lab.end_tasks()


def test_the_retry_delay_grows_with_each_refusal_and_is_capped(lab, monkeypatch):
    monkeypatch.setattr(random, "uniform", lambda low, high: high)
    lab.sim.fault("submit", "service_busy")
    generation_id = lab.send()
    delays = [delay(lab, generation_id)]
    for _ in range(3):
        lab.send_again(generation_id)
        delays.append(delay(lab, generation_id))
    assert delays == pytest.approx([rules.RETRY_BASE * rules.RETRY_GROWTH**n for n in range(4)])
    lab.sql(
        "INSERT INTO submit_attempts (generation_id, number, seed, seed_drawn, fingerprint,"
        " settle_at, outcome, code) SELECT :id, n, n, true, '-', now(), 'refused', 'SERVICE_BUSY'"
        " FROM generate_series(100, 140) n",
        id=generation_id,
    )
    lab.sql("UPDATE generations SET attempt = 140")
    lab.send_again(generation_id)
    assert delay(lab, generation_id) == pytest.approx(rules.MAX_RETRY)


def test_refusals_for_longer_than_retry_for_fail_it_with_the_providers_code(lab):
    lab.rt = lab.make_runtime(retry_for=60)
    lab.sim.fault("submit", "service_busy", times=3)
    generation_id = lab.send()
    lab.send_again(generation_id)
    assert lab.get(generation_id).status is Status.ACCEPTED
    lab.sql("UPDATE submit_attempts SET started_at = started_at - interval '59 s'")
    before = lab.get(generation_id)
    assert before.status is Status.ACCEPTED
    lab.sql("UPDATE submit_attempts SET started_at = started_at - interval '5 s'")

    view = lab.send_again(generation_id)

    assert (view.status, view.error_code) == (Status.FAILED, "SERVICE_BUSY")
    assert re.match("refused 3 times in 6. s ", view.error_message or "")
    assert "SEEDANCE_RETRY_FOR is 60 s" in (view.error_message or "")
    assert lab.outcomes(generation_id) == ["refused"] * 3
    assert lab.posts == 3
    failed = lab.value("SELECT count(*) FROM submit_attempts WHERE provider_ok IS FALSE")
    assert failed == 3, "it shows the provider no better than the refusals before it"


def test_refusals_within_retry_for_are_not_limited_in_number(lab):
    lab.rt = lab.make_runtime(retry_for=3600, max_attempts=2)
    lab.sim.fault("submit", "service_busy", times=8)
    generation_id = lab.send()
    for _ in range(7):
        assert lab.send_again(generation_id).status is Status.ACCEPTED
        lab.calm()
    assert lab.send_again(generation_id).status is Status.RUNNING
    lab.complete(generation_id)


def test_throttling_stops_every_request_for_retry_after_and_lowers_the_rate(lab):
    other = lab.make_runtime(lease=4)
    lab.sim.fault("submit", "rate_limited", times=1, retry_after=20)

    generation_id = lab.send()

    flow = lab.flow()
    assert 15 < flow.resume_in <= 20
    assert flow.rate is not None
    assert flow.rate.lowered_to < lab.rt.limiter.configured
    assert delay(lab, generation_id) > 15
    for rt in (lab.rt, other):
        for request in (lambda rt=rt: rt.client.list_tasks(1, 10, retry=False), rt.limiter.wait):
            with pytest.raises(NoTokenError):
                request()
    assert (lab.posts, lab.sim.received("list")) == (1, 0)
    assert lab.value("SELECT count(*) FROM submit_attempts WHERE provider_ok IS NOT NULL") == 0
    waiting = lab.enqueue()
    assert lab.admit() == []
    assert lab.get(waiting).status is Status.ACCEPTED


def test_requests_are_sent_again_once_retry_after_has_passed(lab):
    lab.sim.fault("submit", "rate_limited", times=1, retry_after=1)
    generation_id = lab.send()
    wait_for(lambda: lab.flow().resume_in <= 0)
    assert lab.send_again(generation_id).status is Status.RUNNING
    lab.complete(generation_id)


def test_a_busy_answer_with_retry_after_is_honoured_by_all(lab):
    lab.sim.fault("submit", "service_busy", times=1, retry_after=20)
    generation_id = lab.send()
    assert 15 < lab.flow().resume_in <= 20
    assert delay(lab, generation_id) > 15
    assert lab.value("SELECT provider_ok FROM submit_attempts") is False


def test_retry_after_for_a_generation_that_was_refused_twice_delays_it_alone(lab):
    """One that is refused again and again must not stop the others each time."""
    lab.sim.fault("submit", "service_busy", times=2)
    refused = lab.send()
    lab.send_again(refused)
    lab.sim.fault("submit", "service_busy", times=1, retry_after=20)

    lab.send_again(refused)

    assert delay(lab, refused) > 15
    assert lab.flow().resume_in <= 0
    assert lab.get(lab.send("a dog")).status is Status.RUNNING
    lab.end_tasks()


def test_throttling_stops_all_also_for_a_generation_that_was_refused_twice(lab):
    """RATE_LIMIT_EXCEEDED is never about one generation."""
    lab.sim.fault("submit", "service_busy", times=2)
    refused = lab.send()
    lab.send_again(refused)
    lab.sim.fault("submit", "rate_limited", times=1, retry_after=20)
    lab.send_again(refused)
    assert lab.flow().resume_in > 15


def test_a_concurrency_refusal_lowers_the_limit_and_leaves_it_uncertain(lab):
    running = [lab.send(f"cat {n}") for n in range(3)]
    lab.sim.fault("submit", "concurrency", mode="refused", times=1)

    refused = lab.send("one too many")

    assert lab.get(refused).status is Status.UNCERTAIN
    assert lab.value("SELECT concurrency FROM flow_control") == 3
    assert (lab.flow().resume_in, lab.flow().failed_ago) == (0, None)
    assert lab.value("SELECT count(*) FROM submit_attempts WHERE NOT provider_ok") == 0
    lab.enqueue()
    assert lab.admit() == [], "as many are at work as fit"
    assert lab.resolve(refused) is Outcome.ABSENT
    lab.sim.advance(3_600)
    lab.run(lab.claim(running[0]))
    assert len(lab.admit()) == 1
    lab.end_tasks()


def test_two_refusals_of_posts_sent_at_once_lower_the_limit_once(lab):
    """Both were sent before the limit changed: the second shows nothing new."""
    for n in range(4):
        lab.send(f"cat {n}")
    lost = lab.in_doubt("one that is found to be at work")
    lab.sim.fault("submit", "concurrency", mode="refused", times=2)
    first, second = lab.start(text_request("first")), lab.start(text_request("second"))
    inner = []

    def meanwhile():
        submit.run(lab.rt, [(second.id, second.lease)])
        inner.append(lab.flow().concurrency.value)
        assert lab.resolve(lost) is Outcome.ADOPTED

    submit.run(paused(lab.rt, after_check=meanwhile), [(first.id, first.lease)])

    assert (inner, lab.flow().concurrency.value) == ([5], 5)
    lab.sim.clear_faults()
    lab.end_tasks()


# --- outages ------------------------------------------------------------------------------------


def fail(lab, number, kind="service_busy"):
    """Let that many submits of as many generations fail."""
    lab.sim.fault("submit", kind, times=number)
    ids = []
    for n in range(number):
        ids.append(lab.send(f"failing {n}"))
        put_aside(lab, ids[-1])
    lab.sim.clear_faults()
    return ids


def test_failures_in_a_row_make_an_outage(lab, caplog):
    fail(lab, OUTAGE_SAMPLE - 1)
    assert lab.flow().outage_age is None
    fail(lab, 1)
    assert lab.flow().outage_age is not None
    assert caplog.text.count("one probe at a time") == 1


def test_a_success_among_them_makes_no_outage(lab):
    fail(lab, OUTAGE_SAMPLE - 1)
    lab.send("a success")
    fail(lab, 5)
    assert lab.flow().outage_age is None
    lab.end_tasks()


@pytest.mark.parametrize("kind", ["bare", "drop_before"])
def test_ambiguous_outcomes_in_a_row_make_an_outage(lab, kind):
    fail(lab, OUTAGE_SAMPLE, kind)
    assert lab.flow().outage_age is not None


def test_an_unreachable_provider_makes_an_outage(lab):
    lab.rt = lab.make_runtime(api_base_url="http://127.0.0.1:9")
    ids = fail(lab, OUTAGE_SAMPLE)
    assert lab.flow().outage_age is not None
    assert {lab.get(i).status for i in ids} == {Status.ACCEPTED}


def probe_due(lab):
    lab.sql("UPDATE flow_control SET probe_at = now()")


def test_an_outage_sends_one_probe_and_puts_the_others_back(lab):
    claims = [lab.start(text_request(f"waits {n}")) for n in range(3)]
    fail(lab, OUTAGE_SAMPLE)
    before = lab.posts
    probe_due(lab)
    held = HeldAnswer(lab.rt, "submit")
    probe, *others = claims
    with in_background(lambda: submit.run(held.rt, [(probe.id, probe.lease)])):
        assert held.came.wait(30)
        for claim in others:
            submit.run(lab.rt, [(claim.id, claim.lease)])
        assert lab.posts == before + 1
        for claim in others:
            view = lab.get(claim.id)
            assert view.status is Status.ACCEPTED
            assert (view.wait_reason, view.wait_detail) == (WaitReason.RATE, {"cause": "outage"})
        lab.enqueue()
        assert lab.admit() == [], "the next probe is not due yet"
        held.go.set()
    assert lab.get(probe.id).status is Status.RUNNING
    lab.end_tasks()


def test_a_probe_that_succeeds_ends_the_outage_and_starts_a_ramp(lab, caplog):
    fail(lab, OUTAGE_SAMPLE)
    for n in range(20):
        lab.enqueue(text_request(f"waits {n}"))
    probe_due(lab)
    [claim] = lab.admit()

    submit.run(lab.rt, [(claim.id, claim.lease)])

    flow = lab.flow()
    assert (flow.outage_age, flow.ramp_age is not None) == (None, True)
    assert "the outage of the provider is over" in caplog.text
    assert len(lab.admit()) == rules.RAMP_START + 1, "one more for each success"
    lab.end_tasks()


def test_a_probe_that_fails_leaves_the_outage_on(lab):
    fail(lab, OUTAGE_SAMPLE)
    lab.sim.fault("submit", "service_busy", times=1)
    probe_due(lab)
    claim = lab.start(text_request("the probe"))
    submit.run(lab.rt, [(claim.id, claim.lease)])
    flow = lab.flow()
    assert flow.outage_age is not None
    assert 0 < flow.probe_in <= rules.MIN_PROBE
    assert lab.get(claim.id).status is Status.ACCEPTED


def test_a_refusal_of_the_work_itself_ends_an_outage(lab):
    """The provider works: it read the request."""
    fail(lab, OUTAGE_SAMPLE)
    probe_due(lab)
    claim = lab.start(text_request("a cat [sim: refuse=CONTENT_MODERATION_FAILED]"))
    submit.run(lab.rt, [(claim.id, claim.lease)])
    assert lab.get(claim.id).status is Status.FAILED
    assert lab.flow().outage_age is None


def test_an_outage_that_begins_after_the_intent_stops_the_post(lab):
    claim = lab.start()
    before = []

    def begin():
        fail(lab, OUTAGE_SAMPLE)
        before.append(lab.posts)

    submit.run(paused(lab.rt, before_check=begin), [(claim.id, claim.lease)])

    assert [lab.posts] == before
    view = lab.get(claim.id)
    assert (view.status, view.wait_detail) == (Status.ACCEPTED, {"cause": "outage"})
    assert lab.outcomes(claim.id) == ["not_sent"]


# --- late answers -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "meanwhile", ["uncertain", "released", "resolved", "sent again", "cancelled"]
)
def test_a_late_answer_after_the_lease_was_lost(lab, meanwhile):
    lab.sim.configure(list_lag=1_000)
    if meanwhile == "released":
        lab.rt.membership.id = register_dead_worker(lab)
    claim = lab.start()
    answered = threading.Event()
    may_answer = threading.Event()

    class Late:
        def __getattr__(self, name):
            return getattr(lab.rt.client, name)

        def submit(self, request, **options):
            answer = lab.rt.client.submit(request, **options)
            answered.set()
            assert may_answer.wait(10)
            return answer

    slow = replace(lab.rt, client=Late())
    with in_background(lambda: submit.run(slow, [(claim.id, claim.lease)])):
        assert answered.wait(10)
        if meanwhile == "uncertain":
            lab.run(lab.claim(claim.id))  # its lease has ended; not settled yet
            assert lab.get(claim.id).status is Status.UNCERTAIN
        elif meanwhile == "released":  # another worker took this one for dead
            with lab.rt.engine.begin() as conn:
                workers.release_dead(conn, None)
            assert lab.get(claim.id).status is Status.UNCERTAIN
        else:
            if meanwhile == "cancelled":
                ask_to_cancel(lab, claim.id)
            assert lab.resolve(claim.id) is Outcome.ABSENT
            if meanwhile == "sent again":
                lab.send_again(claim.id)
        may_answer.set()

    view = lab.get(claim.id)
    first = lab.submitted_tasks()[0]["task_id"]
    if meanwhile in ("uncertain", "released", "resolved"):
        assert (view.status, view.remote_task_id) == (Status.RUNNING, first)
        assert lab.posts == 1
    else:
        lab.second = 1
        assert [stray.task_id for stray in lab.strays(claim.id)] == [first]
        assert view.status is (Status.RUNNING if meanwhile == "sent again" else Status.CANCELLED)
    lab.end_tasks()


# --- helpers ------------------------------------------------------------------------------------


def ask_to_cancel(lab, generation_id):
    with lab.rt.engine.begin() as conn:
        producer.cancel(generation_id, session=conn)


def admitted_all_the_same(lab, request):
    """A generation past admission, lease 1, although another has its fingerprint."""
    generation_id = lab.enqueue(request)
    with lab.rt.engine.begin() as conn:
        [moved] = transitions.admit(conn, [generation_id], lease_seconds=10)
    assert moved.lease == 1
    return generation_id


@contextlib.contextmanager
def losing_commits(database_url):
    """A way to the database that can lose the confirmation of a COMMIT.

    Yields the address, and a function that arms it: the next COMMIT after a statement with that
    text goes through, and both connections are cut before its answer comes back.
    """
    url = make_url(database_url)
    options = conninfo_to_dict(
        url.set(drivername="postgresql").render_as_string(hide_password=False)
    )
    host, port = options.get("host") or "127.0.0.1", int(options.get("port") or 5432)
    armed: list[bytes] = []
    sockets: list[socket.socket] = []
    listener = socket.create_server(("127.0.0.1", 0))

    def connect():
        if str(host).startswith("/"):
            upstream = socket.socket(socket.AF_UNIX)
            upstream.connect(f"{host}/.s.PGSQL.{port}")
            return upstream
        return socket.create_connection((host, port))

    def forwards(client, upstream, seen):
        with contextlib.suppress(OSError):
            while data := client.recv(65536):
                seen["armed"] |= bool(armed) and armed[0] in data
                seen["cut"] = seen["armed"] and b"COMMIT" in data
                upstream.sendall(data)
        close(client, upstream)

    def backwards(client, upstream, seen):
        with contextlib.suppress(OSError):
            while data := upstream.recv(65536):
                if seen["cut"]:
                    break  # the COMMIT was answered: it is through
                client.sendall(data)
        close(client, upstream)

    def close(*ends):
        for end in ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def serve():
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                pair = (client, connect(), {"armed": False, "cut": False})
                sockets.extend(pair[:2])
                threading.Thread(target=forwards, args=pair, daemon=True).start()
                threading.Thread(target=backwards, args=pair, daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    through = url.set(host="127.0.0.1", port=listener.getsockname()[1])
    query = {k: v for k, v in through.query.items() if k not in ("host", "port")}
    try:
        yield (
            through.set(query=query).render_as_string(hide_password=False),
            lambda statement: armed.append(statement.encode()),
        )
    finally:
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        close(*sockets)
        for end in sockets:
            end.close()


def test_time_without_credits_does_not_count_towards_retry_for(lab):
    lab.rt = lab.make_runtime(retry_for=3600.0)
    lab.sim.fault("submit", "error", code="INSUFFICIENT_CREDIT", times=1)
    generation_id = lab.send()
    assert lab.get(generation_id).wait_reason is WaitReason.BREAKER
    lab.sql("UPDATE submit_attempts SET started_at = started_at - interval '2 d'")
    lab.sql("DELETE FROM breakers")
    lab.sim.fault("submit", "service_busy", times=1)
    lab.send_again(generation_id)
    view = lab.get(generation_id)
    assert (view.status, view.wait_reason) == (Status.ACCEPTED, WaitReason.RETRY)
    assert lab.send_again(generation_id).status is Status.RUNNING
    lab.end_tasks()


def test_one_lost_answer_long_after_the_first_attempt_is_submitted_again(lab):
    lab.rt = lab.make_runtime(retry_for=3600.0)
    lab.sim.fault("submit", "service_busy", times=1)
    generation_id = lab.send()
    lab.sql("UPDATE submit_attempts SET started_at = started_at - interval '2 d'")
    lab.sim.fault("submit", "drop_before", times=1)
    assert lab.send_again(generation_id).status is Status.UNCERTAIN
    lab.resolve(generation_id)
    assert lab.get(generation_id).status is Status.ACCEPTED
    assert lab.send_again(generation_id).status is Status.RUNNING
    lab.end_tasks()
