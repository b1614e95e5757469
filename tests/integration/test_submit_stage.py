"""Submit: intent, one POST, its outcome; with pauses, crashes and rivals at each place between."""

import contextlib
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
from models import gates, schedule, transitions
from models.database import make_engine
from models.gates import GateName
from models.lifecycle import Status
from models.marks import SEED_BOUND
from models.wait_reasons import WaitReason
from tests.integration.conftest import text_request
from tests.integration.invariants import HeldAnswer, in_background, laboratory, paused
from tests.waiting import wait_for
from worker import producer
from worker.limiter import Limiter
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

    due, settle = lab.sql(
        "SELECT extract(epoch FROM g.due_at - a.started_at) AS due,"
        " extract(epoch FROM a.settle_at - a.started_at) AS settle"
        " FROM generations g JOIN submit_attempts a ON a.generation_id = g.id"
    )[0]
    assert float(settle) == pytest.approx(10 + 0.5 + 0.3 + 0.2)
    assert due == settle
    lab.resolve(generation_id)
    lab.complete(generation_id)


def test_nothing_is_due_between_intent_and_settling(lab):
    generation_id = lab.in_doubt()
    assert lab.due() == []
    with lab.rt.engine.connect() as conn:
        assert (schedule.next_due_in(conn) or 0) > 1
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


def test_a_gate_that_closed_since_the_admission_holds_it(lab):
    claim = lab.start()
    lab.sql("INSERT INTO gates (name, closed_at, reason) VALUES ('api_key', now(), 'test')")

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


@pytest.mark.parametrize("gate", ["api_key", "credit", "backoff"])
def test_a_gate_that_closes_after_the_intent_stops_it(lab, gate):
    claim = lab.start()

    def close():
        lab.sql("INSERT INTO gates (name, closed_at, reason) VALUES (:n, now(), 'test')", n=gate)

    submit.run(paused(lab.rt, before_check=close), [(claim.id, claim.lease)])

    assert lab.get(claim.id).status is Status.ACCEPTED
    view, wait = lab.get(claim.id), gates.wait_for(GateName(gate))
    assert (view.wait_reason, view.wait_detail) == (wait.reason, wait.detail)
    assert lab.posts == 0


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
    lab.sql("INSERT INTO gates (name, closed_at, reason) VALUES ('api_key', now(), 'test')")
    submit.run(lab.rt, [(claim.id, claim.lease)])
    lab.open_gates()
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


# --- late answers -------------------------------------------------------------------------------


@pytest.mark.parametrize("meanwhile", ["uncertain", "resolved", "sent again", "cancelled"])
def test_a_late_answer_after_the_lease_was_lost(lab, meanwhile):
    lab.sim.configure(list_lag=1_000)
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
        else:
            if meanwhile == "cancelled":
                ask_to_cancel(lab, claim.id)
            assert lab.resolve(claim.id) is Outcome.ABSENT
            if meanwhile == "sent again":
                lab.send_again(claim.id)
        may_answer.set()

    view = lab.get(claim.id)
    first = lab.submitted_tasks()[0]["task_id"]
    if meanwhile in ("uncertain", "resolved"):
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
