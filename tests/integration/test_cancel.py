"""Cancel, in each status, racing the intent, and whatever the provider makes of it."""

import threading
import uuid

import pytest

from models.lifecycle import Status
from tests.integration.conftest import text_request
from tests.integration.invariants import in_background, laboratory, paused
from worker import producer
from worker.producer import UnknownGenerationError
from worker.stages import poll, submit
from worker.stages.resolve import Outcome


@pytest.fixture
def lab(make_runtime, sim, caplog):
    with laboratory(make_runtime, sim, caplog) as lab:
        yield lab


def cancel(lab, generation_id):
    with lab.rt.engine.begin() as conn:
        return producer.cancel(generation_id, session=conn)


def look(lab, generation_id):
    lab.run(lab.claim(generation_id))
    return lab.get(generation_id)


def test_accepted(lab):
    generation_id = lab.enqueue()
    view = cancel(lab, generation_id)
    assert view.status is Status.CANCELLED
    assert lab.once() == 0
    assert lab.posts == 0


def test_uploading(lab):
    claim = lab.start()
    assert cancel(lab, claim.id).status is Status.CANCELLED
    submit.run(lab.rt, [(claim.id, claim.lease)])
    assert lab.posts == 0


def test_before_the_check_of_the_intent(lab):
    """The wish comes between the intent and the POST: it is not sent."""
    claim = lab.start()

    def wish():
        assert cancel(lab, claim.id).status is Status.SUBMITTING

    submit.run(paused(lab.rt, before_check=wish), [(claim.id, claim.lease)])
    assert lab.get(claim.id).status is Status.CANCELLED
    assert lab.outcomes(claim.id) == ["not_sent"]
    assert lab.posts == 0


def test_after_the_check(lab):
    """Too late to stop the POST: its task is cancelled at the provider at once."""
    claim = lab.start()
    submit.run(paused(lab.rt, after_check=lambda: cancel(lab, claim.id)), [(claim.id, claim.lease)])
    view = lab.get(claim.id)
    assert view.status is Status.RUNNING
    [due] = lab.due()
    assert due.id == claim.id
    lab.run(due)
    assert lab.get(claim.id).status is Status.CANCELLED
    assert lab.sim.received("cancel") == 1


def test_racing_the_intent(lab):
    """Whoever is first: either nothing is sent, or the remote task is cancelled."""
    for n in range(12):
        claim = lab.start(text_request(f"cat {n}"))
        start = threading.Barrier(2)

        def submits(claim=claim, start=start):
            start.wait(10)
            submit.run(lab.rt, [(claim.id, claim.lease)])

        with in_background(submits):
            start.wait(10)
            cancel(lab, claim.id)
        view = lab.get(claim.id)
        if view.status is Status.RUNNING:
            view = look(lab, claim.id)
        assert view.status is Status.CANCELLED
    assert all(task["status"] == "cancelled" for task in lab.sim.tasks())


def test_uncertain_and_absent(lab):
    generation_id = lab.in_doubt(kind="drop_before")
    assert cancel(lab, generation_id).status is Status.UNCERTAIN
    assert lab.resolve(generation_id) is Outcome.ABSENT
    assert lab.get(generation_id).status is Status.CANCELLED
    assert lab.sim.received("list") == 2
    assert lab.posts == 1


def test_uncertain_and_found(lab):
    generation_id = lab.in_doubt()
    cancel(lab, generation_id)
    assert lab.resolve(generation_id) is Outcome.ADOPTED
    assert look(lab, generation_id).status is Status.CANCELLED
    assert lab.sim.received("cancel") == 1


def test_uncertain_does_not_settle_sooner(lab):
    generation_id = lab.in_doubt()
    cancel(lab, generation_id)
    assert lab.due() == []
    lab.resolve(generation_id)
    assert look(lab, generation_id).status is Status.CANCELLED


def test_refused_for_now_while_a_cancel_was_asked(lab):
    """The POST was declined and the row is accepted again: the wish is not forgotten."""
    lab.sim.fault("submit", "rate_limited", times=1)
    claim = lab.start()
    submit.run(paused(lab.rt, after_check=lambda: cancel(lab, claim.id)), [(claim.id, claim.lease)])
    lab.calm()
    if not lab.get(claim.id).ended:
        lab.send_again(claim.id)
    assert lab.get(claim.id).status is Status.CANCELLED
    assert lab.posts == 1


@pytest.mark.parametrize("mode", ["works", "late"])
def test_running(lab, mode):
    lab.sim.configure(cancel_mode=mode)
    generation_id = lab.send()
    lab.sim.advance(20)  # at work: only then is a cancel no more than an attempt
    view = cancel(lab, generation_id)
    assert view.status is Status.RUNNING
    assert lab.due(), "it is due at once"
    view = look(lab, generation_id)
    if mode == "late":
        assert view.status is Status.RUNNING
        lab.end_tasks()
        view = look(lab, generation_id)
    assert view.status is Status.CANCELLED
    assert view.credit_cost == 0
    assert lab.sim.received("cancel") == 1


def test_said_cancelled_then_completed_the_charge_is_ours(lab):
    """ "cancelled" is only a hint: the end, and its credits, come from looking."""
    lab.sim.configure(cancel_mode="completes")
    generation_id = lab.send()
    lab.sim.advance(20)
    cancel(lab, generation_id)
    assert look(lab, generation_id).status is Status.RUNNING
    assert "cancel_sent" in lab.history(generation_id)
    view = lab.complete(generation_id)
    assert view.credit_cost == 9
    [account] = lab.sim.accounts()
    assert account["used"] == "9.00"


def test_completed_before_the_cancel_got_there(lab):
    generation_id = lab.send()
    lab.end_tasks()
    cancel(lab, generation_id)
    view = look(lab, generation_id)
    assert view.status is Status.COMPLETED
    assert view.credit_cost == 9


@pytest.mark.parametrize("kind", ["error", "lost", "drop_before", "bare", "service_busy"])
def test_a_cancel_whose_answer_is_lost_is_asked_again(lab, kind):
    lab.sim.fault("cancel", kind, times=1)
    generation_id = lab.send()
    cancel(lab, generation_id)
    look(lab, generation_id)
    view = lab.get(generation_id)
    if not view.ended:
        view = look(lab, generation_id)
    assert view.status is Status.CANCELLED


def test_a_cancel_that_is_refused_for_ever_follows_the_task_to_its_end(lab):
    lab.sim.fault("cancel", "error", code="TASK_CANCEL_NOT_ALLOWED")
    generation_id = lab.send()
    cancel(lab, generation_id)
    look(lab, generation_id)
    assert lab.get(generation_id).status is Status.RUNNING
    lab.complete(generation_id)
    assert lab.sim.received("cancel") == 1


@pytest.mark.parametrize("end", ["completed", "failed", "expired"])
def test_what_has_ended_stays_as_it_is(lab, end):
    generation_id = lab.send(f"a cat [sim: end={end}]")
    lab.end_tasks()
    before = look(lab, generation_id)
    assert before.status == end
    assert cancel(lab, generation_id) == before
    assert lab.sim.received("cancel") == 0


def test_twice_is_once(lab):
    generation_id = lab.send()
    first = cancel(lab, generation_id)
    second = cancel(lab, generation_id)
    assert first.cancel_requested_at == second.cancel_requested_at
    assert lab.history(generation_id).count("cancel_asked") == 1
    assert look(lab, generation_id).status is Status.CANCELLED


def test_the_same_poll_message_twice_sends_one_cancel(lab):
    lab.sim.configure(cancel_mode="late")
    generation_id = lab.send()
    lab.sim.advance(20)
    cancel(lab, generation_id)
    claim = lab.claim(generation_id)
    poll.run(lab.rt, claim.id, claim.lease)
    poll.run(lab.rt, claim.id, claim.lease)
    assert lab.sim.received("cancel") == 1
    lab.end_tasks()


def test_nobody(lab):

    with pytest.raises(UnknownGenerationError):
        cancel(lab, uuid.uuid4())


def test_a_foreign_task_is_never_cancelled(lab):
    lab.sim.inject(count=3)
    generation_id = lab.in_doubt()
    cancel(lab, generation_id)
    lab.reconcile()
    lab.settle(generation_id)
    for _ in range(2):
        if not lab.get(generation_id).ended:
            lab.run(lab.claim(generation_id))
    assert lab.get(generation_id).status is Status.CANCELLED
    assert lab.sim.received("cancel") == 1
    foreign = lab.sim.tasks(origin="injected")
    assert len(foreign) == 3
    assert not any(task["cancel_asked"] for task in foreign)
