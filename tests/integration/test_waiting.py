"""Nothing waits for ever without saying why, and nothing tells the same thing again and again."""

from datetime import UTC, datetime, timedelta

import pytest

from models import schedule, transitions, waiting, watch
from models.flow_control import breakers, evidence
from models.flow_control.breakers import BreakerName
from models.lifecycle import Observation, Status
from models.operating.actions import By
from models.submission import FORGOTTEN
from models.wait_reasons import Wait, WaitReason
from tests.integration.conftest import text_request
from tests.integration.hard_cases import ECHO, REQUEST
from tests.integration.invariants import laboratory
from tests.integration.test_dispatcher import Messages, dispatcher
from worker import operator
from worker.stages import resolve


@pytest.fixture
def lab(make_runtime, sim, caplog):
    with laboratory(make_runtime, sim, caplog) as lab:
        yield lab


def look(lab, generation_id):
    lab.run(lab.claim(generation_id))
    return lab.get(generation_id)


def due_in(lab, generation_id):
    query = "SELECT extract(epoch FROM due_at - now()) FROM generations WHERE id = :id"
    return float(lab.value(query, id=generation_id))


def submitted_ago(lab, seconds):
    lab.sql("UPDATE generations SET submitted_at = now() - :s * interval '1 s'", s=seconds)


def why(lab, generation_id):
    with lab.rt.engine.connect() as conn:
        return waiting.current(conn, lab.get(generation_id), position=True).waits_for


# --- a task that does not end ------------------------------------------------------------------


@pytest.mark.parametrize("kind", [None, "unknown_status", "bare"])
def test_a_task_that_never_ends_needs_attention_and_is_still_followed(lab, kind):
    """At work for ever, in a status nobody knows, or behind a GET that never works."""
    generation_id = lab.send()
    if kind:
        lab.sim.fault("get", kind)
    submitted_ago(lab, 7_000)
    assert look(lab, generation_id).attention is None
    submitted_ago(lab, 7_300)
    for _ in range(3):
        view = look(lab, generation_id)
        assert view.status is Status.RUNNING
        assert "has not ended in 2 h" in (view.attention or "")
        assert due_in(lab, generation_id) > 290, "slowly"
    assert lab.history(generation_id).count("attention") == 1
    assert lab.admit(1, max_in_flight=1) == []
    other = lab.enqueue()
    assert [claim.id for claim in lab.admit(max_in_flight=1)] == [other], "it gave its slot up"
    lab.sim.clear_faults()
    view = lab.complete(generation_id)
    assert view.attention is None


def test_how_long_is_a_setting(lab):
    lab.rt = lab.make_runtime(stalled_after=60)
    generation_id = lab.send()
    submitted_ago(lab, 61)
    assert look(lab, generation_id).attention
    lab.complete(generation_id)


# --- awaiting a decision -----------------------------------------------------------------------


def undecided(lab):
    """Declared absent, and then a task shows that could be it: it is not sent before a decision."""
    generation_id = lab.in_doubt(kind="drop_before", seed=7)
    lab.resolve(generation_id)
    assert lab.get(generation_id).status is Status.ACCEPTED
    [task_id] = lab.sim.inject(seed=7, prompt="x", **ECHO)
    lab.reconcile()
    lab.send_again(generation_id)
    view = lab.get(generation_id)
    assert view.wait_reason is WaitReason.OPERATOR
    assert task_id in (view.attention or "")
    return generation_id, task_id


def test_waiting_for_a_decision_tells_nothing_again_and_again(lab):
    generation_id, _ = undecided(lab)
    history = lab.history(generation_id)
    one = dispatcher(lab, messages := Messages(lab))
    for _ in range(4):
        lab.due_now(generation_id)
        one.tick()
        assert due_in(lab, generation_id) > 290, "looked at, and put off"
    assert messages.published == []
    assert lab.history(generation_id) == history
    assert why(lab, generation_id) == "an operator's decision"
    assert lab.posts == 1


def test_a_decision_lets_it_go_on_at_once(lab):
    generation_id, _ = undecided(lab)
    operator.resubmit(lab.rt.engine, generation_id, attempt=1, by=By("test"))
    dispatcher(lab, Messages(lab)).tick()
    view = lab.get(generation_id)
    assert (view.status, view.attention, view.waits_for) == (Status.RUNNING, None, None)
    lab.complete(generation_id)


def test_it_goes_on_by_itself_when_the_task_turns_out_to_be_anothers(lab):
    generation_id, task_id = undecided(lab)
    lab.sql("DELETE FROM stray_tasks WHERE task_id = :id", id=task_id)
    one = dispatcher(lab, Messages(lab))
    lab.due_now(generation_id)
    one.tick()
    assert lab.get(generation_id).status is Status.RUNNING
    lab.complete(generation_id)


def test_a_crowd_that_awaits_decisions_keeps_no_slot_from_the_rest(lab):
    crowd = [lab.enqueue(text_request(f"cat {n}"), priority=9) for n in range(30)]
    lab.sql(
        "UPDATE generations SET wait_reason = 'operator', attention = 'decide',"
        " attention_at = now()"
    )
    other = lab.enqueue()
    assert [claim.id for claim in lab.admit(1)] == [other]
    assert {lab.get(i).status for i in crowd} == {Status.ACCEPTED}


# --- what it says --------------------------------------------------------------------------------


def test_why_a_generation_waits(lab):
    first = lab.enqueue(text_request("first"))
    second = lab.enqueue(text_request("second"))
    urgent = lab.enqueue(text_request("urgent"), priority=1)
    assert why(lab, second) == "a free slot: 0 in flight, 2 ahead of it"
    assert why(lab, urgent) == "a free slot: 0 in flight, 0 ahead of it"
    lab.admit(1)
    assert why(lab, second) == "a free slot: 1 in flight, 1 ahead of it"
    assert why(lab, urgent) is None, "it was let in"

    lab.sql(
        "INSERT INTO flow_control (account, concurrency, concurrency_refused,"
        " concurrency_changed_at) VALUES ('default', 1, 2, now())"
    )
    slowed = "a free slot: 1 in flight, 1 ahead of it, 1 tasks at work: the provider refused"
    assert why(lab, second).startswith(slowed)

    with lab.rt.engine.begin() as conn:
        evidence.throttled(conn, measured=9.0, retry_after=60.0, reason="RATE_LIMIT_EXCEEDED")
    assert why(lab, second) == "the provider, which throttles requests (RATE_LIMIT_EXCEEDED)"

    with lab.rt.engine.begin() as conn:
        breakers.trip(conn, BreakerName.API_KEY, "INVALID_API_KEY: no", probe_in=60)
    assert why(lab, first) == "circuit breaker api_key, opened by INVALID_API_KEY: no"
    lab.sql("UPDATE generations SET blocked_by = :first WHERE id = :id", first=first, id=second)
    assert why(lab, second) == f"an equal generation with the same seed: {first}"


def test_what_put_it_off_itself_is_told_until_then(lab):
    claim = lab.start()
    wait = Wait(WaitReason.REFERENCE, {"error": "503"})
    with lab.rt.engine.begin() as conn:
        transitions.put_back(conn, claim.id, claim.lease, wait=wait, seconds=60)
    assert why(lab, claim.id) == "its reference: 503"
    lab.due_now(claim.id)
    assert why(lab, claim.id) == "a free slot: 0 in flight, 0 ahead of it"


# --- leases while much is read -------------------------------------------------------------------


def test_leases_are_renewed_while_tasks_are_asked_for_their_seeds(lab):
    """Forty tasks without a seed take longer than a lease: nobody else may begin meanwhile."""
    lab.rt = lab.make_runtime(lease=2.6, http_timeout=1.5, http_connect_timeout=1)
    generation_id = lab.in_doubt(kind="drop_before")
    lab.sim.inject(count=25, age=-1)
    lab.sim.configure(seed_echo="null")
    lab.sim.fault("get", "delay_before", seconds=0.15)
    lab.settle(generation_id)
    claim = lab.claim(generation_id)
    seen = []
    get = lab.rt.client.get

    def watching(task_id, **options):
        seen.append(len(lab.due()))
        return get(task_id, **options)

    lab.rt.client.get = watching
    outcomes = resolve.run(lab.rt, [(claim.id, claim.lease)])
    assert len(seen) >= 25
    assert set(seen) == {0}, "never anybody else's"
    assert outcomes[generation_id] is not resolve.Outcome.LOST
    lab.sim.clear_faults()


# --- rivals of long ago --------------------------------------------------------------------------


def rivals(lab, ids):
    with lab.rt.engine.begin() as conn:
        claims = [(i, lab.claim(i).lease) for i in ids]
        return [one.case.rival for one in watch.in_doubt(conn, claims, key_exclusive=True)]


@pytest.mark.parametrize(
    ("ended", "long_ago", "rival"),
    [(False, False, True), (False, True, True), (True, False, True), (True, True, False)],
)
def test_an_open_attempt_is_a_rival_until_a_day_after_it_settled(lab, ended, long_ago, rival):
    old = lab.in_doubt(kind="drop_before", seed=7)
    lab.resolve(old)
    if ended:
        operator.fail(lab.rt.engine, old, attempt=1, by=By("test"))
    if long_ago:
        lab.sql(
            "UPDATE submit_attempts SET settle_at = settle_at - :s * interval '1 s'",
            s=FORGOTTEN.total_seconds() + 60,
        )
    lab.sim.fault("submit", "drop_before", times=1)
    new = lab.enqueue({**REQUEST, "content": text_request("a cat")["content"], "seed": 7})
    lab.sql(
        "UPDATE generations SET created_at = created_at - interval '1 h' WHERE id = :id", id=new
    )
    lab.once()
    if lab.get(new).status is not Status.UNCERTAIN:
        lab.send_again(new)
    assert lab.get(new).status is Status.UNCERTAIN
    assert rivals(lab, [new]) == [rival]


def test_a_seed_that_was_drawn_for_an_ended_one_is_free_after_a_day(lab):
    """A producer fixes by chance the seed of an attempt nobody knows the outcome of."""
    old = lab.in_doubt(kind="drop_before")
    [attempt] = lab.attempts(old)
    operator.fail(lab.rt.engine, old, attempt=1, by=By("test"))
    new = lab.send(seed=attempt.seed)
    view = lab.get(new)
    assert (view.status, view.blocked_by) == (Status.ACCEPTED, old)
    lab.sql("UPDATE submit_attempts SET settle_at = settle_at - interval '25 h'")
    assert lab.send_again(new).status is Status.RUNNING
    lab.complete(new)


def test_an_observation_of_an_unknown_status_is_told_once(lab):
    generation_id = lab.send()
    task_id = lab.get(generation_id).remote_task_id
    with lab.rt.engine.begin() as conn:
        for _ in range(3):
            seen = Observation(task_id, "thinking", updated_at=datetime.now(UTC) + timedelta(1))
            transitions.apply_observation(conn, seen)
    assert lab.history(generation_id).count("unknown_status") == 1
    assert schedule.Stage.POLL in {claim.stage for claim in [lab.claim(generation_id)]}
    lab.complete(generation_id)
