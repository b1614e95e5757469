"""Poll: looking at a running task, through lag and outages; looking never fails a generation."""

import threading
import time

import pytest

from models.lifecycle import Status
from tests.integration.conftest import text_request
from tests.integration.invariants import HeldAnswer, in_background, laboratory
from worker.limiter import NoTokenError
from worker.stages import poll


@pytest.fixture
def lab(make_runtime, sim, caplog):
    with laboratory(make_runtime, sim, caplog) as lab:
        yield lab


def look(lab, generation_id, rt=None):
    claim = lab.claim(generation_id)
    poll.run(rt or lab.rt, claim.id, claim.lease)
    return lab.get(generation_id)


def due_in(lab, generation_id):
    return float(
        lab.value(
            "SELECT extract(epoch FROM due_at - now()) FROM generations WHERE id = :id",
            id=generation_id,
        )
    )


def test_progress_is_told_once_for_each_step(lab):
    generation_id = lab.send("a cat [sim: pending=10, queued=10, processing=10]")
    seen = [look(lab, generation_id).remote_status]
    for _ in range(2):
        lab.sim.advance(10.5)
        seen += [look(lab, generation_id).remote_status for _ in range(2)]
    assert seen == ["pending", "queued", "queued", "processing", "processing"]
    assert lab.history(generation_id).count("progress") == 2
    view = lab.complete(generation_id)
    assert view.remote_status == "completed"


@pytest.mark.parametrize("end", ["failed", "expired", "cancelled", "completed"])
def test_every_end_with_its_charge(lab, end):
    generation_id = lab.send(f"a cat [sim: end={end}]")
    lab.end_tasks()
    view = look(lab, generation_id)
    assert view.status == end
    assert view.credit_cost == (9 if end == "completed" else 0)
    assert (view.video_url is not None) == (end == "completed")
    assert (view.error_code is not None) == (end == "failed")
    assert lab.due() == []


@pytest.mark.parametrize(
    "code",
    ["CONTENT_MODERATION_FAILED", "VIDEO_DOWNLOAD_FAILED", "INSUFFICIENT_CREDIT", "NEW_CODE"],
)
def test_a_failed_task_keeps_its_code(lab, code):
    generation_id = lab.send()
    lab.sim.change(lab.submitted_tasks()[0]["task_id"], status="failed", error_code=code)
    view = look(lab, generation_id)
    assert (view.status, view.error_code) == (Status.FAILED, code)
    assert lab.breakers() == set()


def test_a_failure_without_a_code(lab):
    generation_id = lab.send()
    lab.sim.change(lab.submitted_tasks()[0]["task_id"], status="failed")
    view = look(lab, generation_id)
    assert view.status is Status.FAILED
    assert view.error_code


@pytest.mark.parametrize(
    ("kind", "params"),
    [
        ("not_found", {}),
        ("lost", {}),
        ("drop_before", {}),
        ("error", {"code": "INTERNAL_ERROR"}),
        ("error", {"code": "SERVICE_BUSY"}),
        ("error", {"code": "NEVER_HEARD_OF", "status": 200}),
        ("bare", {"status": 502}),
        ("bare", {"status": 429}),
        ("null_result", {}),
        ("garbage", {}),
        ("cut_json", {}),
        ("unknown_status", {}),
        ("unknown_fields", {}),
        ("backwards", {}),
    ],
)
def test_nothing_that_a_get_says_fails_a_generation(lab, kind, params):
    lab.rt = lab.make_runtime(poll_min=20, poll_max=30)
    generation_id = lab.send()
    lab.sim.fault("get", kind, **params)
    for _ in range(3):
        view = look(lab, generation_id)
        assert view.status is Status.RUNNING
        assert view.attention is None
        assert due_in(lab, generation_id) > 0
    lab.sim.clear_faults()
    lab.complete(generation_id)


def test_a_lagging_replica_within_the_grace(lab):
    lab.sim.configure(get_lag=1_000)
    generation_id = lab.send()
    assert look(lab, generation_id).attention is None
    lab.sim.configure(get_lag=0)
    lab.complete(generation_id)


def test_a_task_not_found_after_the_grace_needs_attention_and_is_not_failed(lab):
    """A lagging replica or another account's key says the same as a task that is gone."""
    generation_id = lab.send()
    lab.sql("UPDATE generations SET submitted_at = now() - interval '1 hour'")
    lab.sim.fault("get", "not_found")
    view = look(lab, generation_id)
    assert view.status is Status.RUNNING
    assert view.remote_task_id in (view.attention or "")
    assert due_in(lab, generation_id) > 200, "slowly"
    look(lab, generation_id)
    assert lab.history(generation_id).count("attention") == 1
    lab.sim.clear_faults()
    assert look(lab, generation_id).attention is None
    lab.complete(generation_id)


def test_a_swapped_key_is_not_a_failure(lab):
    """The other account does not know the task; when the right key is back it goes on."""
    lab.sim.configure(api_keys=[lab.sim.api_key, "the-other-key"])
    generation_id = lab.send()
    lab.sql("UPDATE generations SET submitted_at = now() - interval '1 hour'")
    lab.end_tasks()
    view = look(lab, generation_id, lab.make_runtime(api_key="the-other-key"))
    assert view.status is Status.RUNNING
    assert view.attention
    assert look(lab, generation_id).status is Status.COMPLETED


def test_a_refused_key_closes_the_gate(lab):
    generation_id = lab.send()
    lab.sim.change_account(lab.sim.api_key, enabled=False)
    assert look(lab, generation_id).status is Status.RUNNING
    assert lab.breakers() == {"api_key"}
    lab.sim.change_account(lab.sim.api_key, enabled=True)
    lab.complete(generation_id)


def test_it_backs_off_and_never_looks_sooner_than_the_minimum(lab):
    lab.rt = lab.make_runtime(poll_min=5, poll_max=30)
    generation_id = lab.send()
    assert 4.5 < due_in(lab, generation_id) < 5.6
    waits = []
    for _ in range(8):
        look(lab, generation_id)
        waits.append(due_in(lab, generation_id))
    assert all(wait > 4.9 for wait in waits)
    assert waits[-1] > 25
    assert max(waits) <= 33.1
    lab.end_tasks()


def test_polling_is_not_an_attempt(lab):
    """However often it is looked at, the bound on tries is not touched."""
    lab.rt = lab.make_runtime(max_tries=2)
    generation_id = lab.send()
    for _ in range(6):
        look(lab, generation_id)
    assert lab.value("SELECT tries FROM generations") == 0
    lab.complete(generation_id)


def test_retry_after_is_honoured(lab):
    generation_id = lab.send()
    lab.sim.fault("get", "rate_limited", retry_after=120, times=1)
    look(lab, generation_id)
    assert due_in(lab, generation_id) > 110
    assert lab.flow().resume_in > 110, "by every request of the fleet"
    lab.calm()
    lab.complete(generation_id)


def test_the_same_message_twice_and_an_old_one(lab):
    generation_id = lab.send()
    old = lab.claim(generation_id)
    claim = lab.claim(generation_id)
    poll.run(lab.rt, old.id, old.lease)
    assert lab.sim.received("get") == 0
    lab.end_tasks()
    poll.run(lab.rt, claim.id, claim.lease)
    poll.run(lab.rt, claim.id, claim.lease)
    assert lab.sim.received("get") == 1
    assert lab.history(generation_id).count("complete") == 1


def test_the_same_message_to_two_workers_at_once(lab):
    generation_id = lab.send()
    lab.end_tasks()
    claim = lab.claim(generation_id)
    start = threading.Barrier(2)

    def work():
        start.wait(10)
        poll.run(lab.rt, claim.id, claim.lease)

    with in_background(work):
        work()
    assert lab.history(generation_id).count("complete") == 1


def test_a_slow_answer_of_an_old_state_moves_nothing_back(lab):
    generation_id = lab.send()
    lab.sim.fault("get", "backwards", times=1)
    lab.sim.fault("get", "delay_after", seconds=0, times=1)
    lab.sim.advance(20)
    ahead = lab.reconcile()
    assert ahead.corrected == ()
    assert lab.get(generation_id).remote_status == "processing"
    assert look(lab, generation_id).remote_status == "processing"
    lab.complete(generation_id)


def test_an_observation_of_a_worker_without_the_lease_still_counts(lab):
    """Observations are guarded by rank, not by lease: an end is an end, whoever saw it."""
    generation_id = lab.send()
    lab.sim.advance(3_600)
    claim = lab.claim(generation_id)
    held = HeldAnswer(lab.rt, "get")
    with in_background(lambda: poll.run(held.rt, claim.id, claim.lease)):
        assert held.came.wait(30)
        lab.claim(generation_id)
        held.go.set()
    assert lab.get(generation_id).status is Status.COMPLETED


def test_without_a_token_it_looks_again_soon(lab):
    generation_id = lab.send()
    rt = lab.make_runtime(rate_limit="1/minute", broker_url="amqp://nowhere")
    rt.limiter.wait()

    def refuses(endpoint="", *, timeout=0.0):
        raise NoTokenError

    rt.client._calls._throttle = refuses
    assert look(lab, generation_id, rt).status is Status.RUNNING
    assert due_in(lab, generation_id) <= 1
    lab.complete(generation_id)


def test_in_real_time(lab):
    lab.sim.configure(speed=200)
    started = time.monotonic()
    ids = [lab.enqueue(text_request(f"cat {n}")) for n in range(4)]
    for generation_id in ids:
        assert lab.until_ended(generation_id).status is Status.COMPLETED
    assert time.monotonic() - started < 30
