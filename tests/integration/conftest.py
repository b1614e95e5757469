"""Steps through the stages without Celery: claim what is due, run its stage, wait on a state."""

import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
from sqlalchemy import Connection, Engine

from models import intake, reads, schedule
from models.reads import GenerationView
from models.schedule import Claim, Stage
from tests.integration import rows
from worker.embedded_postgres import EmbeddedPostgres
from worker.requests import new_generation
from worker.runtime import Runtime
from worker.stages import poll, resolve, submit, upload


def text_request(text: str = "a cat", **fields: Any) -> dict[str, Any]:
    """A text-to-video request."""
    return {"content": [{"type": "text", "text": text}], **fields}


class Steps:
    """The service, one step at a time: what dispatcher and Celery do, under the test's control."""

    def __init__(self, rt: Runtime) -> None:
        self.rt = rt

    def enqueue(self, request: Mapping[str, Any] | None = None, **options: Any) -> uuid.UUID:
        with self.rt.engine.begin() as conn:
            return intake.accept(conn, new_generation(request or text_request(), **options)).id

    def admit(self, limit: int = 100, *, max_in_flight: int = 50) -> list[Claim]:
        with self.rt.engine.begin() as conn:
            admitted = schedule.admit(
                conn,
                limit,
                max_in_flight=max_in_flight,
                lease_seconds=self.rt.settings.lease,
                ceiling=None,
            )
        return admitted or []

    def due(self) -> list[Claim]:
        with self.rt.engine.begin() as conn:
            return schedule.claim_due(conn, 100, lease_seconds=self.rt.settings.lease)

    def run(self, claim: Claim) -> None:
        match claim.stage:
            case Stage.UPLOAD:
                upload.run(self.rt, claim.id, claim.lease)
            case Stage.SUBMIT:
                submit.run(self.rt, [(claim.id, claim.lease)])
            case Stage.RESOLVE:
                resolve.run(self.rt, [(claim.id, claim.lease)])
            case Stage.POLL:
                poll.run(self.rt, claim.id, claim.lease)

    def once(self) -> int:
        """Admit, claim and run everything there is to do now."""
        claims = self.due() + self.admit()
        for claim in claims:
            self.run(claim)
        return len(claims)

    def until(
        self,
        generation_id: uuid.UUID,
        reached: Callable[[GenerationView], bool],
        timeout: float = 20.0,
    ) -> GenerationView:
        """Step until the generation is as wanted."""
        deadline = time.monotonic() + timeout
        while True:
            view = self.get(generation_id)
            if reached(view):
                return view
            assert time.monotonic() < deadline, (
                f"not reached: {view}\n{self.history(generation_id)}"
            )
            if not self.once():
                time.sleep(0.02)

    def until_ended(self, generation_id: uuid.UUID, timeout: float = 20.0) -> GenerationView:
        return self.until(generation_id, lambda view: view.ended, timeout)

    def get(self, generation_id: uuid.UUID) -> GenerationView:
        with self.rt.engine.connect() as conn:
            view = reads.get(conn, generation_id)
        assert view is not None
        return view

    def history(self, generation_id: uuid.UUID) -> list[str]:
        """The names of the generation's events, in order."""
        with self.rt.engine.connect() as conn:
            return [event.event for event in reads.events(conn, generation_id)]


@pytest.fixture(scope="module")
def engine(postgres: EmbeddedPostgres) -> Iterator[Engine]:
    """A migrated database for a module whose tests undo what they do, or mind only their rows."""
    with rows.fresh_database(postgres) as engine:
        yield engine


@pytest.fixture
def conn(engine: Engine) -> Iterator[Connection]:
    """A connection whose changes are undone at the end."""
    with engine.connect() as conn:
        yield conn
        conn.rollback()


@pytest.fixture
def environment(environment: dict[str, str]) -> dict[str, str]:
    """A budget that no busy machine uses up: a test that means a late intent sets its own.

    And no balance that must be told first: the tests of the check turn it on.
    """
    return environment | {"SEEDANCE_SEND_BUDGET": "10", "SEEDANCE_CHECK_BALANCE": "false"}


@pytest.fixture
def steps(rt: Runtime) -> Steps:
    return Steps(rt)
