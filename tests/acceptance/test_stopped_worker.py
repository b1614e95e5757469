"""A worker that is stopped in mid-submit, and wakes when others have long taken its work over.

As a paused container does, or a laptop that was closed: fencing guards rows, not the wire.
"""

import signal
import uuid
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import pytest

import simulator
from models import reads
from models.lifecycle import Status
from tests.acceptance.conftest import Process, Service, wait_for
from worker.crash_points import CrashPoint

TAKEN_OVER = 150.0
"""Seconds until others have done its work: the stopped one may have been in the midst of a
transaction, say that of admission, which PostgreSQL ends after a minute."""


def stopped_at(point: CrashPoint, service: Service, folder: Path) -> tuple[Process, uuid.UUID]:
    """A worker that has stopped there, and the generation it was submitting."""
    once = folder / "stopped"
    process = service.worker(
        SEEDANCE_CRASH_AT=point, SEEDANCE_CRASH_BY="SIGSTOP", SEEDANCE_CRASH_ONCE=str(once)
    )
    generation_id = service.enqueue()
    wait_for(once.exists, f"it stops at {point}")
    return process, generation_id


def awake(
    stopped: Process, service: Service, generation_id: uuid.UUID, seen: Callable[[], bool]
) -> None:
    """Let it go on, and wait until it has done so."""
    stopped.signal(signal.SIGCONT)
    try:
        wait_for(seen, "it wakes, and goes on")
    except AssertionError:
        service.tell(generation_id)
        raise


def outcomes(service: Service, generation_id: uuid.UUID) -> list[str | None]:
    with service.rt.engine.connect() as conn:
        return [attempt.outcome for attempt in reads.attempts(conn, generation_id)]


@pytest.mark.timeout(400)
def test_stopped_beyond_its_lease_before_the_check_it_sends_nothing(
    service: Service, sim: simulator.Simulator, tmp_path: Path
):
    stopped, generation_id = stopped_at("submit.after_intent", service, tmp_path)
    service.worker()
    assert service.ended(generation_id, TAKEN_OVER).status is Status.COMPLETED
    assert len(sim.submits()) == 1

    awake(
        stopped,
        service,
        generation_id,
        lambda: outcomes(service, generation_id)[0] == "not_sent",
    )

    assert outcomes(service, generation_id) == ["not_sent", "submitted"]
    assert len(sim.submits()) == 1


@pytest.mark.timeout(400)
def test_stopped_between_check_and_write_the_second_task_is_flagged(
    service: Service, sim: simulator.Simulator, tmp_path: Path
):
    """What no rule prevents (docs/promise.md), and what is never silent."""
    stopped, generation_id = stopped_at("submit.after_check", service, tmp_path)
    service.worker()
    followed = service.ended(generation_id, TAKEN_OVER)
    assert followed.status is Status.COMPLETED
    assert len(sim.submits()) == 1

    awake(
        stopped,
        service,
        generation_id,
        lambda: "second_task" in service.history(generation_id),
    )

    assert len(sim.tasks(origin="submit")) == 2
    with service.rt.engine.connect() as conn:
        [stray] = reads.strays(conn, generation_id=generation_id)
    assert (stray.kind, stray.attempt, stray.credit_cost) == ("second", 1, Decimal(9))
    assert stray.task_id != followed.remote_task_id
    assert service.find(generation_id) == followed, "what was followed stays as it is"
