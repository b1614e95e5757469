"""Callbacks: a hint that makes one look happen, and a mark that a remote task exists."""

import json
import threading
import uuid
from decimal import Decimal

import pytest

from models import callbacks, schedule, transitions
from models.callbacks import Address
from models.lifecycle import Status
from models.operating.actions import By
from tests.integration.invariants import in_background, laboratory
from worker import callback_address, operator
from worker.operator import DecisionRefused
from worker.stages import poll, resolve, submit
from worker.stages.resolve import Outcome

NOWHERE = "http://127.0.0.1:9"
"""The discard port: what the simulator posts there by itself is refused."""

SPACING = 5.0


@pytest.fixture
def environment(environment):
    return environment | {"SEEDANCE_PUBLIC_URL": f"{NOWHERE}/hooks"}


@pytest.fixture
def lab(make_runtime, sim, caplog):
    with laboratory(make_runtime, sim, caplog) as lab:
        yield lab


def body(lab) -> dict:
    return json.loads(lab.sim.submits()[-1]["body"])


def address(lab) -> Address:
    """Where the provider was told to call back."""
    to = callback_address.read(body(lab)["callback_url"].removeprefix(f"{NOWHERE}/hooks"))
    assert to is not None
    return to


def call(lab, to: Address, task_id: str | None = None, spacing: float = SPACING) -> bool | None:
    with lab.rt.engine.begin() as conn:
        return callbacks.heed(conn, to, task_id=task_id, spacing=spacing)


def due_in(lab, generation_id) -> float:
    return float(
        lab.value(
            "SELECT extract(epoch FROM due_at - now()) FROM generations WHERE id = :id",
            id=generation_id,
        )
    )


def image(lab) -> list:
    """Everything that is written anywhere."""
    tables = ("generations", "submit_attempts", "generation_events", "stray_tasks")
    return [sorted(map(repr, lab.sql(f"SELECT xmin, * FROM {table}"))) for table in tables]


def put_off(lab, generation_id, seconds=600) -> None:
    lab.sql(
        "UPDATE generations SET due_at = now() + :s * interval '1 s' WHERE id = :id",
        id=generation_id,
        s=seconds,
    )


# --- what is asked for --------------------------------------------------------------------------


def test_each_attempt_has_an_address_of_its_own(lab):
    generation_id = lab.in_doubt(kind="drop_before")
    lab.resolve(generation_id)
    first = lab.value("SELECT callback_digest FROM submit_attempts")
    lab.send_again(generation_id)
    to = address(lab)
    assert (to.generation_id, to.attempt) == (generation_id, 2)
    digests = [
        bytes(row[0])
        for row in lab.sql("SELECT callback_digest FROM submit_attempts ORDER BY number")
    ]
    assert digests == [bytes(first), callbacks.digest(to.secret)]
    assert digests[0] != digests[1]
    lab.complete(generation_id)


def test_the_secret_is_kept_nowhere(lab, caplog):
    caplog.set_level("DEBUG")
    generation_id = lab.send()
    secret = address(lab).secret
    call(lab, address(lab))
    lab.complete(generation_id)
    assert not any(secret in row for table in image(lab) for row in table)


def test_a_producers_own_callback_is_handed_on(lab):
    generation_id = lab.send(callback_url="https://producer.example/hook")
    assert body(lab)["callback_url"] == "https://producer.example/hook"
    assert lab.value("SELECT callback_digest FROM submit_attempts") is None
    lab.complete(generation_id)


def test_without_a_public_address_nothing_changes(lab):
    lab.rt = lab.make_runtime(public_url="")
    generation_id = lab.send()
    assert "callback_url" not in body(lab)
    assert lab.value("SELECT callback_digest FROM submit_attempts") is None
    lab.complete(generation_id)


def test_a_provider_that_quotes_the_address_puts_it_nowhere(lab):
    lab.sim.fault(
        "submit",
        "error",
        code="INVALID_PARAMETER",
        message=f"no such host: {NOWHERE}/hooks/callbacks/{'a' * 32}/1/{'s' * 43}",
        times=1,
    )
    generation_id = lab.send()
    view = lab.get(generation_id)
    assert view.status is Status.FAILED
    assert view.error_message == f"no such host: {NOWHERE}/hooks/callbacks/{'a' * 32}/1/…"
    assert not any("s" * 43 in row for table in image(lab) for row in table)


# --- a running generation -----------------------------------------------------------------------


def test_a_callback_makes_a_running_generation_due_at_once(lab):
    generation_id = lab.send()
    put_off(lab, generation_id)
    lab.end_tasks()
    assert call(lab, address(lab)) is True
    [claim] = lab.due()
    poll.run(lab.rt, claim.id, claim.lease)
    assert lab.get(generation_id).status is Status.COMPLETED
    assert "called_back" not in lab.history(generation_id), "nothing out of the ordinary"


def test_what_a_callback_says_is_not_believed(lab):
    generation_id = lab.send()
    assert call(lab, address(lab), task_id="somebody-elses") is True
    [claim] = lab.due()
    poll.run(lab.rt, claim.id, claim.lease)
    view = lab.get(generation_id)
    assert (view.status, view.remote_task_id) == (
        Status.RUNNING,
        lab.submitted_tasks()[0]["task_id"],
    )
    lab.complete(generation_id)


def test_repeated_callbacks_change_nothing_while_the_row_is_due(lab):
    generation_id = lab.send()
    put_off(lab, generation_id)
    assert call(lab, address(lab)) is True
    before = image(lab)
    assert [call(lab, address(lab)) for _ in range(20)] == [False] * 20
    assert image(lab) == before
    lab.complete(generation_id)


def test_a_flood_makes_one_look_in_each_spacing(lab):
    """However often a look is put off again, callbacks bring the next no nearer than that."""
    generation_id = lab.send()
    to = address(lab)
    put_off(lab, generation_id)
    call(lab, to)
    for _ in range(3):
        put_off(lab, generation_id)  # as after a look
        assert call(lab, to) is True, "the last of them is not forgotten"
        assert SPACING - 3 < due_in(lab, generation_id) <= SPACING
        assert lab.due() == []
    lab.sql("UPDATE submit_attempts SET callback_at = callback_at - interval '5 s'")
    assert call(lab, to) is True
    assert due_in(lab, generation_id) <= 0
    lab.complete(generation_id)


def test_a_callback_while_a_look_is_under_way_is_not_lost(lab):
    """The look that saw nothing yet must not put off the one that the callback asks for."""
    lab.sim.fault("get", "delay_after", seconds=1, times=1)
    generation_id = lab.send()
    claim = lab.claim(generation_id)
    with in_background(lambda: poll.run(lab.rt, claim.id, claim.lease)) as looking:
        lab.sim.wait(endpoint="get", received=1)
        call(lab, address(lab))
        looking.join(20)
    [again] = lab.due()
    lab.end_tasks()
    poll.run(lab.rt, again.id, again.lease)
    assert lab.get(generation_id).status is Status.COMPLETED


def test_a_callback_that_overtakes_the_answer_makes_the_first_look_come_at_once(lab):
    def with_callback(conn_lab=lab):
        to = address(conn_lab)
        assert call(conn_lab, to) is True
        assert conn_lab.get(to.generation_id).status is Status.SUBMITTING

    lab.rt = lab.make_runtime(poll_min=60, poll_max=60, http_timeout=40, lease=60)
    lab.sim.fault("submit", "delay_after", seconds=2, times=1)
    claim = lab.start()
    with in_background(lambda: submit.run(lab.rt, [(claim.id, claim.lease)])) as running:
        lab.sim.wait(tasks=1)
        with_callback()
        running.join(30)
    assert lab.get(claim.id).status is Status.RUNNING
    assert due_in(lab, claim.id) <= 0
    lab.complete(claim.id)


def test_a_callback_after_the_end_changes_nothing(lab):
    generation_id = lab.send()
    to = address(lab)
    lab.complete(generation_id)
    before = image(lab)
    assert call(lab, to) is False
    assert image(lab) == before


# --- forged -------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["secret", "attempt", "generation", "another's"])
def test_a_forged_address_writes_nothing(lab, what):
    generation_id = lab.send()
    to = address(lab)
    other = lab.send("another")
    forged = {
        "secret": Address(generation_id, 1, "x" * 43),
        "attempt": Address(generation_id, 2, to.secret),
        "generation": Address(uuid.uuid4(), 1, to.secret),
        "another's": Address(other, 1, to.secret),
    }[what]
    before = image(lab)
    assert call(lab, forged) is None
    assert image(lab) == before
    lab.complete(generation_id)
    lab.complete(other)


def test_an_attempt_without_an_address_is_never_addressed(lab):
    """Such as one that was sent before callbacks were on: no digest equals no secret."""
    lab.rt = lab.make_runtime(public_url="")
    generation_id = lab.send()
    assert call(lab, Address(generation_id, 1, "")) is None
    lab.complete(generation_id)


# --- in doubt -----------------------------------------------------------------------------------


def test_a_lost_answer_is_adopted_by_its_callback_before_it_settles(lab):
    generation_id = lab.in_doubt()
    put_off(lab, generation_id)
    task_id = lab.submitted_tasks()[0]["task_id"]
    assert call(lab, address(lab), task_id=task_id) is True
    [claim] = lab.due()
    assert resolve.run(lab.rt, [(claim.id, claim.lease)]) == {generation_id: Outcome.ADOPTED}
    assert lab.get(generation_id).remote_task_id == task_id
    assert lab.history(generation_id)[-3:] == ["called_back", "adopt", "progress"]
    assert lab.sim.received("list") == 0
    lab.complete(generation_id)


@pytest.mark.parametrize("task_id", [None, "no-such-task"])
def test_a_callback_that_names_no_task_of_ours_has_the_newest_of_the_list_looked_at(lab, task_id):
    generation_id = lab.in_doubt()
    call(lab, address(lab), task_id=task_id)
    [claim] = lab.due()
    assert resolve.run(lab.rt, [(claim.id, claim.lease)]) == {generation_id: Outcome.ADOPTED}
    assert lab.sim.received("list") == 1
    lab.complete(generation_id)


def test_a_task_that_a_callback_names_is_adopted_by_its_mark_alone(lab):
    """Another's task in the payload: not adopted, and nothing is concluded."""
    generation_id = lab.in_doubt(kind="drop_before")
    [other] = lab.sim.inject(status="completed")
    call(lab, address(lab), task_id=other)
    [claim] = lab.due()
    assert resolve.run(lab.rt, [(claim.id, claim.lease)]) == {generation_id: Outcome.EARLY}
    assert lab.get(generation_id).status is Status.UNCERTAIN
    assert due_in(lab, generation_id) > 0, "it waits until it has settled"
    lab.sql("UPDATE submit_attempts SET callback_at = NULL")  # as if none had come
    lab.resolve(generation_id)
    lab.send_again(generation_id)
    lab.complete(generation_id)


def test_a_callback_proves_nothing_for_a_seed_that_the_producer_fixed(lab):
    generation_id = lab.in_doubt(seed=7)
    call(lab, address(lab), task_id=lab.submitted_tasks()[0]["task_id"])
    [claim] = lab.due()
    assert resolve.run(lab.rt, [(claim.id, claim.lease)]) == {generation_id: Outcome.EARLY}
    assert lab.sim.received("get") == 0
    lab.rt = lab.make_runtime(key_exclusive=True)
    assert lab.resolve(generation_id) is Outcome.ADOPTED
    lab.complete(generation_id)


def test_what_was_called_back_is_never_taken_for_absent(lab):
    """Two complete readings show nothing (a lagging list, say): an operator decides."""
    generation_id = lab.in_doubt(kind="drop_before")
    call(lab, address(lab))
    assert lab.resolve(generation_id) is Outcome.UNDECIDED
    view = lab.get(generation_id)
    assert view.status is Status.UNCERTAIN
    assert "the provider called back" in (view.attention or "")
    assert lab.resolve(generation_id) is Outcome.UNDECIDED
    assert lab.posts == 1

    operator.resubmit(lab.rt.engine, generation_id, attempt=1, by=By("test"))
    assert lab.get(generation_id).status is Status.ACCEPTED
    lab.send_again(generation_id)
    assert lab.posts == 2
    lab.complete(generation_id)


def test_a_callback_between_the_readings_and_the_decision_counts(lab, monkeypatch):
    generation_id = lab.in_doubt(kind="drop_before")
    to = address(lab)
    monkeypatch.setattr(
        resolve, "reached", lambda point: point == "resolve.after_reading" and call(lab, to)
    )
    assert lab.resolve(generation_id) is Outcome.UNDECIDED
    assert lab.get(generation_id).status is Status.UNCERTAIN
    operator.fail(lab.rt.engine, generation_id, attempt=1, by=By("test"))


def test_a_callback_after_absence_was_found_keeps_it_from_being_sent_again(lab):
    generation_id = lab.in_doubt(kind="drop_before")
    to = address(lab)
    assert lab.resolve(generation_id) is Outcome.ABSENT
    assert call(lab, to) is True
    view = lab.send_again(generation_id)
    assert view.status is Status.ACCEPTED
    assert "the provider called back" in (view.attention or "")
    assert lab.posts == 1

    operator.resubmit(lab.rt.engine, generation_id, attempt=1, by=By("test"))
    assert call(lab, to) is None, "that address is taken no more"
    assert lab.get(generation_id).attention is None
    lab.send_again(generation_id)
    lab.complete(generation_id)


def test_a_refusal_that_was_called_back_is_not_sent_again(lab):
    lab.sim.fault("submit", "service_busy", times=1)
    generation_id = lab.send()
    assert lab.get(generation_id).status is Status.ACCEPTED
    lab.calm()
    call(lab, address(lab))
    view = lab.send_again(generation_id)
    assert (view.status, lab.posts) == (Status.ACCEPTED, 1)
    assert "the provider called back" in (view.attention or "")
    operator.resubmit(lab.rt.engine, generation_id, attempt=1, by=By("test"))
    lab.send_again(generation_id)
    lab.complete(generation_id)


def test_a_late_task_that_was_called_back_is_adopted_by_the_watch(lab):
    """It was found absent, its callback came, and then the list shows it."""
    lab.sim.configure(list_lag=600, get_lag=600)
    generation_id = lab.in_doubt()
    to = address(lab)
    assert lab.resolve(generation_id) is Outcome.ABSENT
    call(lab, to)
    lab.send_again(generation_id)
    assert lab.posts == 1
    lab.sim.configure(list_lag=0, get_lag=0)
    assert lab.reconcile().adopted
    view = lab.get(generation_id)
    assert (view.status, view.attention) == (Status.RUNNING, None)
    lab.complete(generation_id)


@pytest.mark.parametrize("sent_again", [False, True], ids=["at once", "in attention"])
def test_cancelled_after_it_was_called_back_its_task_is_flagged_with_its_credits(lab, sent_again):
    """Found absent, called back, cancelled while it was accepted: what the task costs is not lost.

    It ends at once, as every accepted one does: no answer named the task that a cancel could stop.
    """
    lab.sim.configure(list_lag=600, get_lag=600)
    generation_id = lab.in_doubt()
    to = address(lab)
    assert lab.resolve(generation_id) is Outcome.ABSENT
    assert call(lab, to) is True
    if sent_again:
        lab.send_again(generation_id)
        assert lab.get(generation_id).attention
    with lab.rt.engine.begin() as conn:
        assert transitions.cancel(conn, generation_id) is not None
    assert call(lab, to) is False, "nothing is left to look at"
    lab.sim.configure(list_lag=0, get_lag=0)
    lab.end_tasks()
    lab.reconcile()
    view = lab.get(generation_id)
    assert (view.status, view.attention, view.remote_task_id) == (Status.CANCELLED, None, None)
    lab.second = 1
    [task] = lab.sim.tasks(origin="submit")
    [stray] = lab.sql("SELECT kind, task_id, generation_id FROM stray_tasks")
    assert tuple(stray) == ("second", task["task_id"], generation_id)
    charged = lab.value(
        "SELECT sum(amount) FROM ledger_entries WHERE kind = 'charged' AND generation_id = :id",
        id=generation_id,
    )
    assert charged == Decimal(task["charged"]) > 0
    assert lab.posts == 1


def test_a_plain_row_has_nothing_for_an_operator_to_send(lab):
    generation_id = lab.in_doubt(kind="drop_before")
    lab.resolve(generation_id)
    with pytest.raises(DecisionRefused, match="sent without a decision"):
        operator.resubmit(lab.rt.engine, generation_id, attempt=1, by=By("test"))
    lab.send_again(generation_id)
    lab.complete(generation_id)


def test_callbacks_and_answers_in_each_others_way_never_deadlock(lab):
    """Both lock the generation first; many of both at once come to an end."""
    ids = [lab.send(f"cat {n}") for n in range(6)]
    addresses = {}
    for sent in lab.sim.submits():
        url = json.loads(sent["body"])["callback_url"]
        to = callback_address.read(url.removeprefix(f"{NOWHERE}/hooks"))
        addresses[to.generation_id] = to
    errors = []

    def work(act):
        try:
            for _ in range(15):
                act()
        except Exception as error:  # noqa: BLE001  (handed to the test's thread)
            errors.append(error)

    def calls():
        for generation_id in ids:
            call(lab, addresses[generation_id], spacing=0.001)

    def looks():
        for claim in lab.due():
            lab.run(claim)

    threads = [threading.Thread(target=work, args=(act,)) for act in (calls, calls, looks, looks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert errors == []
    for generation_id in ids:
        lab.complete(generation_id)


def test_a_wish_to_cancel_does_not_make_it_absent(lab):
    generation_id = lab.in_doubt(kind="drop_before")
    call(lab, address(lab))
    with lab.rt.engine.begin() as conn:
        transitions.cancel(conn, generation_id)
    assert lab.resolve(generation_id) is Outcome.UNDECIDED
    assert lab.get(generation_id).status is Status.UNCERTAIN
    operator.fail(lab.rt.engine, generation_id, attempt=1, by=By("test"))


# --- while the task list is read instead of polling -------------------------------------------


@pytest.mark.parametrize("due", ["1 hour", "-1 s"])
def test_what_is_called_back_is_not_left_to_the_task_list(lab, due):
    """Put ahead by the last pass, or due and waiting for the next: its own look comes at once."""
    generation_id = lab.send("a cat")
    lab.sql("UPDATE generations SET polls = 1, due_at = now() + CAST(:due AS interval)", due=due)

    def claimed():
        with lab.rt.engine.begin() as conn:
            claims = schedule.claim_due(conn, 10, lease_seconds=3, by_list=True)
        return [claim.id for claim in claims]

    assert claimed() == []
    assert call(lab, address(lab))
    assert claimed() == [generation_id]
