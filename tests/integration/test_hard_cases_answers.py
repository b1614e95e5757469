"""Hard cases of sending: odd answers, answers that come late, and cancels in between."""

import threading
import time
from decimal import Decimal

import pytest
import sqlalchemy as sa

from api_client import GenerationRequest
from models import submission, transitions
from models.flow_control import breakers
from models.flow_control.breakers import BreakerName
from models.lifecycle import Observation, Status
from models.submission import Intent
from models.wait_reasons import REQUEST_RATE, Wait, WaitReason
from tests.integration.hard_cases import (
    REQUEST,
    answered,
    declined,
    found_absent,
    intended,
    running,
    settle,
    sql,
)
from worker.runtime import waking_clock
from worker.stages import resolve, submit
from worker.upkeep import balance


def test_a_sender_that_wakes_in_doubt_spoils_neither_its_own_resolving_nor_the_batch(
    rt, steps, sim
):
    sleeper, intent = intended(rt, steps)
    settle(rt, sleeper)
    other, _ = intended(rt, steps)
    settle(rt, other)
    with rt.engine.begin() as conn:  # the lease ended while the sender slept
        transitions.doubt(conn, sleeper, 1, why="no answer came")
    # It wakes: the check just before the POST finds its row in doubt.
    submit._Post(rt, intent, waking_clock()).send(GenerationRequest.model_validate(REQUEST))
    assert sim.received("submit") == 0
    [(outcome,)] = sql(
        rt, "select outcome from submit_attempts where generation_id = :id", id=sleeper
    )
    assert outcome == "unknown", "its readings go on"
    claims = [(claim.id, claim.lease) for claim in steps.due()]
    assert {claim[0] for claim in claims} >= {sleeper, other}
    resolve.run(rt, claims)
    assert steps.get(other).status is Status.ACCEPTED
    assert steps.get(sleeper).status is Status.ACCEPTED


def test_no_post_after_a_check_that_could_not_be_made(rt, steps, sim, monkeypatch):
    def away(conn, intent):
        raise sa.exc.OperationalError("select", {}, OSError("database away"))

    monkeypatch.setattr(submission, "before_sending", away)
    generation_id = steps.enqueue()
    steps.once()
    assert sim.received("submit") == 0
    # Nothing was written, so nothing is in doubt.
    assert steps.get(generation_id).status is Status.ACCEPTED


@pytest.mark.parametrize("status", [400, 401, 403, 404, 302])
def test_a_bare_status_after_creation_leaves_the_outcome_in_doubt(rt, steps, sim, status):
    sim.fault("submit", "bare_after", status=status, times=1)
    generation_id = steps.enqueue()
    steps.once()
    assert len(sim.tasks()) == 1
    assert steps.get(generation_id).status is Status.UNCERTAIN


def test_a_bare_401_after_creation_is_not_paid_twice_where_no_seed_is_shown(rt, steps, sim):
    sim.configure(seed_echo="null")
    sim.fault("submit", "bare_after", status=401, times=1)
    generation_id = steps.enqueue()
    steps.once()
    with rt.engine.connect() as conn:
        assert not breakers.read(conn).open
    # It may stay undecided: what counts is that nothing is sent again meanwhile.
    end = time.monotonic() + 6
    steps.until(
        generation_id,
        lambda view: view.status is Status.RUNNING or time.monotonic() > end,
    )
    assert len(sim.tasks()) == 1


def test_a_bare_401_after_creation_is_not_paid_twice_once_the_balance_is_answered(rt, steps, sim):
    sim.fault("submit", "bare_after", status=401, times=1)
    steps.enqueue()
    steps.once()
    balance.run(rt)
    sql(rt, "update generations set due_at=now()")
    steps.once()
    assert len(sim.tasks()) == 1


@pytest.mark.parametrize("cost", ["99999999999999", "-1"])
def test_an_answer_with_an_impossible_cost_is_kept(rt, steps, cost):
    generation_id, intent = intended(rt, steps)
    answered(rt, intent, credit_cost=cost)
    assert steps.get(generation_id).remote_task_id == "T1"


def test_nul_in_a_refusal_is_recorded(rt, steps, sim):
    sim.fault("submit", "error", code="INVALID_PARAMETER", message="bad \x00 thing", status=400)
    view = steps.until_ended(steps.enqueue(), 8)
    assert view.error_code == "INVALID_PARAMETER"


def test_nul_in_a_401_opens_the_breaker(rt, steps, sim):
    sim.fault("submit", "error", code="INVALID_API_KEY", message="bad \x00 key", status=401)
    steps.enqueue()
    steps.once()
    with rt.engine.connect() as conn:
        [opened] = breakers.read(conn).open
    assert opened.name is BreakerName.API_KEY


def test_a_failure_with_nul_in_its_message_ends_the_generation(rt, steps, sim):
    generation_id, view = running(steps)
    sim.change(
        view.remote_task_id, status="failed", error_code="INTERNAL_ERROR", error_message="a\x00b"
    )
    assert steps.until_ended(generation_id, 5).ended


def test_a_failure_with_half_a_character_in_its_message_ends_the_generation(
    rt, steps, sim, monkeypatch
):
    generation_id, view = running(steps)
    sim.change(view.remote_task_id, status="failed", error_code="INTERNAL_ERROR", error_message="a")
    real = rt.client.get

    def get(task_id, retry=False):
        return real(task_id, retry=retry).model_copy(update={"error_message": "a\ud800b"})

    monkeypatch.setattr(rt.client, "get", get)
    assert steps.until_ended(generation_id, 5).ended


@pytest.mark.parametrize(
    "odd", [{"error_message": "a\x00"}, {"credit_cost": Decimal(-1)}], ids=["nul", "negative-cost"]
)
def test_an_odd_value_beside_a_signed_address_is_no_database_error(rt, steps, odd):
    # An error could print the address, and the row would never end.
    generation_id, view = running(steps)
    seen = Observation(view.remote_task_id, "completed", video_url="https://v/1?sig", **odd)
    with rt.engine.begin() as conn:
        transitions.apply_observation(conn, seen)
    assert steps.get(generation_id).status is Status.COMPLETED


def test_an_unknown_status_is_told_once_and_ends_nothing(rt, steps):
    generation_id, view = running(steps)
    for _ in range(2):
        with rt.engine.begin() as conn:
            transitions.apply_observation(conn, Observation(view.remote_task_id, "post_processing"))
    assert steps.get(generation_id).status is Status.RUNNING
    assert steps.history(generation_id).count("unknown_status") == 1


def test_a_look_that_shows_another_task_asks_an_operator_in_the_end(rt, steps, monkeypatch):
    generation_id, view = running(steps)
    running(steps)
    real = rt.client.get

    def get(task_id, retry=False):
        other = {"task_id": f"X-{view.remote_task_id}", "status": "completed"}
        return real(view.remote_task_id).model_copy(update=other)

    monkeypatch.setattr(rt.client, "get", get)
    sql(
        rt,
        "update generations set due_at = now() - interval '1 s',"
        " submitted_at = now() - interval '2 days' where id = :id",
        id=generation_id,
    )
    seen = steps.until(generation_id, lambda seen: bool(seen.attention) or seen.ended, 6)
    assert "the provider showed" in (seen.attention or "")


def test_a_cancel_that_fails_does_not_keep_the_end_from_being_seen(rt, steps, sim):
    generation_id, view = running(steps)
    sim.fault("cancel", "error")
    with rt.engine.begin() as conn:
        transitions.cancel(conn, generation_id)
    sim.change(view.remote_task_id, status="completed")
    assert steps.until_ended(generation_id, 6).ended


def test_a_cancel_that_found_no_task_is_sent_again(rt, steps, sim):
    generation_id, _ = running(steps)
    sim.fault("cancel", "not_found", times=1)
    with rt.engine.begin() as conn:
        transitions.cancel(conn, generation_id)
    assert steps.until_ended(generation_id, 4).status is Status.CANCELLED


def test_a_generation_declined_after_its_cancel_is_cancelled(rt, steps):
    generation_id, _ = intended(rt, steps)
    with rt.engine.begin() as conn:
        transitions.cancel(conn, generation_id)
    with rt.engine.begin() as conn:
        breakers.trip(conn, BreakerName.API_KEY, "401", probe_in=30)
        transitions.declined(
            conn,
            generation_id,
            1,
            code="INVALID_API_KEY",
            wait=Wait(WaitReason.BREAKER, {"breaker": "api_key"}),
            seconds=0,
        )
    assert steps.get(generation_id).status is Status.CANCELLED


@pytest.mark.parametrize("first", ["cancel", "decline"])
def test_a_cancel_that_races_a_decline_is_carried_out(rt, steps, first):
    generation_id, _ = intended(rt, steps)
    started = threading.Event()

    def cancel(conn):
        transitions.cancel(conn, generation_id)

    def decline(conn):
        transitions.declined(
            conn, generation_id, 1, code="SERVICE_BUSY", wait=REQUEST_RATE, seconds=0
        )

    one, other = (cancel, decline) if first == "cancel" else (decline, cancel)

    def second():
        with rt.engine.begin() as conn:
            started.set()
            other(conn)

    thread = threading.Thread(target=second)
    with rt.engine.begin() as conn:
        one(conn)
        thread.start()
        assert started.wait(10)
        deadline = time.monotonic() + 10
        while not sql(rt, "select 1 from pg_locks where not granted"):
            assert time.monotonic() < deadline, "it waits for the row's lock"
    thread.join(10)
    assert steps.get(generation_id).status is Status.CANCELLED


def test_refusals_use_up_no_attempts(rt, steps):
    generation_id = steps.enqueue()
    for _ in range(4):
        _, intent = intended(rt, steps, generation_id)
        declined(rt, generation_id, intent.attempt)
    _, intent = intended(rt, steps, generation_id)
    found_absent(rt, generation_id, attempt=intent.attempt, most=rt.settings.max_attempts)
    assert steps.get(generation_id).status is Status.ACCEPTED


def test_an_attempt_beyond_two_bytes_is_made(rt, steps):
    generation_id, _ = intended(rt, steps)
    declined(rt, generation_id, 1)
    sql(rt, "update generations set attempt=32767 where id = :id", id=generation_id)
    _, intent = intended(rt, steps, generation_id)
    assert isinstance(intent, Intent)


def test_no_further_post_while_a_late_answer_may_be_the_generations_own_task(rt, steps):
    generation_id, one = intended(rt, steps)
    found_absent(rt, generation_id)
    intended(rt, steps, generation_id)
    answered(rt, one)
    declined(rt, generation_id, 2)
    _, three = intended(rt, steps, generation_id)
    assert not isinstance(three, Intent)
