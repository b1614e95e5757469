"""Retries: once, linked both ways, recorded, and never of what was refused for good."""

import asyncio
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal

import pytest
from sqlalchemy import text

from models import budgets, reads, transitions, watch
from models.error_classes import FINAL
from models.ledger import reading
from models.lifecycle import Status
from models.operating import actions
from models.operating.actions import By
from models.operating.retries import Refusal
from tests.integration import rows
from tests.integration.conftest import text_request
from tests.integration.invariants import laboratory
from tests.waiting import wait_for
from worker import aproducer, operator, producer
from worker.producer import BudgetExceeded, RetryRefused, UnknownGenerationError
from worker.requests import new_budget
from worker.retrying import retry
from worker.stages import accept
from worker.stages.common import observation

S = Status
ANA = By("ana", "the provider's outage")


@pytest.fixture
def lab(make_runtime, sim, caplog):
    with laboratory(make_runtime, sim, caplog) as lab:
        yield lab


def again(lab, generation_id, **options):
    with lab.rt.engine.begin() as conn:
        return retry(conn, generation_id, by=ANA, **options)


def refused(lab, generation_id, **options) -> Refusal | None:
    with pytest.raises(RetryRefused) as caught:
        again(lab, generation_id, **options)
    assert str(generation_id) in str(caught.value)
    return caught.value.refusal


def failed(lab, code="INTERNAL_ERROR", prompt="a cat", **options) -> uuid.UUID:
    """A generation whose remote task failed."""
    generation_id = lab.enqueue(text_request(f"{prompt} [sim: fail={code}]"), **options)
    lab.once()
    lab.end_tasks()
    lab.run(lab.claim(generation_id))
    assert lab.get(generation_id).status is S.FAILED
    return generation_id


def test_the_same_request_once_more(lab):
    first = failed(lab, tenant="acme", priority=3, metadata={"order": 7}, idempotency_key="k")
    second = again(lab, first)
    before, after = lab.get(first), lab.get(second)
    assert (before.status, before.retried_as) == (S.FAILED, second)
    assert (after.status, after.retry_of) == (S.ACCEPTED, first)
    for field in ("request", "tenant", "priority", "metadata", "estimated_cost"):
        assert getattr(after, field) == getattr(before, field), field
    assert after.idempotency_key is None
    assert lab.history(first)[-1] == "retried"
    assert lab.once() == 1
    assert lab.posts == 2


def test_it_is_accounted_for_by_itself(lab):
    first = failed(lab)
    lab.sql("UPDATE generations SET request = jsonb_set(request, '{content,0,text}', '\"a cat\"')")
    second = again(lab, first)
    lab.once()
    assert lab.complete(second).credit_cost == Decimal(9)
    with lab.rt.engine.connect() as conn:
        assert reading.entries(conn, second)[0].kind == "estimated"


def test_the_key_goes_on_standing_for_the_first(lab):
    options = {"idempotency_key": "k", "tenant": "acme"}
    first = failed(lab, **options)
    second = again(lab, first)
    with lab.rt.engine.begin() as conn:
        request = text_request("a cat [sim: fail=INTERNAL_ERROR]")
        repeated = producer.enqueue(request, session=conn, **options)
    assert repeated == first
    assert lab.get(repeated).retried_as == second


@pytest.mark.parametrize("code", sorted(FINAL))
def test_a_refusal_of_the_content_is_final(lab, code):
    first = failed(lab, code)
    assert refused(lab, first) is Refusal.FINAL
    assert refused(lab, first, again=True) is Refusal.FINAL


def test_nor_is_it_walked_around_by_an_earlier_link_of_the_chain(lab):
    first = failed(lab)
    second = again(lab, first)
    [claim] = lab.admit()
    with lab.rt.engine.begin() as conn:
        transitions.reject(conn, second, claim.lease, code="COPYRIGHT_VIOLATION", message="no")
    with pytest.raises(RetryRefused, match=f"{second} is not retried.*COPYRIGHT_VIOLATION"):
        again(lab, first, again=True)


def test_retried_again_only_when_that_is_said_and_then_the_last_of_the_chain(lab):
    first = failed(lab)
    second = again(lab, first)
    assert refused(lab, first) is Refusal.RETRIED
    assert refused(lab, second) is Refusal.OPEN
    with pytest.raises(RetryRefused, match=f"{second} is not retried: it has not ended"):
        again(lab, first, again=True)
    lab.once()
    lab.end_tasks()
    lab.run(lab.claim(second))
    assert refused(lab, second) is Refusal.RETRY
    third = again(lab, first, again=True)
    assert (lab.get(third).retry_of, lab.get(second).retried_as) == (second, third)
    assert lab.get(first).retried_as == second


def test_of_two_that_retry_it_at_once_one_does(lab):
    first = failed(lab)
    together = threading.Barrier(2)

    def attempt(_):
        together.wait(10)
        try:
            return again(lab, first)
        except RetryRefused as error:
            return error.refusal

    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(attempt, range(2)))
    assert Refusal.RETRIED in results
    assert len(lab.sql("SELECT 1 FROM generations")) == 2


def test_what_was_given_up_waits_until_no_task_of_it_can_appear(lab, sim):
    generation_id = lab.in_doubt(kind="drop_before")
    operator.fail(lab.rt.engine, generation_id, attempt=1, by=ANA)
    lab.sql("UPDATE submit_attempts SET settle_at = now() + interval '1 h'")
    assert refused(lab, generation_id, again=True) is Refusal.UNSETTLED
    lab.settle(generation_id)
    assert lab.get(again(lab, generation_id)).status is S.ACCEPTED


def test_what_was_given_up_and_has_a_task_would_be_paid_twice(lab):
    generation_id = lab.in_doubt()
    operator.fail(lab.rt.engine, generation_id, attempt=1, by=ANA)
    lab.settle(generation_id)
    lab.reconcile()
    lab.second = 1
    assert refused(lab, generation_id) is Refusal.TASK
    assert lab.get(again(lab, generation_id, again=True)).status is S.ACCEPTED


def test_a_task_that_is_found_in_that_moment_counts(lab):
    generation_id = lab.in_doubt()
    operator.fail(lab.rt.engine, generation_id, attempt=1, by=ANA)
    lab.settle(generation_id)
    lab.second = 1
    with lab.rt.engine.connect() as finder, ThreadPoolExecutor(1) as pool:
        transitions.core.lock(finder, generation_id)
        retried = pool.submit(refused, lab, generation_id)
        wait_for(lambda: lab.value("SELECT count(*) FROM pg_locks WHERE NOT granted") > 0)
        listed = lab.rt.client.list_tasks(1, 100).data
        assert watch.hold_against(finder, [observation(task) for task in listed]).second
        finder.commit()
        assert retried.result(30) is Refusal.TASK


def test_what_was_charged_although_it_failed_would_be_paid_twice(lab):
    """The list shows later that the task completed: its video is there, and paid for."""
    first = lab.send()
    lab.sim.fault("get", "backwards", status="failed", times=1)
    lab.run(lab.claim(first))
    assert lab.get(first).status is S.FAILED
    lab.end_tasks()
    lab.reconcile()
    assert lab.history(first)[-2:] == ["contradiction", "charged"]
    assert refused(lab, first) is Refusal.TASK
    assert lab.get(again(lab, first, again=True)).status is S.ACCEPTED


def test_a_chain_with_a_link_that_is_gone_is_not_gone_on_with(lab):
    """How that link ended is not known any more: it may have been refused for good."""
    first = failed(lab)
    second = again(lab, first)
    lab.sql("DELETE FROM generations WHERE id = :i", i=second)
    assert refused(lab, first) is Refusal.RETRIED
    assert refused(lab, first, again=True) is Refusal.GONE
    assert lab.get(first).retried_as == second


def test_a_deadline_that_has_passed_does_not_end_it_again(lab):
    first = failed(lab)
    lab.sql("UPDATE generations SET deadline_at = now()")
    assert lab.get(again(lab, first)).deadline_at is None
    other = failed(lab)
    lab.sql("UPDATE generations SET deadline_at = now() + interval '1 h' WHERE id = :i", i=other)
    assert lab.get(again(lab, other)).deadline_at == lab.get(other).deadline_at


def test_whom_to_tell_is_kept(lab):
    first = failed(lab, notify={"task": "shop.done", "queue": "shop"})
    second = again(lab, first)
    told = lab.sql("SELECT id, notify FROM generations")
    notify = {row.id: row.notify for row in told}
    assert notify[second] == notify[first]
    assert notify[first] is not None


def test_a_budget_is_asked_as_for_anything_new(lab):
    first = failed(lab, tenant="acme")
    with lab.rt.engine.begin() as conn:
        budgets.put(conn, new_budget("acme", "day", "1", "refuse"))
    with pytest.raises(BudgetExceeded):
        again(lab, first)
    assert lab.get(first).retried_as is None
    assert len(lab.sql("SELECT 1 FROM generations")) == 1
    assert lab.sql("SELECT 1 FROM operator_actions") == []


def test_what_was_refused_for_its_budget_is_retried_once_there_is_one(lab):
    with lab.rt.engine.begin() as conn:
        budgets.put(conn, new_budget("acme", "day", "1", "refuse"))
    name = str(uuid.uuid4())
    accept.run(lab.rt, name, [], {"request": text_request(), "tenant": "acme"})
    assert lab.get(uuid.UUID(name)).error_code == "BUDGET_EXCEEDED"
    with lab.rt.engine.begin() as conn:
        budgets.put(conn, new_budget("acme", "day", "100", "refuse"))
    new = lab.get(again(lab, uuid.UUID(name)))
    assert (new.tenant, new.estimated_cost) == ("acme", Decimal(9))


def test_a_request_that_breaks_a_bound_by_now_is_told(lab):
    first = failed(lab)
    lab.sql("UPDATE generations SET request = jsonb_set(request, '{duration}', '99')")
    with pytest.raises(RetryRefused, match="its request: duration is 99"):
        again(lab, first)


def test_who_did_it_and_why_is_kept_with_both(lab):
    first = failed(lab, tenant="acme")
    second = again(lab, first)
    with lab.rt.engine.connect() as conn:
        [of] = actions.of_generation(conn, first)
        assert actions.of_generation(conn, second) == []
        assert actions.of_generation(conn, second, retry_of=first) == [of]
        assert actions.of_generation(conn, uuid.uuid4(), retry_of=first) == []
    assert (of.action, of.actor, of.reason, of.tenant) == ("retry", ANA.who, ANA.why, "acme")
    assert of.detail == {"retried_as": str(second)}


def test_from_code(lab, monkeypatch, environment):
    monkeypatch.setenv("SEEDANCE_DATABASE_URL", environment["SEEDANCE_DATABASE_URL"])
    first = failed(lab)
    second = producer.retry(first, by="shop", reason="asked for")
    assert producer.get(second).retry_of == first
    with pytest.raises(RetryRefused):
        asyncio.run(aproducer.retry(first))
    with pytest.raises(UnknownGenerationError):
        producer.retry(uuid.uuid4())


# --- cancelling many --------------------------------------------------------------------------


def test_many_are_cancelled_in_one_go_each_as_it_stands(conn):
    made = {status: rows.make(conn, status) for status in S}
    moved = transitions.cancel_many(conn, list(made.values()), detail={"by": "operator ana"})
    assert {m.id for m in moved} == {made[S.ACCEPTED], made[S.UPLOADING]}
    for status, generation_id in made.items():
        row = rows.read(conn, generation_id)
        if status in (S.ACCEPTED, S.UPLOADING):
            assert row.status == "cancelled"
        else:
            assert row.status == status
        live = status in (S.SUBMITTING, S.UNCERTAIN, S.RUNNING)
        assert (row.cancel_requested_at is not None) == (live or row.status != status)
        told = [e.detail for e in reads.events(conn, generation_id) if "cancel" in e.event]
        assert told == ([{"by": "operator ana"}] if row.cancel_requested_at else [])
    asked = list(made.values())
    assert transitions.cancel_many(conn, asked) == []
    again = conn.execute(
        text("SELECT count(*) FROM generation_events WHERE event = 'cancel_asked'")
    )
    assert again.scalar_one() == 3, "asked for once"
