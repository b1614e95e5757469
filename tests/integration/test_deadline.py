"""A deadline: not sent by then, it expires here; running beyond it, it is cancelled there."""

import pytest

from models.lifecycle import Status
from tests.integration.conftest import text_request
from tests.integration.invariants import laboratory, paused
from worker.stages import poll, submit
from worker.stages.resolve import Outcome


@pytest.fixture
def lab(make_runtime, sim, caplog):
    with laboratory(make_runtime, sim, caplog, poll_min=60, poll_max=60) as lab:
        yield lab


def deadline(lab, generation_id, seconds):
    """Its deadline is so many seconds from now."""
    lab.sql(
        "UPDATE generations SET deadline_at = now() + :s * interval '1 s' WHERE id = :id",
        s=seconds,
        id=generation_id,
    )


def due_in(lab, generation_id):
    """Seconds until it is due."""
    query = "SELECT extract(epoch FROM due_at - now()) FROM generations WHERE id = :id"
    return float(lab.value(query, id=generation_id))


def look(lab, generation_id):
    lab.run(lab.claim(generation_id))
    return lab.get(generation_id)


def told(lab, generation_id):
    """Why its cancel was asked for."""
    query = (
        "SELECT detail FROM generation_events WHERE generation_id = :id AND event = 'cancel_asked'"
    )
    return [row.detail for row in lab.sql(query, id=generation_id)]


def test_it_is_looked_at_no_later_than_its_deadline(lab):
    claim = lab.start()
    deadline(lab, claim.id, 20)
    submit.run(lab.rt, [(claim.id, claim.lease)])
    assert lab.get(claim.id).status is Status.RUNNING
    assert due_in(lab, claim.id) <= 20, "and not only after 60 s"
    look(lab, claim.id)
    assert due_in(lab, claim.id) <= 20
    lab.sim.fault("get", "bare", status=502, times=1)
    look(lab, claim.id)
    assert due_in(lab, claim.id) <= 20, "nor when it could not be seen"
    assert told(lab, claim.id) == []
    lab.complete(claim.id)


def test_beyond_it_the_task_is_cancelled_at_the_provider(lab):
    generation_id = lab.send()
    lab.sim.advance(20)
    deadline(lab, generation_id, -1)
    view = look(lab, generation_id)
    assert view.status is Status.CANCELLED
    assert view.credit_cost == 0
    assert told(lab, generation_id) == [{"by": "deadline"}]
    assert lab.history(generation_id)[-3:] == ["cancel_asked", "cancel_sent", "end_cancelled"]
    assert lab.sim.received("cancel") == 1


def test_one_that_completes_all_the_same_is_completed_with_its_charge(lab):
    lab.sim.configure(cancel_mode="completes")
    generation_id = lab.send()
    lab.sim.advance(20)
    deadline(lab, generation_id, -1)
    for _ in range(3):
        assert look(lab, generation_id).status is Status.RUNNING
    assert due_in(lab, generation_id) > 50, "at its usual pace, now that the cancel is sent"
    view = lab.complete(generation_id)
    assert view.credit_cost == 9
    [account] = lab.sim.accounts()
    assert account["used"] == "9.00"
    assert lab.sim.received("cancel") == 1
    assert told(lab, generation_id) == [{"by": "deadline"}]


@pytest.mark.parametrize("kind", ["error", "lost", "drop_before", "service_busy"])
def test_a_cancel_whose_answer_is_lost_is_sent_again(lab, kind):
    lab.sim.fault("cancel", kind, times=1)
    generation_id = lab.send()
    deadline(lab, generation_id, -1)
    for _ in range(3):
        if not lab.get(generation_id).ended:
            look(lab, generation_id)
    assert lab.get(generation_id).status is Status.CANCELLED
    assert told(lab, generation_id) == [{"by": "deadline"}]


def test_a_worker_that_dies_over_it_leaves_it_to_the_next(lab):
    """The wish is stored before the provider is asked."""
    generation_id = lab.send()
    deadline(lab, generation_id, -1)
    lab.sim.fault("cancel", "drop_before", times=1)
    lab.sim.fault("get", "drop_before", times=1)
    look(lab, generation_id)
    assert lab.get(generation_id).cancel_requested_at is not None
    assert look(lab, generation_id).status is Status.CANCELLED
    assert told(lab, generation_id) == [{"by": "deadline"}]


def test_a_cancel_of_the_producer_is_not_told_as_the_deadlines(lab):
    lab.sim.configure(cancel_mode="late")
    generation_id = lab.send()
    lab.sim.advance(20)
    lab.sql("UPDATE generations SET cancel_requested_at = now()")
    deadline(lab, generation_id, -1)
    look(lab, generation_id)
    assert told(lab, generation_id) == []
    assert lab.sim.received("cancel") == 1
    lab.end_tasks()


def test_a_stale_message_asks_for_nothing(lab):
    generation_id = lab.send()
    old = lab.claim(generation_id)
    lab.claim(generation_id)
    deadline(lab, generation_id, -1)
    poll.run(lab.rt, old.id, old.lease)
    assert told(lab, generation_id) == []
    assert lab.sim.received("cancel") == 0
    look(lab, generation_id)


def test_in_doubt_beyond_it_and_found(lab):
    """What became of it is found out first; then its task is cancelled."""
    generation_id = lab.in_doubt()
    deadline(lab, generation_id, -1)
    assert lab.admit() == []
    assert lab.get(generation_id).status is Status.UNCERTAIN
    assert lab.resolve(generation_id) is Outcome.ADOPTED
    assert look(lab, generation_id).status is Status.CANCELLED
    assert told(lab, generation_id) == [{"by": "deadline"}]


def test_in_doubt_beyond_it_and_absent(lab):
    generation_id = lab.in_doubt(kind="drop_before")
    deadline(lab, generation_id, -1)
    assert lab.resolve(generation_id) is Outcome.ABSENT
    assert lab.admit() == []
    view = lab.get(generation_id)
    assert (view.status, view.error_code) == (Status.EXPIRED, "DEADLINE_PASSED")
    assert lab.posts == 1


def test_between_intent_and_post(lab):
    """It passes in this very moment: nothing is written, and it expires."""
    claim = lab.start()
    late = paused(lab.rt, before_check=lambda: deadline(lab, claim.id, -1))
    submit.run(late, [(claim.id, claim.lease)])
    assert lab.posts == 0
    assert lab.outcomes(claim.id) == ["not_sent"]
    assert lab.admit() == []
    assert lab.get(claim.id).status is Status.EXPIRED


def test_while_it_uploads(lab):
    claim = lab.start()
    deadline(lab, claim.id, -1)
    submit.run(lab.rt, [(claim.id, claim.lease)])
    assert lab.get(claim.id).status is Status.EXPIRED
    assert lab.posts == 0


@pytest.mark.parametrize("end", ["completed", "failed", "expired"])
def test_ended_before_anybody_looked(lab, end):
    """The task had ended by itself before its deadline was noticed: its end is what counts."""
    generation_id = lab.send(f"a cat [sim: end={end}]")
    lab.end_tasks()
    deadline(lab, generation_id, -1)
    view = look(lab, generation_id)
    assert view.status == end
    assert view.credit_cost == (9 if end == "completed" else 0)


def test_through_the_whole_service(lab):
    """By its own time, with nothing moved by hand."""
    lab.rt = lab.make_runtime(poll_min=60, poll_max=60)
    generation_id = lab.enqueue(text_request("a cat [sim: seconds=100000]"))
    deadline(lab, generation_id, 3)
    view = lab.until_ended(generation_id)
    if view.status is Status.EXPIRED:
        pytest.skip("the machine took three seconds to submit it")
    assert view.status is Status.CANCELLED
    assert told(lab, generation_id) == [{"by": "deadline"}]
