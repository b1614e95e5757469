"""The dispatcher, with a broker in the process that runs, drops, repeats or keeps messages."""

import contextlib
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import psycopg
import pytest
import redis
from celery import Celery
from sqlalchemy import text
from sqlalchemy.exc import ProgrammingError

from models import schedule, workers
from models.database import direct_dsn
from models.lifecycle import Status
from models.schedule import Stage
from tests.brokers import broker_with
from tests.integration.conftest import text_request
from tests.integration.invariants import laboratory
from tests.waiting import wait_for as until
from worker import bootstep, runtime, side_work
from worker.dispatcher import Dispatcher
from worker.side_slots import SideSlots
from worker.side_work import SideClaim, SideWork
from worker.stages import common, observe, poll, resolve, submit, upload
from worker.upkeep import balance


@pytest.fixture
def lab(make_runtime, sim, caplog):
    with laboratory(make_runtime, sim, caplog) as lab:
        yield lab


class Messages:
    """An in-process broker. `fate` says for each message how often it is delivered."""

    def __init__(self, lab, fate=lambda stage, claims: 1, waiting=0):
        self.lab, self.fate, self.waiting = lab, fate, waiting
        self.published = []
        self.probes = 0
        self.side = []
        self.side_waiting = 0
        self.observed = []

    def broker(self):
        return broker_with(
            publish=self.publish,
            probe=self.probe,
            depth=lambda: self.waiting,
            observe=self.observe,
            publish_side=self.publish_side,
            side_depth=lambda: self.side_waiting,
        )

    def observe(self, lease):
        self.observed.append(lease)
        observe.run(self.lab.rt, lease)

    def publish_side(self, kind, claim):
        self.side.append(claim)
        side_work.run(self.lab.rt, kind, claim)

    def publish(self, stage, claims):
        self.published.append((stage, tuple(claims)))
        for _ in range(self.fate(stage, claims)):
            self.deliver(stage, claims)

    def deliver(self, stage, claims):
        rt = self.lab.rt
        match stage:
            case Stage.UPLOAD:
                upload.run(rt, claims[0].id, claims[0].lease)
            case Stage.SUBMIT:
                submit.run(rt, [(claims[0].id, claims[0].lease)])
            case Stage.RESOLVE:
                resolve.run(rt, [(claim.id, claim.lease) for claim in claims])
            case Stage.POLL:
                poll.run(rt, claims[0].id, claims[0].lease)

    def probe(self):
        self.probes += 1
        balance.run(self.lab.rt)

    def stages(self):
        return [stage for stage, _ in self.published]


def dispatcher(lab, messages, slots=8, side_work=()):
    return Dispatcher(lab.rt, messages.broker(), slots=slots, side_work=side_work)


@contextlib.contextmanager
def running(*dispatchers):
    threads = [threading.Thread(target=one.run, daemon=True) for one in dispatchers]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        for one in dispatchers:
            one.stop()
        for one, thread in zip(dispatchers, threads, strict=True):
            _joined(one, thread)


def _joined(one, thread):
    """Wait for the loop's end. It is woken until then: its tick may be long."""
    deadline = time.monotonic() + 15
    while thread.is_alive():
        assert time.monotonic() < deadline
        with one._rt.engine.begin() as conn:
            schedule.wake(conn)
        thread.join(0.1)


def standing(lab, generation_id):
    """Everything but when it was looked at last, and when it will be again."""
    view = replace(lab.get(generation_id), due_at=None, observed_at=None)
    return view, lab.history(generation_id), lab.posts


def all_ended(lab, ids):
    return all(lab.get(generation_id).ended for generation_id in ids)


def test_many_from_enqueue_to_their_end(lab):
    lab.sim.configure(speed=500)
    ids = [lab.enqueue(text_request(f"cat {n}")) for n in range(12)]
    with running(dispatcher(lab, Messages(lab))):
        until(lambda: all_ended(lab, ids))
    assert {lab.get(i).status for i in ids} == {Status.COMPLETED}
    assert lab.posts == 12


@pytest.mark.parametrize("stage", list(Stage))
def test_a_lost_message_is_due_again_when_its_lease_ends(lab, stage, tmp_path):
    lost = []

    def fate(this, claims):
        if this is stage and not lost:
            lost.append(tuple(claims))
            return 0
        return 1

    picture = tmp_path / "a.png"
    picture.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(64))
    lab.rt = lab.make_runtime(media_roots=str(tmp_path), poll_min=0.05, poll_max=0.1)
    if stage is Stage.RESOLVE:
        lab.sim.fault("submit", "lost", times=1)
    content = [{"type": "text", "text": "a cat"}]
    if stage is Stage.UPLOAD:
        content.append({"type": "image_url", "image_url": "path:a.png"})
    generation_id = lab.enqueue({"content": content})
    one = dispatcher(lab, messages := Messages(lab, fate))
    lab.sim.configure(speed=10_000)
    deadline = time.monotonic() + 20
    while not lab.get(generation_id).ended:
        assert time.monotonic() < deadline
        one.tick()
        if lost and messages.published[-1][1] == lost[0]:
            assert lab.due() == [], "under its lease it is nobody else's"
        lab.settle(generation_id)
        lab.due_now(generation_id)

    [claims] = lost
    again = next(c for s, c in messages.published if s is stage and c != claims)
    assert again[0].lease > claims[0].lease
    assert lab.get(generation_id).status is Status.COMPLETED
    assert lab.posts == 1


def test_every_message_twice_with_the_same_lease(lab):
    lab.sim.configure(speed=500)
    lab.sim.fault("submit", "lost", times=2)
    ids = [lab.enqueue(text_request(f"cat {n}")) for n in range(6)]
    with running(dispatcher(lab, messages := Messages(lab, lambda *_: 2))):
        until(lambda: Counter(lab.get(i).status for i in ids)[Status.UNCERTAIN] == 2)
        for generation_id in ids:
            lab.settle(generation_id)
            lab.due_now(generation_id)
        until(lambda: all_ended(lab, ids))
    assert {Stage.SUBMIT, Stage.RESOLVE, Stage.POLL} <= set(messages.stages())
    assert lab.posts == 6
    assert {lab.get(i).status for i in ids} == {Status.COMPLETED}


def test_old_messages_replayed_at_every_step_change_nothing(lab):
    lab.sim.fault("submit", "drop_before", times=1)
    generation_id = lab.enqueue()
    one = dispatcher(lab, messages := Messages(lab))
    steps = 0
    while not lab.get(generation_id).ended:
        lab.settle(generation_id)
        lab.due_now(generation_id)
        one.tick()
        before = standing(lab, generation_id)
        for stage, claims in list(messages.published):
            messages.deliver(stage, claims)
        assert standing(lab, generation_id) == before
        steps += 1
        if steps == 4:
            lab.end_tasks()
        assert steps < 20
    assert lab.posts == 2
    assert lab.get(generation_id).status is Status.COMPLETED


def test_a_publish_that_fails_gives_the_claims_back(lab):
    lab.rt = lab.make_runtime(lease=60)
    ids = [lab.enqueue(text_request(f"cat {n}")) for n in range(3)]
    messages = Messages(lab)
    published = []

    def fails_at_the_second(stage, claims):
        if published:
            raise ConnectionError("the broker is away")
        published.append(claims)
        messages.deliver(stage, claims)

    broker = replace(messages.broker(), publish=fails_at_the_second)
    with pytest.raises(ConnectionError):
        Dispatcher(lab.rt, broker, slots=8).tick()

    statuses = Counter(lab.get(i).status for i in ids)
    assert statuses == {Status.RUNNING: 1, Status.UPLOADING: 2}
    waits = lab.sql(
        "SELECT extract(epoch FROM due_at - now()) AS s, tries FROM generations"
        " WHERE status = 'uploading'"
    )
    assert all(wait.s < 2.1 and wait.tries == 0 for wait in waits), "sooner than the lease's end"
    for generation_id in ids:
        lab.due_now(generation_id)
    dispatcher(lab, messages).tick()
    assert {lab.get(i).status for i in ids} == {Status.RUNNING}
    assert lab.posts == 3
    lab.end_tasks()


def test_due_claims_are_published_though_admission_fails(lab):
    """Claimed, it would else wait for its lease's end."""
    running, waiting = lab.send("at work"), lab.enqueue(text_request("waits"))
    lab.due_now(running)
    messages = Messages(lab)
    lab.sql("ALTER TABLE flow_control RENAME TO not_migrated_yet")
    with pytest.raises(ProgrammingError):
        dispatcher(lab, messages).tick()
    lab.sql("ALTER TABLE not_migrated_yet RENAME TO flow_control")
    assert [(stage, claim.id) for stage, [claim] in messages.published] == [(Stage.POLL, running)]
    assert lab.get(waiting).status is Status.ACCEPTED
    lab.end_tasks()


def test_what_is_due_goes_out_though_the_balance_cannot_be_asked_for(lab):
    running = lab.send("at work")
    lab.enqueue(text_request("waits for the first answer to what the account holds"))
    lab.due_now(running)
    messages = Messages(lab)
    lab.rt = lab.make_runtime(check_balance=True)

    def away():
        raise ConnectionError("the broker is away")

    broker = replace(messages.broker(), probe=away)
    with pytest.raises(ConnectionError):
        Dispatcher(lab.rt, broker, slots=8).tick()
    assert messages.stages() == [Stage.POLL]
    lab.end_tasks()


def test_the_loop_outlives_a_broker_that_is_away(lab):
    away = threading.Event()
    away.set()
    messages = Messages(lab)

    def publish(stage, claims):
        if away.is_set():
            raise ConnectionError("the broker is away")
        messages.publish(stage, claims)

    generation_id = lab.enqueue()
    one = Dispatcher(lab.rt, replace(messages.broker(), publish=publish), slots=2)
    with running(one):
        until(lambda: lab.get(generation_id).status is Status.UPLOADING)
        registered = lab.rt.membership.id
        away.clear()
        lab.due_now(generation_id)
        until(lambda: lab.get(generation_id).status is Status.RUNNING)
        # Otherwise its own claims would be released with each error.
        assert registered is not None
        assert lab.rt.membership.id == registered
    lab.end_tasks()


def test_the_loop_outlives_its_connections(lab, caplog):
    with running(dispatcher(lab, Messages(lab))):
        first = lab.enqueue(text_request("first"))
        until(lambda: lab.get(first).status is Status.RUNNING)
        cut = lab.sql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND application_name = 'seedance-dispatcher'"
        )
        assert len(cut) == 1
        until(lambda: "the dispatcher starts again" in caplog.text)
        second = lab.enqueue(text_request("second"))
        until(lambda: lab.get(second).status is Status.RUNNING)
    lab.end_tasks()


def test_it_wakes_at_once_when_something_is_enqueued(lab):
    # Nothing but an enqueuing has it look before its tick: no row is due sooner.
    lab.rt = lab.make_runtime(tick=30, poll_min=60, poll_max=60)
    with running(dispatcher(lab, messages := Messages(lab))):
        until(lambda: lab.value(LISTENING) == 1)
        for n in range(3):
            started = time.monotonic()
            generation_id = lab.enqueue(text_request(f"cat {n}"))
            until(lambda i=generation_id: lab.get(i).status is Status.RUNNING)
            assert time.monotonic() - started < 20, "under a tick"
        lab.enqueue(text_request("the last"))
        until(lambda: len(messages.published) >= 4)
    lab.end_tasks()


LISTENING = (
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
    " AND application_name = 'seedance-dispatcher' AND state = 'idle'"
)


def test_two_at_once_never_hand_out_the_same_lease(lab):
    ids = [lab.enqueue(text_request(f"cat {n}")) for n in range(40)]
    runtimes = [lab.rt, lab.make_runtime()]
    boxes = [Messages(lab, lambda *_: 0) for _ in runtimes]
    pairs = zip(runtimes, boxes, strict=True)
    both = [Dispatcher(rt, box.broker(), slots=4) for rt, box in pairs]
    for _ in range(6):
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda one: [one.tick() for _ in range(4)], both))
        lab.sql("UPDATE generations SET due_at = now() WHERE due_at IS NOT NULL")

    claims = [c for box in boxes for _, batch in box.published for c in batch]
    handed_out = Counter((claim.id, claim.lease) for claim in claims)
    assert max(handed_out.values()) == 1
    assert all(box.published for box in boxes)
    assert {claim.id for claim in claims} == set(ids)
    assert lab.value("SELECT count(*) FROM generations WHERE status = 'uploading'") == 40


def test_messages_are_refilled_to_twice_the_slots_once_no_more_wait_than_slots(lab):
    for n in range(20):
        lab.enqueue(text_request(f"cat {n}"))
    messages = Messages(lab, lambda *_: 0)
    one = dispatcher(lab, messages, slots=3)
    one.tick()
    assert [len(claims) for _, claims in messages.published] == [4] * 5
    lab.enqueue(text_request("one more"))
    messages.waiting = 4
    assert one.tick() is True, "there is more, and each thread has its next message"
    assert len(messages.published) == 5
    messages.waiting = 3
    one.tick()
    assert len(messages.published) == 6


@pytest.mark.parametrize(("waiting", "sizes"), [(4, [1] * 4), (8, [2] * 4), (40, [4] * 8)])
def test_submits_share_messages_where_there_are_more_than_threads(lab, waiting, sizes):
    ids = [lab.enqueue(text_request(f"cat {n}")) for n in range(waiting)]
    messages = Messages(lab, lambda *_: 0)
    dispatcher(lab, messages, slots=4).tick()
    assert [len(claims) for _, claims in messages.published] == sizes
    assert {stage for stage, _ in messages.published} == {Stage.SUBMIT}
    assert {c.id for _, claims in messages.published for c in claims} <= set(ids)


def test_no_more_uploads_are_admitted_than_there_is_room_for(lab, tmp_path):
    lab.rt = lab.make_runtime(max_in_flight=1000)
    for n in range(20):
        request = text_request(f"cat {n}")
        request["content"].append({"type": "image_url", "image_url": f"path:{tmp_path}/lake.jpg"})
        lab.enqueue(request)
    messages = Messages(lab, lambda *_: 0)
    assert dispatcher(lab, messages, slots=3).tick() is True
    assert messages.stages() == [Stage.UPLOAD] * 6


def test_who_finds_somebody_else_admitting_looks_again_soon(lab):
    lab.enqueue(text_request())
    messages = Messages(lab, lambda *_: 0)
    one = dispatcher(lab, messages)
    with lab.rt.engine.begin() as conn:
        assert schedule.admit(conn, 0, max_in_flight=1, lease_seconds=3, ceiling=None) == []
        assert one.tick() is True
    assert messages.published == []
    assert one.tick() is False
    assert messages.stages() == [Stage.SUBMIT]


def test_a_dispatcher_knows_what_the_tasks_of_its_process_learn(lab):
    runtime.use(lab.rt)
    with contextlib.closing(runtime.for_dispatcher(lab.rt.settings)) as own:
        assert own.flow is lab.rt.flow
        assert own.membership is lab.rt.membership
        assert own.side_slots is lab.rt.side_slots
        assert own.engine is not lab.rt.engine


def test_what_runs_is_followed_though_there_is_room_for_nothing_more(lab):
    lab.rt = lab.make_runtime(observe_from=2)
    ids = [lab.send(f"cat {n}") for n in range(6)]
    lab.end_tasks()
    for generation_id in ids:
        lab.due_now(generation_id)
    messages = Messages(lab, waiting=1000)
    assert dispatcher(lab, messages).tick() is True
    assert len(messages.observed) == 1
    assert messages.published == []
    assert all_ended(lab, ids)


def test_max_in_flight_bounds_what_is_past_admission(lab):
    lab.rt = lab.make_runtime(max_in_flight=3)
    ids = [lab.enqueue(text_request(f"cat {n}")) for n in range(5)]
    one = dispatcher(lab, Messages(lab))
    for _ in range(3):
        one.tick()
    assert [lab.get(i).status for i in ids] == [Status.RUNNING] * 3 + [Status.ACCEPTED] * 2
    lab.end_tasks()
    for generation_id in ids:
        lab.due_now(generation_id)
    one.tick()  # ends them
    one.tick()  # fills their slots
    assert Counter(lab.get(i).status for i in ids) == {Status.COMPLETED: 3, Status.RUNNING: 2}
    lab.end_tasks()


def deadly(lab):
    """The fate of a message whose worker begins with it, and dies."""

    def begin_and_die(stage, claims):
        for claim in claims:
            common.begin(lab.rt, claim.id, claim.lease)
        return 0

    return begin_and_die


def test_lost_messages_are_no_deaths(lab):
    lab.rt = lab.make_runtime(max_tries=3)
    generation_id = lab.enqueue()
    one = dispatcher(lab, messages := Messages(lab, lambda *_: 0))
    for _ in range(6):
        one.tick()
        lab.due_now(generation_id)
    messages.fate = lambda *_: 1
    one.tick()
    assert lab.get(generation_id).status is Status.RUNNING
    lab.complete(generation_id)


def test_what_workers_die_of_is_bounded_before_the_post(lab):
    lab.rt = lab.make_runtime(max_tries=3)
    generation_id = lab.enqueue()
    one = dispatcher(lab, messages := Messages(lab, deadly(lab)))
    for _ in range(6):
        one.tick()
        lab.due_now(generation_id)
    view = lab.get(generation_id)
    assert (view.status, view.error_code) == (Status.FAILED, "WORKER_LOST")
    assert len(messages.published) == 3


@pytest.mark.parametrize("state", [Status.RUNNING, Status.UNCERTAIN])
def test_after_the_post_it_needs_attention_and_is_never_failed(lab, state):
    lab.rt = lab.make_runtime(max_tries=3)
    generation_id = lab.send() if state is Status.RUNNING else lab.in_doubt()
    lab.settle(generation_id)
    one = dispatcher(lab, messages := Messages(lab, deadly(lab)))
    for _ in range(6):
        lab.due_now(generation_id)
        one.tick()
    view = lab.get(generation_id)
    assert view.status is state
    assert "workers die of it" in (view.attention or "")
    assert len(messages.published) == 6, "it is still handed out"
    messages.fate = lambda *_: 1
    lab.end_tasks()
    lab.due_now(generation_id)
    one.tick()
    assert lab.get(generation_id).attention is None
    lab.complete(generation_id)


def test_what_kills_workers_after_the_post_is_tried_more_and_more_seldom(lab):
    lab.rt = lab.make_runtime(max_tries=2)
    generation_id = lab.send()
    one = dispatcher(lab, Messages(lab, deadly(lab)))
    waits = []
    for _ in range(7):
        lab.due_now(generation_id)
        one.tick()
        waits.append(float(lab.value("SELECT extract(epoch FROM due_at - now()) FROM generations")))
    lease = lab.rt.settings.lease
    assert all(wait <= lease for wait in waits[:2])
    assert [round(wait / lease) for wait in waits[3:]] == [2, 4, 8, 16]
    lab.complete(generation_id)


def test_what_kills_workers_does_not_take_those_down_that_are_resolved_with_it(lab):
    """Its killer's readings are its own from the third time on, and the others move on."""
    lab.rt = lab.make_runtime(max_tries=4)
    poison, *others = [lab.in_doubt(f"cat {n}") for n in range(4)]

    def fate(stage, claims):
        if stage is Stage.RESOLVE and poison in {claim.id for claim in claims}:
            return deadly(lab)(stage, claims)
        return 1

    one = dispatcher(lab, Messages(lab, fate))
    for _ in range(6):
        for generation_id in (poison, *others):
            lab.settle(generation_id)
            lab.due_now(generation_id)
        one.tick()
    assert {lab.get(i).status for i in others} == {Status.RUNNING}
    assert {lab.get(i).attention for i in others} == {None}
    view = lab.get(poison)
    assert view.status is Status.UNCERTAIN
    assert "workers die of it" in (view.attention or "")
    lab.resolve(poison)
    lab.end_tasks()


def test_those_in_doubt_share_their_readings(lab):
    lab.sim.fault("submit", "lost", times=3)
    ids = [lab.send(f"cat {n}") for n in range(3)]
    for generation_id in ids:
        lab.settle(generation_id)
        lab.due_now(generation_id)
    dispatcher(lab, messages := Messages(lab)).tick()
    assert [(stage, len(claims)) for stage, claims in messages.published] == [(Stage.RESOLVE, 3)]
    assert {lab.get(i).status for i in ids} == {Status.RUNNING}
    lab.end_tasks()


def test_an_open_breaker_is_probed_and_closed_by_the_answer(lab):
    lab.rt = lab.make_runtime(probe_every=0.1)
    lab.sim.change_account(lab.sim.api_key, enabled=False)
    generation_id = lab.enqueue()
    with running(dispatcher(lab, messages := Messages(lab))):
        until(lambda: messages.probes >= 2)
        assert lab.get(generation_id).status is Status.ACCEPTED
        assert lab.breakers() == {"api_key"}
        lab.sim.change_account(lab.sim.api_key, enabled=True)
        lab.sql("UPDATE generations SET due_at = now()")
        until(lambda: lab.get(generation_id).status is Status.RUNNING)
    assert lab.posts == 2
    lab.end_tasks()


def test_it_beats_whenever_it_comes_round_or_finds_that_it_cannot(lab):
    beats = []
    beating = Dispatcher(
        lab.rt, Messages(lab).broker(), slots=4, beat=lambda: beats.append(len(beats))
    )
    with running(beating):
        until(lambda: len(beats) >= 3)

    def away(*_):
        raise ConnectionError("the broker is away")

    broken = replace(Messages(lab).broker(), depth=away)
    beats.clear()
    with running(Dispatcher(lab.rt, broken, slots=4, beat=lambda: beats.append(1))):
        until(lambda: len(beats) >= 3)


# --- the workers that are alive -----------------------------------------------------------------


def registered(lab):
    """Return the ids of the registered workers."""
    return {row.id for row in lab.sql("SELECT id FROM workers")}


def locks(lab):
    """Return how many workers' locks are held in this database."""
    return lab.value(
        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND classid = 24301"
        " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    )


def test_a_worker_is_registered_while_its_dispatcher_runs(lab):
    with running(dispatcher(lab, Messages(lab))):
        until(lambda: lab.rt.membership.id is not None)
        assert registered(lab) == {lab.rt.membership.id}
        assert locks(lab) == 1
    assert registered(lab) == set(), "it leaves nothing to be found dead"
    assert lab.rt.membership.id is None


def test_a_worker_shows_its_heartbeat_at_each_turn(lab, monkeypatch):
    monkeypatch.setattr(workers, "HEARTBEAT_EVERY", 0.01)
    with running(dispatcher(lab, Messages(lab))):
        until(lambda: registered(lab))
        lab.sql("UPDATE workers SET seen_at = now() - interval '5 s'")
        until(lambda: lab.value("SELECT seen_at > now() - interval '2 s' FROM workers"))


def test_a_worker_whose_session_is_cut_registers_anew(lab):
    with running(dispatcher(lab, Messages(lab))):
        until(lambda: registered(lab))
        first = registered(lab)
        lab.sql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND application_name = 'seedance-dispatcher'"
        )
        # Its own release finds the old registration dead.
        until(lambda: len(registered(lab)) == 1 and registered(lab) != first)


def test_a_worker_that_was_taken_for_dead_registers_anew(lab, monkeypatch, caplog):
    monkeypatch.setattr(workers, "HEARTBEAT_EVERY", 0.01)
    with running(dispatcher(lab, Messages(lab))):
        until(lambda: registered(lab))
        first = registered(lab)
        lab.sql("DELETE FROM workers")
        until(lambda: registered(lab) and registered(lab) != first)
    assert "took this one for dead" in caplog.text


@contextlib.contextmanager
def another_worker(lab):
    """Register a worker in a session of its own, and yield a function that kills the session."""
    url = lab.rt.settings.database_url
    with psycopg.connect(direct_dsn(url), autocommit=True) as session:
        worker_id = workers.register(session, "another:1", locked=True)
        pid = session.info.backend_pid

        def die():
            lab.sql("SELECT pg_terminate_backend(:pid, 5000)", pid=pid)

        yield worker_id, die


def claimed_by(lab, worker_id, generation_id):
    """Let a worker begin on a generation, and return its claim."""
    [claim] = [claim for claim in lab.due() + lab.admit() if claim.id == generation_id]
    its = replace(lab.rt, membership=runtime.Membership(worker_id))
    assert common.begin(its, claim.id, claim.lease)
    return claim


def test_claims_of_a_dead_worker_are_released_within_two_ticks(lab):
    """Their lease would last far longer than the test."""
    lab.rt = lab.make_runtime(lease=600)
    running_one = lab.send("at work")
    lab.due_now(running_one)
    with another_worker(lab) as (worker_id, die):
        claims = [claimed_by(lab, worker_id, running_one)]
        waiting = lab.enqueue(text_request("begun"))
        claims.append(claimed_by(lab, worker_id, waiting))
        messages = Messages(lab)
        with running(dispatcher(lab, messages)):
            until(lambda: lab.rt.membership.id is not None)
            die()
            until(lambda: len(messages.published) >= 2, "both are handed out again", 10)
            until(lambda: lab.get(waiting).status is Status.RUNNING)
    published = {claim.id: claim.lease for _, [claim] in messages.published[:2]}
    assert published.keys() == {running_one, waiting}
    for claim in claims:
        assert published[claim.id] > claim.lease + 1, "released under a raised token, then claimed"
    lab.end_tasks()


def test_claims_of_a_live_worker_are_kept(lab):
    lab.rt = lab.make_runtime(lease=600, tick=0.05)
    generation_id = lab.enqueue()
    with another_worker(lab) as (worker_id, _):
        claim = claimed_by(lab, worker_id, generation_id)
        messages = Messages(lab)
        one = dispatcher(lab, messages)
        for _ in range(5):
            one.tick()
            time.sleep(0.06)  # each release comes a tick after the last
        assert messages.published == []
        assert worker_id in registered(lab)
        assert lab.value("SELECT lease FROM generations") == claim.lease


def test_a_post_of_a_dead_worker_is_searched_for_and_not_sent_again(lab):
    lab.rt = lab.make_runtime(lease=600, send_budget=60)
    with another_worker(lab) as (worker_id, die):
        claim = lab.start()
        theirs = replace(lab.rt, membership=runtime.Membership(worker_id))

        class DiesError(BaseException):
            pass

        class Dies:
            def submit(self, *args, **options):
                lab.rt.client.submit(*args, **options)
                die()
                raise DiesError

        with pytest.raises(DiesError):
            submit.run(replace(theirs, client=Dies()), [(claim.id, claim.lease)])
        assert lab.get(claim.id).status is Status.SUBMITTING
        with running(dispatcher(lab, Messages(lab))):
            until(lambda: lab.get(claim.id).status is Status.RUNNING, "an early scan", 15)
    assert lab.history(claim.id)[2:5] == ["intend", "doubt", "adopt"]
    assert lab.posts == 1
    lab.end_tasks()


def test_a_message_of_a_released_claim_does_nothing(lab):
    lab.rt = lab.make_runtime(lease=600)
    with another_worker(lab) as (worker_id, die):
        claim = lab.start()
        lost = [(Stage.SUBMIT, (claim,))]
        die()
        until(lambda: locks(lab) == 0)
        messages = Messages(lab, lambda *_: 0)
        dispatcher(lab, messages).tick()
    assert worker_id not in registered(lab)
    assert lab.value("SELECT lease FROM generations") == claim.lease + 2
    messages.deliver(*lost[0])
    assert lab.posts == 0
    messages.deliver(*messages.published[0])
    assert lab.posts == 1
    lab.end_tasks()


# --- side work ----------------------------------------------------------------------------------


def errands(lab, count, run=lambda rt, claim: None, table="errands"):
    """A kind of side work with a table of its own, and so many rows due."""
    lab.sql(f"CREATE TABLE {table} (id int PRIMARY KEY, due_at timestamptz, lease int)")
    lab.sql(f"INSERT INTO {table} SELECT n, now(), 0 FROM generate_series(1, :n) n", n=count)

    def claim(conn, limit, lease_seconds):
        rows = conn.execute(
            text(
                f"UPDATE {table} SET lease = lease + 1, due_at = now() + make_interval(secs => :s)"
                f" WHERE id IN (SELECT id FROM {table} WHERE due_at <= now() ORDER BY id"
                " LIMIT :n FOR UPDATE SKIP LOCKED) RETURNING id, lease"
            ),
            {"s": lease_seconds, "n": limit},
        )
        return [SideClaim(str(row.id), row.lease) for row in rows]

    def put_off(conn, claim, seconds):
        conn.execute(
            text(
                f"UPDATE {table} SET due_at = now() + make_interval(secs => :s)"
                " WHERE id = :id AND lease = :lease"
            ),
            {"s": seconds, "id": int(claim.id), "lease": claim.lease},
        )

    return SideWork("seedance.errand", lambda settings: True, claim, put_off, run)


def test_side_work_goes_out_a_few_at_a_time(lab):
    lab.rt = lab.make_runtime(tick=60, concurrency=8)
    messages = Messages(lab)
    one = dispatcher(lab, messages, slots=8, side_work=[errands(lab, 10)])
    one.tick()
    assert len(messages.side) == 4, "half of the slots"
    one.tick()
    assert len(messages.side) == 4, "once in a tick"


def test_no_side_work_goes_out_while_some_waits_to_be_taken(lab):
    lab.rt = lab.make_runtime(concurrency=8)
    messages = Messages(lab)
    messages.side_waiting = 4
    dispatcher(lab, messages, slots=8, side_work=[errands(lab, 10)]).tick()
    assert messages.side == []


def test_a_backlog_of_one_kind_of_side_work_keeps_no_other_waiting(lab):
    lab.rt = lab.make_runtime(tick=0.001)
    messages = Messages(lab)
    done = []
    kinds = [
        errands(lab, 100, lambda rt, claim: done.append("many")),
        errands(lab, 1, lambda rt, claim: done.append("one"), table="others"),
    ]
    one = dispatcher(lab, messages, slots=2, side_work=kinds)
    until(lambda: one.tick() or len(done) >= 2)
    assert "one" in done[:2]


def test_no_side_work_goes_out_for_which_there_is_no_thread(lab):
    lab.rt = replace(lab.rt, side_slots=SideSlots(1))
    assert lab.rt.side_slots.take("seedance.errand")
    messages = Messages(lab)
    one = dispatcher(lab, messages, side_work=[errands(lab, 4)])
    one.tick()
    assert messages.side == []
    lab.rt.side_slots.give_back("seedance.errand")
    until(lambda: one.tick() or messages.side)


def test_one_kind_of_side_work_leaves_the_last_thread_to_the_others():
    slots = SideSlots(3)
    assert [slots.take("slow") for _ in range(3)] == [True, True, False]
    assert [slots.take("quick") for _ in range(2)] == [True, False]
    slots.give_back("slow")
    assert slots.take("slow")
    alone = SideSlots(3, kinds=1)
    assert [alone.take("slow") for _ in range(4)] == [True, True, True, False]
    only = SideSlots(1)
    assert [only.take("slow"), only.take("quick")] == [True, False]
    only.give_back("slow")
    assert only.take("quick")


def test_side_work_that_can_not_be_published_is_due_again_soon(lab):
    class Broken(Messages):
        def publish_side(self, kind, claim):
            super().publish_side(kind, claim)
            if len(self.side) == 2:
                raise ConnectionError

    with pytest.raises(ConnectionError):
        dispatcher(lab, Broken(lab), side_work=[errands(lab, 4)]).tick()
    soon = "SELECT count(*) FROM errands WHERE due_at < now() + interval '2.5 seconds'"
    assert lab.value(soon) == 3, "all but the first, which was published"


def test_side_work_beyond_the_share_of_a_process_is_put_off(lab):
    lab.rt = replace(lab.rt, side_slots=SideSlots(1))
    inner = []

    def run(rt, claim):
        inner.append(claim.id)
        side_work.run(rt, kind, SideClaim("2", 0))  # while the only slot is taken

    kind = errands(lab, 2, run)
    side_work.run(lab.rt, kind, SideClaim("1", 0))
    side_work.run(lab.rt, kind, SideClaim("1", 0))
    assert inner == ["1", "1"], "the slot is given back"
    assert lab.value("SELECT due_at > now() FROM errands WHERE id = 2")


def test_what_waits_is_asked_over_one_connection_also_when_the_broker_was_away(broker_url):
    app = Celery("asking", broker=broker_url)
    depths = bootstep._Depths(app)
    with redis.Redis.from_url(broker_url) as client:
        assert depths.of("somewhere") == 0, "not declared yet"
        for _ in range(2):
            app.send_task("anything", queue="somewhere")
        assert depths.of("somewhere") == 2
        before = client.info("clients")["connected_clients"]
        assert {depths.of("somewhere") for _ in range(10)} == {2}
        assert client.info("clients")["connected_clients"] <= before
        client.client_kill_filter(_type="normal", skipme=True)
        assert depths.of("somewhere") == 2
    depths.close()
    app.close()
