"""Generations put straight into a status, as the stages would have left them."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Engine, Row, func, insert, select, text

from models.base import table_of
from models.database import make_engine
from models.lifecycle import IN_DOUBT, TERMINAL, Observation, Status
from models.tables import Generation, GenerationEvent, SubmitAttempt
from tests.databases import TEMPLATE
from worker.embedded_postgres import EmbeddedPostgres

REQUEST: dict[str, Any] = {
    "model": "seedance-2.0",
    "content": [{"type": "text", "text": "a cat"}],
    "resolution": "720p",
    "ratio": "16:9",
    "duration": 5,
    "generate_audio": True,
    "seed": None,
}
TASK = "task-1"
_seeds = iter(range(1_000_000, 2_000_000))

_AFTER_SUBMISSION = frozenset({Status.RUNNING, Status.COMPLETED})


@contextmanager
def fresh_database(server: EmbeddedPostgres) -> Iterator[Engine]:
    """A migrated database for a module whose tests undo what they do, or mind only their rows."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    engine = make_engine(server.create_database(name, template=TEMPLATE), pool_size=12)
    yield engine
    engine.dispose()
    server.drop_database(name)


def db_now(conn: Connection) -> datetime:
    return conn.execute(select(func.now())).scalar_one()


def make(conn: Connection, status: Status, **values: Any) -> uuid.UUID:
    """One generation of this status, with the attempts that it takes to get there."""
    generation_id = values.pop("id", None) or uuid.uuid4()
    attempts = values.pop("attempts", None)
    sent = status in IN_DOUBT | _AFTER_SUBMISSION
    row: dict[str, Any] = {
        "id": generation_id,
        "status": str(status),
        "request": REQUEST,
        "estimated_cost": 9,
        "due_at": None if status in TERMINAL else func.now(),
        "finished_at": func.now() if status in TERMINAL else None,
        "error_code": "X" if status is Status.FAILED else None,
        "lease": 7,
        "attempt": 1 if sent else 0,
        "fingerprint": f"print-{generation_id.hex}" if sent else None,
        "remote_task_id": f"task-{generation_id.hex}" if status in _AFTER_SUBMISSION else None,
        "remote_status": {Status.RUNNING: "pending", Status.COMPLETED: "completed"}.get(status),
        "submitted_at": func.now() if status in _AFTER_SUBMISSION else None,
    } | values
    conn.execute(insert(table_of(Generation)).values(row))
    for number in range(1, (row["attempt"] if attempts is None else attempts) + 1):
        last = number == row["attempt"]
        followed = last and status in _AFTER_SUBMISSION
        outcome = None if last and status is Status.SUBMITTING else "unknown"
        attempt(
            conn,
            generation_id,
            number,
            fingerprint=row["fingerprint"] or "-",
            outcome="submitted" if followed else outcome,
            remote_task_id=row["remote_task_id"] if followed else None,
        )
    return generation_id


def attempt(conn: Connection, generation_id: uuid.UUID, number: int, **values: Any) -> int:
    """One attempt; returns its seed."""
    row = {
        "generation_id": generation_id,
        "number": number,
        "seed": next(_seeds),
        "seed_drawn": True,
        "fingerprint": "-",
        "settle_at": func.now() + timedelta(seconds=90),
    } | values
    conn.execute(insert(table_of(SubmitAttempt)).values(row))
    return row["seed"]


def read(conn: Connection, generation_id: uuid.UUID) -> Row[Any]:
    table = table_of(Generation)
    return conn.execute(select(table).where(table.c.id == generation_id)).one()


def attempts(conn: Connection, generation_id: uuid.UUID) -> list[tuple[int, str | None]]:
    """Number and outcome of each attempt."""
    a = table_of(SubmitAttempt).c
    query = select(a.number, a.outcome).where(a.generation_id == generation_id)
    return [tuple(row) for row in conn.execute(query.order_by(a.number))]


def events(conn: Connection, generation_id: uuid.UUID) -> list[tuple[str, str | None, str | None]]:
    """Event, from and to of each line of the history."""
    e = table_of(GenerationEvent).c
    query = select(e.event, e.from_status, e.to_status).where(e.generation_id == generation_id)
    return [tuple(row) for row in conn.execute(query.order_by(e.id))]


def image(conn: Connection, generation_id: uuid.UUID) -> list[Any]:
    """Everything the database says of a generation, to see that nothing changed."""
    tables = ("generations WHERE id", "generation_events WHERE generation_id")
    tables += ("submit_attempts WHERE generation_id", "stray_tasks WHERE generation_id")
    return [
        sorted(map(repr, conn.execute(text(f"SELECT * FROM {t} = :id"), {"id": generation_id})))
        for t in tables
    ]


def seen(task_id: str, status: str = "queued", **shown: Any) -> Observation:
    return Observation(task_id, status, **shown)
