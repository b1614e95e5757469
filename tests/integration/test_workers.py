"""Dead workers: how their death is noticed, and what of their claims is released."""

import contextlib
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
from sqlalchemy import Engine, text

from models import schedule, transitions, workers
from models.database import direct_dsn, make_engine
from models.lifecycle import Status
from models.wait_reasons import retry
from models.workers import Dead
from tests.integration import rows
from tests.integration.invariants import laboratory
from tests.waiting import wait_for
from worker.dispatcher import Broker, Dispatcher
from worker.stages import common


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    engine = make_engine(database_url, pool_size=12)
    yield engine
    engine.dispose()


class Session:
    """A worker's session: it is dead once this is closed."""

    def __init__(self, url: str, name: str, *, locked: bool) -> None:
        self._conn = psycopg.connect(direct_dsn(url), autocommit=True)
        self.id = workers.register(self._conn, name, locked=locked)
        self.name = name

    def close(self) -> None:
        self._conn.close()


Start = Callable[..., Session]


@pytest.fixture
def start(database_url: str) -> Iterator[Start]:
    """Start a worker; all are closed at the end."""
    with contextlib.ExitStack() as sessions:

        def start(name: str = "worker", *, locked: bool = True) -> Session:
            session = Session(database_url, name, locked=locked)
            sessions.callback(session.close)
            return session

        yield start


def release(engine: Engine, own_id: int | None = None) -> list[Dead]:
    with engine.begin() as conn:
        return workers.release_dead(conn, own_id)


def until_dead(engine: Engine, own_id: int | None = None) -> list[Dead]:
    """What is released once the server has noticed that a session is closed."""
    found: list[Dead] = []
    wait_for(lambda: found.extend(release(engine, own_id)) or found, "a dead worker is found")
    return found


def claimed(engine: Engine, status: Status, worker: Session | None, **values: Any) -> uuid.UUID:
    """A generation whose claim lasts another hour, begun by this worker if there is one.

    One that is being submitted is due when its attempt has settled, as its intent says.
    """
    lasts = "50 min" if status is Status.SUBMITTING else "1 h"
    with engine.begin() as conn:
        generation_id = rows.make(conn, status, **values)
        conn.execute(
            text(
                "UPDATE generations SET due_at = now() + interval '1 h',"
                " leased_until = now() + CAST(:lasts AS interval), claimed_by = :worker"
                " WHERE id = :id"
            ),
            {"id": generation_id, "lasts": lasts, "worker": None if worker is None else worker.id},
        )
    return generation_id


def row(engine: Engine, generation_id: uuid.UUID) -> Any:
    with engine.connect() as conn:
        return rows.read(conn, generation_id)


def is_due(engine: Engine, generation_id: uuid.UUID) -> bool:
    with engine.connect() as conn:
        return bool(
            conn.execute(
                text("SELECT due_at <= now() FROM generations WHERE id = :id"),
                {"id": generation_id},
            ).scalar_one()
        )


def names(engine: Engine) -> list[str]:
    with engine.connect() as conn:
        return list(conn.execute(text("SELECT name FROM workers ORDER BY id")).scalars())


# --- the witness --------------------------------------------------------------------------------


def test_living_workers_are_not_released(engine, start):
    start("a")
    start("b", locked=False)
    assert release(engine) == []
    assert names(engine) == ["a", "b"]


def test_closed_session_is_noticed_and_its_row_deleted(engine, start):
    start("alive")
    dead = start("dead")
    dead.close()
    [found] = until_dead(engine)
    assert (found.name, found.released, found.uncertain) == ("dead", 0, 0)
    assert names(engine) == ["alive"]
    assert release(engine) == []


def test_terminated_session_counts_as_death(engine, start):
    """The server lost the connection; the process itself may live on."""
    start("cut off")
    with engine.begin() as conn:
        conn.execute(
            text(
                "SELECT pg_terminate_backend(pid) FROM pg_locks"
                " WHERE locktype = 'advisory' AND classid = :class"
            ),
            {"class": workers._LOCK_CLASS},
        )
    assert [found.name for found in until_dead(engine)] == ["cut off"]


def test_long_silence_is_no_death_while_the_session_is_open(engine, start):
    start("silent")
    with engine.begin() as conn:
        conn.execute(text("UPDATE workers SET seen_at = now() - interval '1 h'"))
    assert release(engine) == []


@pytest.mark.parametrize(
    ("silent", "dead"),
    [(workers.HEARTBEAT_LOST - 1, False), (workers.HEARTBEAT_LOST + 1, True)],
)
def test_heartbeat_is_the_witness_behind_a_pooler(engine, start, silent, dead):
    start("pooled", locked=False)
    with engine.begin() as conn:
        conn.execute(
            text("UPDATE workers SET seen_at = now() - make_interval(secs => :s)"), {"s": silent}
        )
    assert [found.name for found in release(engine)] == ["pooled"] * dead


def test_heartbeat_keeps_a_worker_behind_a_pooler_alive(engine, start):
    worker = start("pooled", locked=False)
    with engine.begin() as conn:
        conn.execute(text("UPDATE workers SET seen_at = now() - interval '1 h'"))
    with engine.begin() as conn:
        assert workers.heartbeat(conn, worker.id)
    assert release(engine) == []


def test_worker_never_takes_itself_for_dead(engine, start):
    own = start("own", locked=False)
    with engine.begin() as conn:
        conn.execute(text("UPDATE workers SET seen_at = now() - interval '1 h'"))
    assert release(engine, own.id) == []
    assert [found.name for found in release(engine, None)] == ["own"]


def test_heartbeat_of_a_worker_taken_for_dead_returns_false(engine, start):
    worker = start("stalled", locked=False)
    with engine.begin() as conn:
        conn.execute(text("UPDATE workers SET seen_at = now() - interval '1 h'"))
    release(engine)
    with engine.begin() as conn:
        assert not workers.heartbeat(conn, worker.id)


def test_worker_that_stops_in_order_leaves_its_claims_alone(engine, start):
    worker = start("stops")
    generation_id = claimed(engine, Status.RUNNING, worker)
    before = row(engine, generation_id)
    with engine.begin() as conn:
        workers.deregister(conn, worker.id)
    worker.close()
    assert release(engine) == []
    assert row(engine, generation_id) == before


@pytest.mark.parametrize("first_id", [2**31 - 2, 2**32 - 2, 2**33 + 5])
def test_ids_beyond_the_room_of_a_lock_have_one_each(engine, start, first_id):
    with engine.begin() as conn:
        conn.execute(
            text("SELECT setval(pg_get_serial_sequence('workers', 'id'), :id)"), {"id": first_id}
        )
    started = [start(str(n)) for n in range(4)]
    assert release(engine) == []
    started[2].close()
    assert [found.name for found in until_dead(engine)] == ["2"]


def test_workers_of_another_database_do_not_interfere(engine, start, databases):
    """Advisory locks are a database's own: equal ids there and here are two workers."""
    here = start("here")
    with databases.lend() as url:
        there = Session(url, "there", locked=True)
        assert there.id == here.id
        here.close()
        assert [found.name for found in until_dead(engine)] == ["here"]
        there.close()


# --- what is released ---------------------------------------------------------------------------


@pytest.mark.parametrize("status", [Status.UPLOADING, Status.RUNNING, Status.UNCERTAIN])
def test_begun_claims_of_a_dead_worker_are_released_under_a_raised_token(engine, start, status):
    worker = start()
    generation_id = claimed(engine, status, worker)
    before = row(engine, generation_id)
    worker.close()
    [found] = until_dead(engine)
    assert (found.released, found.uncertain) == (1, 0)
    after = row(engine, generation_id)
    assert (after.status, after.lease) == (before.status, before.lease + 1)
    assert after.leased_until is None
    assert is_due(engine, generation_id)
    with engine.begin() as conn:
        assert [c.id for c in schedule.claim_due(conn, 10, lease_seconds=30)] == [generation_id]


def test_claims_that_no_worker_has_begun_are_released_as_well(engine, start):
    """Their messages may have died with the worker that had fetched them."""
    generation_id = claimed(engine, Status.RUNNING, None)
    start("alive")
    start("dead").close()
    [found] = until_dead(engine)
    assert found.released == 1
    assert is_due(engine, generation_id)


def test_claims_that_no_worker_has_begun_stay_while_no_worker_dies(engine, start):
    start("alive")
    generation_id = claimed(engine, Status.RUNNING, None)
    assert release(engine) == []
    assert not is_due(engine, generation_id)


def test_begun_claims_of_a_living_worker_stay(engine, start):
    alive, dead = start("alive"), start("dead")
    ids = [claimed(engine, status, alive) for status in (Status.RUNNING, Status.UPLOADING)]
    submitting = claimed(engine, Status.SUBMITTING, alive)
    before = [row(engine, i) for i in [*ids, submitting]]
    dead.close()
    [found] = until_dead(engine)
    assert (found.released, found.uncertain) == (0, 0)
    assert [row(engine, i) for i in [*ids, submitting]] == before


def test_generations_that_are_scheduled_are_untouched(engine, start):
    """What a step has scheduled is due when that says, whoever did it last."""
    worker = start()
    generation_id = claimed(engine, Status.RUNNING, worker)
    with engine.begin() as conn:
        conn.execute(
            text("UPDATE generations SET due_at = now() + interval '30 min' WHERE id = :id"),
            {"id": generation_id},
        )
        waiting = rows.make(conn, Status.ACCEPTED)
        ended = rows.make(conn, Status.COMPLETED)
    before = [row(engine, i) for i in (generation_id, waiting, ended)]
    worker.close()
    [found] = until_dead(engine)
    assert found.released == 0
    assert [row(engine, i) for i in (generation_id, waiting, ended)] == before


def test_submitting_generation_of_a_dead_worker_becomes_uncertain(engine, start):
    """Its POST may be on the wire: it is never released to be sent again."""
    worker = start()
    generation_id = claimed(engine, Status.SUBMITTING, worker)
    worker.close()
    [found] = until_dead(engine)
    assert (found.released, found.uncertain) == (0, 1)
    after = row(engine, generation_id)
    assert after.status == Status.UNCERTAIN
    with engine.connect() as conn:
        assert rows.attempts(conn, generation_id) == [(1, "unknown")]
        assert [event for event, *_ in rows.events(conn, generation_id)] == ["doubt"]


def test_answer_of_a_worker_that_was_only_cut_off_still_counts(engine, start):
    worker = start()
    generation_id = claimed(engine, Status.SUBMITTING, worker)
    worker.close()
    until_dead(engine)
    with engine.begin() as conn:
        answer = transitions.Answered(generation_id, 1, "task-late", "pending", None, 60.0)
        assert transitions.submitted(conn, answer) is not None
    assert row(engine, generation_id).status == Status.RUNNING


def test_step_of_a_worker_that_was_only_cut_off_changes_nothing(engine, start):
    worker = start()
    generation_id = claimed(engine, Status.UPLOADING, worker)
    token = row(engine, generation_id).lease
    worker.close()
    until_dead(engine)
    with engine.begin() as conn:
        moved = transitions.put_back(conn, generation_id, token, wait=retry("a test"), seconds=1.0)
    assert moved is None
    assert not common.renew(engine, generation_id, token, 30.0)


def test_several_dead_workers_are_released_together(engine, start):
    dead = [start(name) for name in ("one", "two")]
    begun = [claimed(engine, Status.RUNNING, worker) for worker in dead]
    for worker in dead:
        worker.close()
    wait_for(lambda: _free_locks(engine), "both sessions have ended")
    found = release(engine)
    assert {one.name for one in found} == {"one", "two"}
    assert sum(one.released for one in found) == 2
    assert all(is_due(engine, generation_id) for generation_id in begun)


def _free_locks(engine: Engine) -> bool:
    with engine.connect() as conn:
        held = text("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND classid = :c")
        return not conn.execute(held, {"c": workers._LOCK_CLASS}).scalar_one()


def test_two_reapers_at_once_release_once(engine, start):
    worker = start()
    generation_id = claimed(engine, Status.RUNNING, worker)
    submitting = claimed(engine, Status.SUBMITTING, worker)
    before = row(engine, generation_id)
    worker.close()
    wait_for(lambda: _free_locks(engine), "the session has ended")
    barrier = threading.Barrier(6)

    def reap(_: int) -> list[Dead]:
        barrier.wait(10)
        return release(engine)

    with ThreadPoolExecutor(6) as threads:
        found = [dead for one in threads.map(reap, range(6)) for dead in one]
    assert [(dead.released, dead.uncertain) for dead in found] == [(1, 1)]
    assert row(engine, generation_id).lease == before.lease + 1
    with engine.connect() as conn:
        assert len(rows.events(conn, submitting)) == 1


def test_row_that_another_transaction_changes_does_not_stop_the_release(engine, start):
    worker = start()
    locked, free = (claimed(engine, Status.RUNNING, worker) for _ in range(2))
    worker.close()
    with engine.begin() as other:
        other.execute(text("SELECT FROM generations WHERE id = :id FOR UPDATE"), {"id": locked})
        [found] = until_dead(engine)
    assert found.released == 1
    assert is_due(engine, free)


def test_pass_over_the_task_list_of_a_dead_worker_is_ended(engine, start):
    worker = start()
    with engine.begin() as conn:
        conn.execute(
            text(
                "INSERT INTO observers (name, engaged, lease, held_until, next_at)"
                " VALUES ('tasks', true, 5, now() + interval '1 h', now() + interval '1 h')"
            )
        )
    worker.close()
    until_dead(engine)
    with engine.connect() as conn:
        query = "SELECT held_until <= now(), next_at <= now() FROM observers"
        assert tuple(conn.execute(text(query)).one()) == (True, True)


def test_pass_over_the_task_list_that_has_ended_keeps_its_next_time(engine, start):
    worker = start()
    with engine.begin() as conn:
        conn.execute(
            text(
                "INSERT INTO observers (name, engaged, lease, held_until, next_at, ended_at)"
                " VALUES ('tasks', true, 5, now() + interval '1 h', now() + interval '1 h', now())"
            )
        )
    worker.close()
    until_dead(engine)
    with engine.connect() as conn:
        query = "SELECT held_until > now(), next_at > now() FROM observers"
        assert tuple(conn.execute(text(query)).one()) == (True, True)


# --- what is shown ------------------------------------------------------------------------------


def test_workers_with_a_recent_heartbeat_are_counted(engine, start):
    start("a")
    start("b")
    with engine.begin() as conn:
        conn.execute(text("UPDATE workers SET seen_at = now() - interval '2 min' WHERE name = 'b'"))
        assert workers.alive(conn) == 1


def test_begun_claim_has_the_id_of_its_worker(engine, start):
    worker = start("host:17")
    mine, free = claimed(engine, Status.RUNNING, worker), claimed(engine, Status.RUNNING, None)
    with engine.connect() as conn:
        holder = {"mine": mine, "free": free}
        found = conn.execute(
            text("SELECT id, claimed_by IS NOT NULL FROM generations WHERE id IN (:mine, :free)"),
            holder,
        )
        assert dict(map(tuple, found)) == {mine: True, free: False}


# --- processes ----------------------------------------------------------------------------------

_CHILD = """
import sys, time, uuid
import psycopg
from models import workers
from models.database import direct_dsn
conn = psycopg.connect(direct_dsn(sys.argv[1]), autocommit=True)
print(workers.register(conn, "child", locked=True), flush=True)
time.sleep(600)
"""


def test_killed_process_is_noticed_within_seconds(engine, database_url):
    child = subprocess.Popen(
        [sys.executable, "-c", _CHILD, database_url], stdout=subprocess.PIPE, text=True
    )
    try:
        assert child.stdout is not None
        worker_id = int(child.stdout.readline())
        generation_id = claimed(engine, Status.UPLOADING, None)
        with engine.begin() as conn:
            conn.execute(text("UPDATE generations SET claimed_by = :w"), {"w": worker_id})
        assert release(engine) == []
        child.send_signal(signal.SIGKILL)
        [found] = until_dead(engine)
    finally:
        child.kill()
        child.wait(10)
        if child.stdout is not None:
            child.stdout.close()
    assert (found.name, found.released) == ("child", 1)
    assert is_due(engine, generation_id)


@contextlib.contextmanager
def running(rt) -> Iterator[Dispatcher]:
    """A dispatcher that publishes nothing, in a thread."""
    broker = Broker(
        publish=lambda stage, claims: None,
        probe=lambda: None,
        depth=lambda: 0,
        observe=lambda lease: None,
        publish_side=lambda kind, claim: None,
        side_depth=lambda: 0,
    )
    dispatcher = Dispatcher(rt, broker, slots=4)
    thread = threading.Thread(target=dispatcher.run, daemon=True)
    thread.start()
    try:
        yield dispatcher
    finally:
        dispatcher.stop()
        thread.join(20)
        assert not thread.is_alive()


def test_dispatcher_registers_its_worker_and_removes_it_at_the_end(make_runtime, sim, caplog):
    with laboratory(make_runtime, sim, caplog) as lab:
        with running(lab.rt):
            wait_for(lambda: lab.rt.membership.id is not None, "the worker is registered")
            assert names(lab.rt.engine) != []
        assert names(lab.rt.engine) == []
        assert lab.rt.membership.id is None


def test_begun_step_records_its_worker(make_runtime, sim, caplog):
    with laboratory(make_runtime, sim, caplog) as lab:
        claim = lab.start()  # before there is a dispatcher that would admit it itself
        with running(lab.rt):
            wait_for(lambda: lab.rt.membership.id is not None, "the worker is registered")
            assert common.begin(lab.rt, claim.id, claim.lease) is not None
            claimed_by = lab.value(f"SELECT claimed_by FROM generations WHERE id = '{claim.id}'")
            assert claimed_by == lab.rt.membership.id


def test_dispatcher_that_was_taken_for_dead_registers_anew(make_runtime, sim, caplog, monkeypatch):
    monkeypatch.setattr(workers, "HEARTBEAT_EVERY", 0.05)
    with laboratory(make_runtime, sim, caplog) as lab, running(lab.rt):
        wait_for(lambda: lab.rt.membership.id is not None, "the worker is registered")
        first = lab.rt.membership.id
        lab.sql("DELETE FROM workers")
        wait_for(lambda: lab.rt.membership.id not in (None, first), "it registers anew")
        assert len(names(lab.rt.engine)) == 1
    assert any("took this one for dead" in record.getMessage() for record in caplog.records)


def test_dispatcher_releases_the_claims_of_a_dead_worker(make_runtime, sim, caplog, database_url):
    with laboratory(make_runtime, sim, caplog) as lab:
        dead = Session(database_url, "dead", locked=True)
        claim = lab.start()
        lab.sql(
            "UPDATE generations SET claimed_by = :w, due_at = now() + interval '1 h',"
            " leased_until = now() + interval '1 h'",
            w=dead.id,
        )
        with running(lab.rt):
            dead.close()
            wait_for(lambda: lab.get(claim.id) and _token(lab, claim.id) > claim.lease, "release")
        assert any("worker dead is dead: 1 claims" in r.getMessage() for r in caplog.records)


def _token(lab, generation_id: uuid.UUID) -> int:
    return int(lab.value("SELECT lease FROM generations WHERE id = :id", id=generation_id))


def test_row_that_another_transaction_holds_does_not_delay_the_release_of_the_others(engine, start):
    """It is released once it is free: the dead worker stays registered until then."""
    dead = start("host:1")
    held = claimed(engine, Status.SUBMITTING, dead)
    other = claimed(engine, Status.RUNNING, dead)
    dead.close()
    with engine.begin() as producer:
        producer.execute(text("SELECT id FROM generations WHERE id = :id FOR UPDATE"), {"id": held})
        with engine.begin() as conn:
            conn.execute(text("SET LOCAL lock_timeout = '1s'"))
            assert workers.release_dead(conn, None)
        with engine.connect() as conn:
            due = "SELECT due_at <= now() FROM generations WHERE id = :id"
            assert conn.execute(text(due), {"id": other}).scalar_one()
    with engine.begin() as conn:
        assert workers.release_dead(conn, None)
        assert workers.release_dead(conn, None) == []
        status = conn.execute(
            text("SELECT status FROM generations WHERE id = :id"), {"id": held}
        ).scalar_one()
    assert status == Status.UNCERTAIN
