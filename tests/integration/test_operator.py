"""An operator's decisions: each on the attempt it names, and none that could pay twice."""

import logging
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import func, update

import simulator
from api_client import TaskNotFound
from models import reads
from models.operating import actions
from models.operating.actions import By
from models.tables import SubmitAttempt
from worker import operator, producer
from worker.cli import run
from worker.operator import DecisionRefused
from worker.runtime import Runtime
from worker.upkeep import reconcile

BY = By("ana", "the customer asked")


@pytest.fixture
def in_doubt(steps: Any, sim: simulator.Simulator) -> Callable[..., uuid.UUID]:
    """Make a generation whose submit got no answer."""

    def make(kind: str = "lost", **request: Any) -> uuid.UUID:
        sim.fault("submit", kind, times=1)
        body = {"content": [{"type": "text", "text": "a cat"}], **request}
        generation_id: uuid.UUID = steps.enqueue(body)
        for claim in steps.admit():
            steps.run(claim)
        assert steps.get(generation_id).status == "uncertain"
        return generation_id

    return make


def settled(rt: Runtime, generation_id: uuid.UUID) -> None:
    """Let the time pass after which the generation's attempt may be decided on."""
    with rt.engine.begin() as conn:
        conn.execute(
            update(SubmitAttempt)
            .where(SubmitAttempt.generation_id == generation_id)
            .values(settle_at=func.now())
        )


def test_adopts_the_task_and_tells_who_decided(rt, steps, sim, in_doubt) -> None:
    generation_id = in_doubt()
    task_id = sim.submits()[-1]["task_id"]
    view = operator.adopt(rt, generation_id, task_id, attempt=1, by=BY)
    assert (view.status, view.remote_task_id) == ("running", task_id)
    assert steps.until_ended(generation_id).status == "completed"
    with rt.engine.connect() as conn:
        adopted = [e for e in reads.events(conn, generation_id) if e.event == "adopt"]
    assert [event.detail["by"] for event in adopted] == [BY.told]
    assert len(sim.tasks()) == 1


def test_every_decision_is_kept_with_who_and_why(rt, sim, in_doubt) -> None:
    adopted, given_up, again = in_doubt(), in_doubt("drop_before"), in_doubt("drop_before")
    for generation_id in (given_up, again):
        settled(rt, generation_id)
    operator.adopt(rt, adopted, sim.submits()[0]["task_id"], attempt=1, by=BY)
    operator.fail(rt.engine, given_up, attempt=1, by=BY)
    operator.resubmit(rt.engine, again, attempt=1, by=BY)
    with pytest.raises(DecisionRefused):
        operator.fail(rt.engine, given_up, attempt=1, by=BY)
    with rt.engine.connect() as conn:
        told = {a.generation_id: a for a in actions.newest(conn)}
        assert len(actions.newest(conn)) == 3, "what was refused is no change"
    decisions = {name: a.detail["decision"] for name, a in told.items()}
    assert decisions == {adopted: "adopt", given_up: "fail", again: "resubmit"}
    assert {(a.action, a.actor, a.reason) for a in told.values()} == {("resolve", BY.who, BY.why)}


def test_never_adopts_what_another_generation_follows(rt, steps, sim, in_doubt) -> None:
    other = steps.enqueue()
    steps.until(other, lambda view: view.status == "running")
    generation_id = in_doubt()
    with pytest.raises(DecisionRefused, match=f"followed by generation {other}"):
        operator.adopt(rt, generation_id, steps.get(other).remote_task_id, attempt=1, by=BY)
    assert steps.get(generation_id).status == "uncertain"


def test_never_adopts_what_shows_another_seed(rt, steps, sim, in_doubt) -> None:
    generation_id = in_doubt()
    [foreign] = sim.inject(seed=5)
    with pytest.raises(DecisionRefused, match="shows the seed 5"):
        operator.adopt(rt, generation_id, foreign, attempt=1, by=BY)


def test_adopts_only_what_the_provider_shows(rt, in_doubt) -> None:
    with pytest.raises(TaskNotFound):
        operator.adopt(rt, in_doubt(), "no-such-task", attempt=1, by=BY)


def test_a_decision_on_another_attempt_is_refused(rt, sim, in_doubt) -> None:
    generation_id = in_doubt()
    settled(rt, generation_id)
    task_id = sim.submits()[-1]["task_id"]
    for decide in (
        lambda: operator.resubmit(rt.engine, generation_id, attempt=2, by=BY),
        lambda: operator.fail(rt.engine, generation_id, attempt=2, by=BY),
        lambda: operator.adopt(rt, generation_id, task_id, attempt=2, by=BY),
    ):
        with pytest.raises(DecisionRefused, match="is at attempt 1"):
            decide()


def test_sends_again_only_when_the_attempt_has_settled(rt, steps, sim, in_doubt) -> None:
    generation_id = in_doubt("drop_before")
    with pytest.raises(DecisionRefused, match="settles at"):
        operator.resubmit(rt.engine, generation_id, attempt=1, by=BY)
    settled(rt, generation_id)
    assert operator.resubmit(rt.engine, generation_id, attempt=1, by=BY).status == "accepted"
    # Decided a second time, by somebody who has not looked again: there is nothing to decide.
    with pytest.raises(DecisionRefused, match="without a decision"):
        operator.resubmit(rt.engine, generation_id, attempt=1, by=BY)
    assert steps.until_ended(generation_id).status == "completed"
    assert len(sim.tasks()) == 1


def test_sends_again_though_a_look_alike_exists(rt, steps, sim, in_doubt) -> None:
    generation_id = in_doubt("drop_before", seed=42)
    sim.inject(
        seed=42,
        model="seedance-2.0",
        resolution="720p",
        ratio="16:9",
        duration=5,
        generate_audio=False,
    )
    settled(rt, generation_id)
    assert reconcile.run(rt).possible, "the look-alike is held for possibly its own"
    operator.resubmit(rt.engine, generation_id, attempt=1, by=BY)
    ended = steps.until_ended(generation_id)
    assert (ended.status, ended.attempt) == ("completed", 2)


def test_a_wished_cancel_is_carried_out_instead(rt, steps, in_doubt) -> None:
    generation_id = in_doubt("drop_before")
    with rt.engine.begin() as conn:
        producer.cancel(generation_id, session=conn)
    settled(rt, generation_id)
    assert operator.resubmit(rt.engine, generation_id, attempt=1, by=BY).status == "cancelled"


def test_gives_up(rt, steps, sim, in_doubt) -> None:
    generation_id = in_doubt()
    view = operator.fail(rt.engine, generation_id, attempt=1, by=BY)
    assert (view.status, view.error_code) == ("failed", "GIVEN_UP")
    with pytest.raises(DecisionRefused, match="it has ended"):
        operator.fail(rt.engine, generation_id, attempt=1, by=BY)


def test_nothing_is_decided_about_what_runs(rt, steps, in_doubt) -> None:
    running = steps.enqueue()
    view = steps.until(running, lambda view: view.status == "running")
    for decide in (
        lambda: operator.adopt(rt, running, view.remote_task_id, attempt=1, by=BY),
        lambda: operator.resubmit(rt.engine, running, attempt=1, by=BY),
        lambda: operator.fail(rt.engine, running, attempt=1, by=BY),
    ):
        with pytest.raises(DecisionRefused, match="follows a remote task"):
            decide()


def test_what_was_never_sent_needs_no_decision(rt, steps) -> None:
    with pytest.raises(DecisionRefused, match="never submitted"):
        operator.latest_attempt(rt.engine, steps.enqueue())
    with pytest.raises(DecisionRefused, match="there is no generation"):
        operator.latest_attempt(rt.engine, uuid.uuid4())


def test_the_command_names_the_attempt(
    rt: Runtime,
    steps: Any,
    sim: simulator.Simulator,
    in_doubt: Callable[..., uuid.UUID],
    environment: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", list(root.handlers))
    monkeypatch.setattr(root, "level", root.level)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    generation_id = str(in_doubt())
    task_id = sim.submits()[-1]["task_id"]

    def told(*argv: str, code: int) -> str:
        assert run(["resolve", generation_id, *argv]) == code
        shown = capsys.readouterr()
        return shown.out + shown.err

    assert "is at attempt 1" in told("--fail", "--attempt", "2", code=1)
    assert "deciding on attempt 1" in told("--adopt", "nonsense", code=1)
    assert "is running" in told("--adopt", task_id, "--attempt", "1", code=0)
    with rt.engine.connect() as conn:
        events = reads.events(conn, uuid.UUID(generation_id))
    assert any((event.detail or {}).get("by", "").startswith("operator ") for event in events)
