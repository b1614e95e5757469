"""Reconcile: the whole list against our rows; what differs is mended, what is not ours is left."""

import gc
import random
from decimal import Decimal

import pytest

from models import transitions, watch
from models.flow_control.breakers import BreakerName
from models.lifecycle import Observation, Status
from models.resolution import Skew
from tests.integration.conftest import text_request
from tests.integration.invariants import HeldAnswer, in_background, laboratory
from worker import reading
from worker.stages import submit
from worker.stages.resolve import Outcome
from worker.upkeep import reconcile


@pytest.fixture
def lab(make_runtime, sim, caplog):
    with laboratory(make_runtime, sim, caplog) as lab:
        yield lab


def test_nothing_to_do(lab):
    report = lab.reconcile()
    assert report.complete
    assert (report.remote_tasks, report.pages) == (0, 1)


@pytest.mark.parametrize("code", ["INTERNAL_ERROR", "SERVICE_BUSY"])
def test_an_outage_of_the_provider_is_no_fault_of_upkeep(lab, caplog, code):
    """A warning, as for the balance: an error would call somebody at each of its periods."""
    lab.sim.fault("list", "error", code=code)
    assert reconcile.by_the_clock(lab.rt) is None
    said = [record for record in caplog.records if "the task list can't be read" in record.message]
    assert [(record.levelname, record.name) for record in said] == [
        ("WARNING", "worker.upkeep.reconcile")
    ]
    assert code in said[0].message


def test_a_refused_key_closes_its_gate_when_reconcile_is_the_first_to_hear(lab):
    lab.sim.fault("list", "error", code="INVALID_API_KEY")
    assert reconcile.by_the_clock(lab.rt) is None
    assert lab.breakers() == {BreakerName.API_KEY}


def test_a_lost_answer_is_adopted_before_it_settles(lab):
    """A drawn seed proves itself: nothing need be waited for."""
    generation_id = lab.in_doubt()
    report = lab.reconcile()
    assert report.adopted == (lab.submitted_tasks()[0]["task_id"],)
    assert lab.get(generation_id).status is Status.RUNNING
    lab.complete(generation_id)


def test_a_submitting_row_is_left_to_its_answer(lab):
    claim = lab.start()
    held = HeldAnswer(lab.rt, "submit")
    with in_background(lambda: submit.run(held.rt, [(claim.id, claim.lease)])):
        assert held.came.wait(30)
        report = lab.reconcile()
        assert (report.adopted, report.second, report.foreign) == ((), (), ())
        held.go.set()
    assert lab.get(claim.id).status is Status.RUNNING
    assert lab.strays() == []
    lab.complete(claim.id)


def test_an_end_that_was_missed_is_corrected(lab):
    ids = [lab.send(f"cat {n} [sim: end={end}]") for n, end in enumerate(["completed", "failed"])]
    lab.end_tasks()
    report = lab.reconcile()
    assert len(report.corrected) == 2
    assert [lab.get(i).status for i in ids] == [Status.COMPLETED, Status.FAILED]
    assert [lab.get(i).credit_cost for i in ids] == [Decimal(9), Decimal(0)]
    again = lab.reconcile()
    assert again.corrected == ()


def test_foreign_tasks_are_counted_and_left_alone(lab):
    generation_id = lab.send()
    foreign = lab.sim.inject(count=5)
    assert set(lab.reconcile().foreign) == set(foreign)
    lab.reconcile()
    assert reconcile.strays(lab.rt) == {"foreign": 5}
    assert lab.sim.received("cancel") == 0
    lab.complete(generation_id)


def test_a_foreign_task_beside_one_in_doubt_is_never_adopted(lab):
    """All that the list echoes is equal, but for the seed, which is not ours."""
    generation_id = lab.in_doubt(kind="drop_before")
    [foreign] = lab.sim.inject()
    report = lab.reconcile()
    assert (report.foreign, report.adopted, report.possible) == ((foreign,), (), ())
    assert lab.get(generation_id).status is Status.UNCERTAIN
    assert lab.resolve(generation_id) is Outcome.ABSENT


@pytest.mark.parametrize("echo", ["null", "minus_one"])
def test_a_task_without_a_seed_is_never_adopted(lab, echo):
    lab.sim.configure(seed_echo=echo)
    generation_id = lab.in_doubt()
    assert lab.reconcile().adopted == ()
    assert lab.get(generation_id).status is Status.UNCERTAIN
    # Its seed shows later: it is known for ours then, however it was counted before.
    lab.sim.configure(seed_echo="used")
    assert len(lab.reconcile().adopted) == 1
    assert lab.strays() == []
    lab.complete(generation_id)


def test_a_fixed_seed_is_possible_and_left_to_an_operator(lab):
    generation_id = lab.in_doubt(seed=42)
    report = lab.reconcile()
    assert report.possible == (lab.submitted_tasks()[0]["task_id"],)
    [stray] = lab.strays(generation_id)
    assert (stray.kind, stray.attempt) == ("possible", 1)
    assert lab.get(generation_id).status is Status.UNCERTAIN
    lab.unfollowed = 1


def test_a_fixed_seed_with_other_parameters_is_foreign(lab):
    lab.in_doubt(kind="drop_before", seed=42)
    lab.sim.inject(seed=42, resolution="480p")
    report = lab.reconcile()
    assert (report.possible, len(report.foreign)) == ((), 1)


@pytest.mark.parametrize("generation", ["accepted", "uploading"])
def test_a_late_task_is_adopted_before_anything_is_sent_again(lab, generation):
    lab.sim.configure(list_lag=1_000)
    generation_id = lab.in_doubt()
    lab.resolve(generation_id)
    claim = lab.readmit(generation_id) if generation == "uploading" else None
    lab.sim.configure(list_lag=0)
    assert len(lab.reconcile().adopted) == 1
    if claim is not None:
        lab.run(claim)
    assert lab.posts == 1
    lab.complete(generation_id)


def test_a_late_task_of_a_cancelled_generation_is_flagged(lab):
    lab.sim.configure(list_lag=1_000)
    generation_id = lab.in_doubt()
    lab.sql("UPDATE generations SET cancel_requested_at = now()")
    lab.resolve(generation_id)
    assert lab.get(generation_id).status is Status.CANCELLED
    lab.sim.configure(list_lag=0)
    assert len(lab.reconcile().second) == 1
    lab.second = 1
    assert lab.kinds() == ["second"]
    assert lab.sim.received("cancel") == 0


def test_a_stray_keeps_what_it_shows_last(lab):
    lab.sim.configure(list_lag=1_000)
    generation_id = lab.in_doubt()
    lab.resolve(generation_id)
    lab.send_again(generation_id)
    lab.sim.configure(list_lag=0)
    lab.reconcile()
    lab.complete(generation_id)
    lab.reconcile()
    lab.second = 1
    [stray] = lab.strays(generation_id)
    assert (stray.status, stray.credit_cost) == ("completed", Decimal(9))


def test_a_running_task_that_the_list_does_not_show_is_looked_at(lab):
    generation_id = lab.send()
    lab.sql(
        "UPDATE generations SET submitted_at = now() - interval '1 hour',"
        " due_at = now() + interval '1 hour'"
    )
    lab.sim.configure(list_lag=1_000)
    assert lab.reconcile().unseen == (generation_id,)
    assert [claim.id for claim in lab.due()] == [generation_id]
    lab.complete(generation_id)


def test_a_producers_open_transaction_holds_up_nobody_else(lab):
    """It cancels some in a transaction of its own, and takes its time to commit."""
    held, ended = lab.send("held"), lab.send("ended")
    held_unseen, unseen = lab.send("[sim: list_lag=3600]"), lab.send("[sim: list_lag=3600]")
    lab.sql(
        "UPDATE generations SET submitted_at = now() - interval '1 hour',"
        " due_at = now() + interval '1 hour'"
    )
    lab.end_tasks()
    with lab.rt.engine.connect() as producer:
        for one in (held, held_unseen):
            transitions.cancel(producer, one)
        report = lab.reconcile()
        assert report.corrected == (lab.get(ended).remote_task_id,)
        assert set(report.unseen) == {held_unseen, unseen}
        assert [claim.id for claim in lab.due()] == [unseen]
        producer.rollback()
    assert lab.reconcile().corrected == (lab.get(held).remote_task_id,)
    for one in (unseen, held_unseen):
        lab.complete(one)


def test_a_fresh_one_is_not_missed_yet(lab):
    lab.sim.configure(list_lag=1_000)
    generation_id = lab.send()
    assert lab.reconcile().unseen == ()
    lab.complete(generation_id)


def test_many_pages_in_any_order(lab):
    lab.sim.inject(count=130)
    ids = [lab.send(f"cat {n}") for n in range(3)]
    for order in ("created_desc", "created_asc", "updated_asc"):
        lab.sim.configure(list_order=order)
        report = lab.reconcile()
        assert (report.complete, report.remote_tasks, report.pages) == (True, 133, 2)
    lab.end_tasks()
    assert len(lab.reconcile().corrected) == len(ids)


def test_a_reading_of_many_pages_keeps_one_interval_of_the_clocks(lab, monkeypatch):
    monkeypatch.setattr(reading, "PAGE_SIZE", 5)
    for n in range(20):
        lab.send(f"cat {n}")
    kept: list[int] = []

    def on_page(_: object) -> None:
        kept.append(sum(isinstance(one, Skew) for one in gc.get_objects()))

    read = reading.read_list(lab.rt, since=None, list_lag=0, on_page=on_page, keep=False)
    assert read.pages == 4
    assert max(kept) == kept[0], "not one for each task"
    lab.end_tasks()


def test_a_drifting_list_says_that_it_is_not_complete(lab):
    lab.sim.inject(count=110)
    lab.sim.configure(drift_insert=1)
    generation_id = lab.send()
    report = lab.reconcile()
    assert not report.complete
    assert report.unseen == ()
    lab.sim.configure(drift_insert=0)
    lab.complete(generation_id)


@pytest.mark.parametrize("kind", ["unknown_status", "unknown_fields", "backwards"])
def test_odd_items_change_nothing(lab, kind):
    generation_id = lab.send()
    lab.sim.advance(20)
    lab.reconcile()
    before = lab.get(generation_id).remote_status
    lab.sim.fault("list", kind)
    lab.reconcile()
    assert lab.get(generation_id).remote_status == before == "processing"
    lab.complete(generation_id)


def test_ended_rows_stay_as_they_are(lab):
    generation_id = lab.send()
    before = lab.complete(generation_id)
    lab.sim.fault("list", "backwards")
    lab.reconcile()
    assert lab.get(generation_id) == before


def test_another_end_than_the_recorded_one_is_told_once(lab):
    generation_id = lab.send()
    lab.complete(generation_id)
    lab.sim.fault("list", "backwards", status="failed", times=2)
    lab.reconcile()
    lab.reconcile()
    assert lab.get(generation_id).status is Status.COMPLETED
    assert lab.history(generation_id).count("contradiction") == 1


def test_another_end_than_the_recorded_one_changes_no_credits(lab):
    generation_id = lab.send()
    view = lab.complete(generation_id)
    otherwise = Observation(view.remote_task_id, "failed", credit_cost=Decimal(0))
    with lab.rt.engine.begin() as conn:
        watch.hold_against(conn, [otherwise])
    assert "contradiction" in lab.history(generation_id)
    assert lab.get(generation_id).credit_cost == 9


def test_two_at_once(lab):
    lab.sim.fault("submit", "lost", times=6)
    ids = [lab.send(f"lost {n}") for n in range(6)]
    ids += [lab.send(f"cat {n}") for n in range(6)]
    lab.sim.inject(count=20)
    lab.end_tasks()
    with in_background(lab.reconcile):
        lab.reconcile()
    assert {lab.get(i).status for i in ids} == {Status.COMPLETED}
    assert all(lab.history(i).count("complete") == 1 for i in ids)
    assert reconcile.strays(lab.rt) == {"foreign": 20}


def test_equal_seeds_of_two_generations_without_doubt(lab):
    """Both answered: each has its own task, and neither is stray."""
    first, second = lab.send("one", seed=42), lab.send("two", seed=42)
    report = lab.reconcile()
    assert (report.possible, report.second, report.foreign) == ((), (), ())
    assert lab.get(first).remote_task_id != lab.get(second).remote_task_id
    lab.end_tasks()


@pytest.mark.parametrize("seed_echo", ["used", "null"])
def test_a_task_that_is_seen_before_its_answer_came(lab, seed_echo):
    """With a fixed seed, or none to be seen, it looks like a stray; it is one only until then."""
    lab.sim.configure(seed_echo=seed_echo)
    claim = lab.start(text_request(seed=42))
    held = HeldAnswer(lab.rt, "submit")
    with in_background(lambda: submit.run(held.rt, [(claim.id, claim.lease)])):
        assert held.came.wait(30)
        lab.reconcile()
        assert lab.get(claim.id).status is Status.SUBMITTING
        held.go.set()
    assert lab.get(claim.id).status is Status.RUNNING
    lab.reconcile()
    assert lab.strays() == []
    lab.complete(claim.id)


def test_one_task_that_the_tables_cannot_hold_costs_only_itself(lab, caplog):
    """Its id is too long for an index, and is shown on the same page as an end of ours."""
    generation_id = lab.send()
    lab.end_tasks()
    too_long = "".join(f"{n:08x}" for n in random.Random(7).sample(range(2**32), 1_000))
    lab.sim.inject(task_id=too_long)

    report = lab.reconcile()

    assert len(report.corrected) == 1
    assert lab.get(generation_id).status is Status.COMPLETED
    assert report.foreign == ()
    assert f"remote task {too_long[:80]} is passed over" in caplog.text
