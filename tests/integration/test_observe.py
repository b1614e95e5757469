"""Observe: everything that runs, followed by the task list, with every guarantee of a poll."""

import threading
from dataclasses import replace

import pytest

from models import schedule, transitions
from models.lifecycle import Observation, Status
from models.observing import turns
from models.observing.choice import BARREN
from models.observing.usual import KEPT, UsualTimes, kind_of
from tests.integration.invariants import HeldAnswer, in_background, laboratory
from worker.stages import common, observe, poll
from worker.upkeep import reconcile

LEAST = 5


@pytest.fixture
def environment(environment):
    return environment | {"SEEDANCE_OBSERVE_FROM": str(LEAST)}


@pytest.fixture
def lab(make_runtime, sim, caplog):
    sim.configure(speed=0)
    with laboratory(make_runtime, sim, caplog) as lab:
        yield lab


def send(lab, count, prompt="a cat", **fields):
    return [lab.send(f"{prompt} {n}", **fields) for n in range(count)]


def all_due(lab):
    """Their first look has come, and the list's lag has passed."""
    lab.sql(
        "UPDATE generations SET due_at = now(), submitted_at = now() - interval '1 minute'"
        " WHERE status = 'running'"
    )


def take(lab, **change):
    given = {"least": LEAST, "every": 0.2, "lease_seconds": 3.0} | change
    with lab.rt.engine.begin() as conn:
        return turns.take(conn, **given)


def next_turn(lab):
    lab.sql("UPDATE observers SET next_at = now()")
    return take(lab)


def a_pass(lab):
    """One pass, as dispatcher and worker make it; returns whether the list is engaged then."""
    turn = next_turn(lab)
    assert turn.lease is not None
    observe.run(lab.rt, turn.lease)
    return state(lab).engaged


def state(lab):
    [row] = lab.sql("SELECT *, next_at - now() AS rest, held_until - now() AS held FROM observers")
    return row


def polled(lab, *, by_list=True):
    """The generations that a dispatcher would claim one by one."""
    with lab.rt.engine.begin() as conn:
        claims = schedule.claim_due(conn, 100, lease_seconds=3, by_list=by_list)
    return {claim.id: claim for claim in claims}


def statuses(lab, ids):
    return [str(lab.get(generation_id).status) for generation_id in ids]


# --- one pass ----------------------------------------------------------------------------------


def test_many_ends_cost_one_request(lab):
    ids = send(lab, 3) + [lab.send(f"[sim: end={end}]") for end in ("failed", "expired")]
    ids.append(lab.send("[sim: end=cancelled]"))
    all_due(lab)
    lab.end_tasks()
    assert not a_pass(lab)  # nothing is left to be followed
    assert statuses(lab, ids) == ["completed"] * 3 + ["failed", "expired", "cancelled"]
    assert lab.sim.received("list") == 1
    assert lab.sim.received("get") == 0
    done, failed = lab.get(ids[0]), lab.get(ids[3])
    assert (done.credit_cost, done.video_url is not None) == (9, True)
    assert (failed.credit_cost, failed.error_code) == (0, "VIDEO_DOWNLOAD_FAILED")
    assert lab.history(ids[0])[-1] == "complete"


def test_a_line_tells_each_end(lab, caplog):
    ids = send(lab, LEAST)
    lab.end_tasks()
    all_due(lab)
    a_pass(lab)
    of_ends = [record for record in caplog.records if " is completed" in record.getMessage()]
    assert {record.generation for record in of_ends} == {str(one) for one in ids}


def test_what_a_pass_writes_is_what_a_poll_writes(lab):
    """The same end, seen by GET and by the list, leaves the same row, history and ledger."""
    for end in ("completed", "failed", "expired", "cancelled"):
        by_get, *by_list = send(lab, LEAST + 1, f"[sim: end={end}]", seed=None)
        all_due(lab)
        lab.end_tasks()
        claim = lab.claim(by_get)
        poll.run(lab.rt, claim.id, claim.lease)
        all_due(lab)
        a_pass(lab)

        def told(generation_id):
            [row] = lab.sql(
                "SELECT status, remote_status, credit_cost, error_code, error_message,"
                " video_url IS NULL AS no_video, last_frame_url IS NULL AS no_frame, due_at,"
                " failures, attention, observed_at IS NULL AS unseen FROM generations"
                " WHERE id = :id",
                id=generation_id,
            )
            [last] = lab.sql(
                "SELECT event, from_status, to_status, attempt, detail FROM generation_events"
                " WHERE generation_id = :id ORDER BY id DESC LIMIT 1",
                id=generation_id,
            )
            entries = lab.sql(
                "SELECT kind, amount, assumed, event FROM ledger_entries"
                " WHERE generation_id = :id ORDER BY id",
                id=generation_id,
            )
            return row, last, entries

        for generation_id in by_list:
            assert told(generation_id) == told(by_get)


def test_progress_is_told_once(lab):
    ids = send(lab, LEAST, "[sim: pending=10, queued=10, processing=10]")
    all_due(lab)
    lab.sim.advance(10.5)
    for _ in range(2):
        assert a_pass(lab)
        all_due(lab)
    assert {lab.get(generation_id).remote_status for generation_id in ids} == {"queued"}
    assert [lab.history(generation_id).count("progress") for generation_id in ids] == [1] * LEAST


def test_what_runs_on_is_not_written_each_time(lab):
    ids = send(lab, LEAST)
    all_due(lab)
    assert a_pass(lab)
    before = lab.sql("SELECT id, xmin::text, due_at > now() FROM generations ORDER BY id")
    assert all(row[2] for row in before)
    assert a_pass(lab)
    after = lab.sql("SELECT id, xmin::text, due_at > now() FROM generations ORDER BY id")
    assert after == before
    assert len(ids) == LEAST


def test_a_video_that_the_list_does_not_show_is_fetched_by_its_own_get(lab, monkeypatch):
    ids = send(lab, LEAST)
    all_due(lab)
    lab.end_tasks()
    whole = common.observation

    def bare(task):
        return Observation(task.task_id, task.status, credit_cost=task.credit_cost)

    monkeypatch.setattr(common, "observation", bare)
    a_pass(lab)
    monkeypatch.setattr(common, "observation", whole)
    assert set(statuses(lab, ids)) == {"running"}
    claims = polled(lab)
    assert set(claims) == set(ids)
    for claim in claims.values():
        lab.run(claim)
    assert all(lab.get(generation_id).video_url for generation_id in ids)


# --- what the list does not show ---------------------------------------------------------------


def test_a_task_missing_in_the_list_gets_its_own_get(lab):
    shown = send(lab, LEAST)
    missing = lab.send("[sim: list_lag=3600]")
    all_due(lab)
    assert a_pass(lab)
    assert set(polled(lab)) == {missing}
    assert not set(shown) & set(polled(lab))
    lab.end_tasks()
    lab.run(lab.claim(missing))
    assert lab.get(missing).status is Status.COMPLETED


def test_the_other_end_of_the_list_is_tried(lab):
    """Oldest first, below a thousand tasks of others: the second pass begins at the last page."""
    lab.sim.inject(count=1000, status="completed", age=86_400, charge=False)
    lab.sim.configure(list_order="created_asc")
    ids = send(lab, LEAST)
    all_due(lab)
    assert a_pass(lab)  # gives up after as many pages as GETs would be
    assert (state(lab).backward, state(lab).pages) == (True, LEAST)
    assert state(lab).missed == LEAST
    lab.end_tasks()
    a_pass(lab)
    assert set(statuses(lab, ids)) == {"completed"}
    assert state(lab).pages == 2


def test_a_list_that_shows_them_nowhere_is_left(lab):
    lab.sim.inject(count=1500, status="completed", age=86_400, charge=False)
    lab.sim.configure(list_order="random")
    ids = send(lab, LEAST)
    all_due(lab)
    passes = 0
    while passes < 20 and a_pass(lab):
        passes += 1
    # Chance may show enough of them for a while; then it is left, for ever longer.
    assert passes < 20
    assert state(lab).rest.total_seconds() > 60
    assert take(lab).lease is None
    all_due(lab)
    assert set(polled(lab, by_list=take(lab).engaged)) == set(ids)


def test_what_is_shown_running_counts_as_seen(lab):
    """Long after the last thing that was new about them: `show` and the metrics tell by it."""
    shown = send(lab, LEAST)
    missing = lab.send("[sim: list_lag=3600]")
    all_due(lab)
    lab.sql("UPDATE generations SET observed_at = now() - interval '1 hour'")
    assert a_pass(lab)
    seen = dict(
        tuple(row)
        for row in lab.sql("SELECT id, observed_at > now() - interval '30 min' FROM generations")
    )
    assert seen == dict.fromkeys(shown, True) | {missing: False}
    assert lab.history(shown[0])[-1] == "submit"
    before = lab.sql("SELECT id, observed_at FROM generations ORDER BY id")
    lab.sql("UPDATE generations SET failures = 0")
    a_pass(lab)
    # Once in a while is enough, and costs next to nothing.
    assert lab.sql("SELECT id, observed_at FROM generations ORDER BY id") == before


def test_few_are_polled(lab):
    ids = send(lab, LEAST - 1)
    all_due(lab)
    assert take(lab) == turns.Turn(engaged=False)
    assert set(polled(lab, by_list=False)) == set(ids)


def test_turned_off(lab):
    send(lab, LEAST)
    all_due(lab)
    assert take(lab, least=0) == turns.Turn(engaged=False)


def test_when_few_are_left_they_are_polled_again(lab):
    ids = send(lab, LEAST)
    all_due(lab)
    assert a_pass(lab)
    for task in lab.submitted_tasks()[1:]:
        lab.sim.change(task["task_id"], status="completed")
    assert not a_pass(lab)
    [left] = [i for i in ids if lab.get(i).status is Status.RUNNING]
    due_in = lab.value(
        "SELECT extract(epoch FROM due_at - now()) FROM generations WHERE id = :id", id=left
    )
    assert due_in < 0.3


# --- what needs more than to be seen -----------------------------------------------------------


def test_a_cancel_is_sent_while_the_list_is_engaged(lab):
    ids = send(lab, LEAST + 1)
    all_due(lab)
    assert a_pass(lab)
    with lab.rt.engine.begin() as conn:
        transitions.cancel(conn, ids[0])
    claims = polled(lab)
    assert set(claims) == {ids[0]}
    lab.run(claims[ids[0]])
    assert lab.sim.received("cancel") == 1
    a_pass(lab)
    assert lab.get(ids[0]).status is Status.CANCELLED


def test_a_deadline_is_kept_while_the_list_is_engaged(lab):
    ids = send(lab, LEAST + 1)
    all_due(lab)
    lab.sql("UPDATE generations SET deadline_at = now() + interval '1 s' WHERE id = :i", i=ids[0])
    assert a_pass(lab)
    assert lab.value("SELECT due_at = deadline_at FROM generations WHERE id = :i", i=ids[0])
    lab.sql("UPDATE generations SET deadline_at = now(), due_at = now() WHERE id = :i", i=ids[0])
    claims = polled(lab)
    assert set(claims) == {ids[0]}
    lab.run(claims[ids[0]])
    assert lab.sim.received("cancel") == 1


def test_a_stalled_task_still_asks_for_an_operator(lab):
    ids = send(lab, LEAST + 1)
    all_due(lab)
    lab.sql(
        "UPDATE generations SET submitted_at = now() - interval '1 day' WHERE id = :i", i=ids[0]
    )
    assert a_pass(lab)
    claims = polled(lab)
    assert set(claims) == {ids[0]}
    lab.run(claims[ids[0]])
    assert "has not ended" in lab.get(ids[0]).attention
    lab.sql("UPDATE generations SET attention = NULL, attention_at = NULL")


# --- turns -------------------------------------------------------------------------------------


def test_one_observer_at_a_time(lab):
    send(lab, LEAST)
    all_due(lab)
    first = take(lab)
    assert first.lease is not None
    assert take(lab) == turns.Turn(engaged=True)
    lists = lab.sim.received("list")
    # Its time has come again, but the first may still be reading.
    held = HeldAnswer(lab.rt, "list_tasks")
    with in_background(lambda: observe.run(held.rt, first.lease)):
        assert held.came.wait(30)
        lab.sql("UPDATE observers SET next_at = now()")
        assert take(lab) == turns.Turn(engaged=True)
        held.go.set()
    assert lab.sim.received("list") == lists + 1


def test_a_stale_message_does_nothing(lab):
    ids = send(lab, LEAST)
    all_due(lab)
    turn = take(lab)
    lab.sql("UPDATE observers SET lease = lease + 1")
    lab.end_tasks()
    observe.run(lab.rt, turn.lease)
    assert lab.sim.received("list") == 0
    assert set(statuses(lab, ids)) == {"running"}


def test_a_repeated_message_does_nothing(lab):
    send(lab, LEAST)
    all_due(lab)
    turn = take(lab)
    for _ in range(2):
        observe.run(lab.rt, turn.lease)
    assert lab.sim.received("list") == 1


def test_a_lost_message_is_sent_again_and_meanwhile_nobody_is_forgotten(lab):
    ids = send(lab, LEAST)
    all_due(lab)
    lost = take(lab)
    assert not polled(lab)
    lab.sql("UPDATE observers SET held_until = now(), next_at = now()")
    again = take(lab)
    assert again.lease == lost.lease + 1
    lab.sql("UPDATE observers SET held_until = now(), next_at = now() + interval '1 hour'")
    assert not take(lab).engaged  # nobody reads: polled one by one
    assert set(polled(lab, by_list=False)) == set(ids)


def test_a_pass_that_workers_die_of_is_left_alone(lab):
    send(lab, LEAST)
    all_due(lab)
    assert take(lab).lease is not None
    lab.sql("UPDATE observers SET tries = 3, held_until = now(), next_at = now()")
    assert take(lab) == turns.Turn(engaged=False)
    assert state(lab).rest.total_seconds() > 3000


class Counting:
    """A runtime that counts how many pages are read at a time."""

    def __init__(self, lab):
        self.client, self.lock = lab.rt.client, threading.Lock()
        self.now = self.most = 0
        self.rt = replace(lab.rt, client=self)

    def list_tasks(self, *args, **options):
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
        try:
            return self.client.list_tasks(*args, **options)
        finally:
            with self.lock:
                self.now -= 1


def lay_down(lab, count, age=60):
    """So many running generations that are due, and their tasks."""
    lab.sql(
        "INSERT INTO generations (id, status, request, estimated_cost, attempt, lease, polls,"
        " remote_task_id, remote_status, fingerprint, due_at, submitted_at)"
        " SELECT gen_random_uuid(), 'running', '{}', 9, 1, 1, 1, task, 'processing', task, now(),"
        " now() - make_interval(secs => :age) FROM unnest(CAST(:tasks AS text[])) task",
        tasks=lab.sim.inject(count=count, seconds=1e6, age=age, status="processing"),
        age=age,
    )


def test_what_is_due_is_sought_though_the_list_need_not_show_it_yet(lab):
    lab.rt = lab.make_runtime(list_lag=15.0)
    lay_down(lab, 250, age=1)
    observe.run(lab.rt, next_turn(lab).lease)
    found = state(lab)
    lab.sql("DELETE FROM generations")  # they have no history to be looked at
    assert (found.sought, found.missed, found.pages, found.engaged) == (0, 0, 3, True)


def test_what_is_due_is_sought_behind_all_that_is_as_young(lab):
    lab.rt = lab.make_runtime(list_lag=15.0)
    lay_down(lab, 10, age=3)
    lab.sim.inject(count=(BARREN + 2) * 100, seconds=1e6, age=1, status="processing")
    observe.run(lab.rt, next_turn(lab).lease)
    found = state(lab)
    lab.sql("DELETE FROM generations")  # they have no history to be looked at
    assert found.pages == BARREN + 3


def test_what_the_list_does_not_show_yet_is_not_sought_through_all_of_it(lab):
    lab.rt = lab.make_runtime(list_lag=15.0)
    lay_down(lab, 250, age=1)
    lab.sim.inject(count=700, seconds=1e6, age=60, status="processing")
    lab.sql("UPDATE generations SET remote_task_id = remote_task_id || 'x'")
    observe.run(lab.rt, next_turn(lab).lease)
    found, gets = state(lab), polled(lab)
    lab.sql("DELETE FROM generations")  # they have no history to be looked at
    assert found.pages == 4, "the last of them holds nothing that is young"
    assert not gets, "it is the list that is late"


def test_what_is_young_and_was_passed_over_twice_gets_its_own_get(lab):
    lab.rt = lab.make_runtime(list_lag=15.0, poll_min=5.0, poll_max=9.0)
    shown = send(lab, LEAST)
    missing = lab.send("[sim: list_lag=3600]")
    lab.sql("UPDATE generations SET due_at = now(), submitted_at = now()")
    assert a_pass(lab)
    assert not polled(lab), "the next pass may show it"
    lab.sql("UPDATE generations SET submitted_at = now() - interval '10 seconds'")
    assert a_pass(lab)
    assert set(polled(lab)) == {missing}
    lab.end_tasks()
    lab.run(lab.claim(missing))
    assert lab.get(missing).status is Status.COMPLETED
    assert {lab.get(one).status for one in shown} == {Status.RUNNING}


def test_slow_pages_are_read_some_at_a_time(lab):
    lay_down(lab, 450)
    lab.sim.fault("list", "delay_before", probability=1.0, seconds=0.3)
    turn = next_turn(lab)
    counting = Counting(lab)
    observe.run(counting.rt, turn.lease)
    found = state(lab)
    lab.sql("DELETE FROM generations")  # they have no history to be looked at
    assert (found.sought, found.missed, found.pages, found.engaged) == (450, 0, 5, True)
    assert lab.sim.received("list") == 5, "none for nothing"
    assert counting.most >= 2


def test_pages_that_cannot_be_had(lab):
    ids = send(lab, LEAST)
    all_due(lab)
    lab.sim.fault("list", "error", code="INTERNAL_ERROR", times=3)
    assert a_pass(lab)
    assert a_pass(lab)
    assert not a_pass(lab)  # polled one by one
    all_due(lab)
    assert set(polled(lab, by_list=False)) == set(ids)


def test_a_lack_of_requests_is_no_reason_to_make_more_of_them(lab):
    """A GET for each would need a hundred times as many; what the provider asks for is kept."""
    send(lab, LEAST)
    all_due(lab)
    lab.sim.fault("list", "rate_limited", retry_after=40, times=5)
    for _ in range(5):
        assert a_pass(lab)
    assert 30 < state(lab).rest.total_seconds() < 41
    assert state(lab).held > state(lab).rest, "nobody is polled meanwhile"
    # A list that is never to be had is left all the same.
    lab.sql("UPDATE observers SET failures = 9")
    lab.sim.fault("list", "rate_limited", times=1)
    assert not a_pass(lab)
    assert state(lab).rest.total_seconds() > 50


def test_a_wrong_key_opens_the_breaker(lab):
    send(lab, LEAST)
    all_due(lab)
    lab.sim.fault("list", "error", code="INVALID_API_KEY", times=1)
    assert a_pass(lab)
    assert lab.breakers() == {"api_key"}


# --- beside others -----------------------------------------------------------------------------


def test_beside_reconcile_and_polls_nothing_is_told_twice(lab):
    ids = send(lab, 12)
    all_due(lab)
    lab.end_tasks()
    turn = take(lab)
    claims = [lab.claim(generation_id) for generation_id in ids]
    with (
        in_background(lambda: observe.run(lab.rt, turn.lease)),
        in_background(lambda: reconcile.run(lab.rt)),
        in_background(lambda: [lab.run(claim) for claim in claims]),
    ):
        pass
    assert set(statuses(lab, ids)) == {"completed"}
    assert [lab.history(generation_id).count("complete") for generation_id in ids] == [1] * 12


def test_a_producers_open_transaction_holds_up_nobody_else(lab):
    """It cancels one in a transaction of its own, and takes its time to commit."""
    ids = send(lab, 3 * LEAST)
    all_due(lab)
    lab.end_tasks()
    with lab.rt.engine.connect() as producer:
        transitions.cancel(producer, ids[0])
        a_pass(lab)
        assert statuses(lab, ids) == ["running"] + ["completed"] * (len(ids) - 1)
        producer.rollback()
    lab.complete(ids[0])


def test_a_stale_page_moves_nothing_back(lab):
    """Read before the end was seen by a GET, applied after it."""
    ids = send(lab, LEAST)
    all_due(lab)
    turn = take(lab)
    held = HeldAnswer(lab.rt, "list_tasks")
    with in_background(lambda: observe.run(held.rt, turn.lease)):
        assert held.came.wait(30)
        lab.end_tasks()
        for generation_id in ids:
            lab.run(lab.claim(generation_id))
        held.go.set()
    assert set(statuses(lab, ids)) == {"completed"}


# --- how long tasks take -----------------------------------------------------------------------


def test_the_first_look_comes_when_such_tasks_usually_end(lab):
    kind = kind_of(lab.get(lab.send("a cat")).request)
    for seconds in range(60, 80):
        lab.rt.usual.note(kind, float(seconds))
    lab.rt.usual.exchange(lab.rt.engine, every=0)
    other = UsualTimes()
    other.exchange(lab.rt.engine, every=0)
    assert other.first_look(kind, otherwise=5.0) == pytest.approx(62 * 0.95)
    assert other.first_look((*kind[:2], 15), otherwise=5.0) == 5.0
    generation_id = lab.send("a dog")
    due_in = lab.value(
        "SELECT extract(epoch FROM due_at - submitted_at) FROM generations WHERE id = :id",
        id=generation_id,
    )
    assert float(due_in) == pytest.approx(62 * 0.95, abs=1)


def test_the_latest_times_count(lab):
    kind = ("seedance-2.0", "720p", 5)
    for seconds in (300.0, 20.0):
        times = UsualTimes()
        for _ in range(KEPT):
            times.note(kind, seconds)
        times.exchange(lab.rt.engine, every=0)
    assert len(lab.value("SELECT recent FROM usual_times")) == KEPT
    assert times.first_look(kind, otherwise=5.0) == pytest.approx(19.0)


def test_times_are_learned_from_polls_and_from_the_list(lab):
    by_get, *by_list = send(lab, LEAST + 1)
    all_due(lab)
    lab.end_tasks()
    claim = lab.claim(by_get)
    lab.run(claim)
    all_due(lab)
    a_pass(lab)
    fresh = UsualTimes()
    lab.rt.usual.exchange(lab.rt.engine, every=0)
    fresh.exchange(lab.rt.engine, every=0)
    assert 55 <= fresh.first_look(kind_of(lab.get(by_get).request), otherwise=1.0) <= 75
    assert len(by_list) == LEAST
