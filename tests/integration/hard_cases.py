"""What the hard cases share: requests, intents without their POST, and time that has passed."""

import uuid
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import text

from api_client import GenerationRequest, Submitted
from models import submission, transitions
from models.lifecycle import Observation, Status
from models.reads import GenerationView
from models.submission import Held, Intent
from models.wait_reasons import REQUEST_RATE
from tests.integration.conftest import Steps
from worker.runtime import Runtime, waking_clock
from worker.stages import submit

REQUEST: dict[str, Any] = {"content": [{"type": "text", "text": "a cat"}]}

MEDIA = str(Path(__file__).parents[2] / "examples" / "media")
WITH_IMAGE: dict[str, Any] = {
    "content": [
        {"type": "text", "text": "x"},
        {"type": "image_url", "image_url": "path:lake.jpg"},
    ]
}

ECHO: dict[str, Any] = {
    "model": "seedance-2.0",
    "resolution": "720p",
    "ratio": "16:9",
    "duration": 5,
    "generate_audio": False,
}
"""What the provider shows of `REQUEST`."""


def sql(rt: Runtime, query: str, **values: Any) -> Any:
    """The rows of a statement, or how many it changed."""
    with rt.engine.begin() as conn:
        result = conn.execute(text(query), values)
        return result.all() if result.returns_rows else result.rowcount


def intended(
    rt: Runtime, steps: Steps, generation_id: uuid.UUID | None = None, **fields: Any
) -> tuple[uuid.UUID, Any]:
    """A generation, new if none is given, and what came of its intent; nothing is sent."""
    generation_id = generation_id or steps.enqueue({**REQUEST, **fields})
    [claim] = [claim for claim in steps.admit() if claim.id == generation_id]
    with rt.engine.begin() as conn:
        result: Intent | Held = submission.begin(
            conn, submission.Wanted(generation_id, claim.lease), rt.settings.timing
        )
    return generation_id, result


def answered(rt: Runtime, intent: Intent, task_id: str = "T1", **shown: Any) -> None:
    """The answer to an intent's POST arrives."""
    values = {"task_id": task_id, "status": "processing", **shown}
    client = _Answers(Submitted.model_validate(values))
    submit._Post(replace(rt, client=client), intent, waking_clock()).send(  # type: ignore[arg-type]
        GenerationRequest.model_validate(REQUEST)
    )


class _Answers:
    """A client whose POST was sent already, and is answered now."""

    def __init__(self, answer: Submitted) -> None:
        self._answer = answer

    def submit(self, *args: Any, **options: Any) -> Submitted:
        return self._answer


def found_absent(rt: Runtime, generation_id: uuid.UUID, *, attempt: int = 1, most: int = 5) -> None:
    """The answer is lost, and the task list shows no task of it."""
    with rt.engine.begin() as conn:
        transitions.doubt(conn, generation_id, attempt, why="lost")
        transitions.absent(conn, generation_id, attempt, max_attempts=most, detail={})


def declined(rt: Runtime, generation_id: uuid.UUID, attempt: int) -> None:
    """The POST is refused for now."""
    with rt.engine.begin() as conn:
        transitions.declined(
            conn, generation_id, attempt, code="SERVICE_BUSY", wait=REQUEST_RATE, seconds=0
        )


def settle(rt: Runtime, generation_id: uuid.UUID) -> None:
    """As if the time had passed in which its task could still appear."""
    sql(
        rt,
        "update submit_attempts set settle_at = now() - interval '1 s' where generation_id = :id",
        id=generation_id,
    )
    sql(rt, "update generations set due_at = now() where id = :id", id=generation_id)


def endless(name: str = "x") -> dict[str, Any]:
    """A request whose task runs for as long as the test."""
    return {"content": [{"type": "text", "text": f"{name} [sim: seconds=100000]"}]}


def running(steps: Steps) -> tuple[uuid.UUID, GenerationView]:
    """A generation whose task runs for as long as the test."""
    generation_id = steps.enqueue(endless())
    return generation_id, steps.until(generation_id, lambda view: view.status is Status.RUNNING)


def equal_task(task_id: str, **shown: Any) -> Observation:
    """A task with all the fields of `REQUEST`, created now."""
    return Observation(task_id, "processing", created_at=datetime.now(UTC), **{**ECHO, **shown})
