"""What is left of a run, read from both sides, and nothing else: what the checks work on."""

import hashlib
import json
import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, text

import simulator
from tests.chaos.plan import Order
from tests.chaos.strikes import Journal
from tests.receiver import Heard, Receiver

_TAG = re.compile(r"<(\d{4})>")


@dataclass(frozen=True)
class Row:
    """A generation, and its history."""

    id: uuid.UUID
    number: int
    status: str
    remote_task_id: str | None
    credit_cost: Decimal | None
    error_code: str | None
    wait_reason: str | None
    attention: str | None
    due_at: datetime | None
    video_url: str | None
    artifacts: tuple[Mapping[str, Any], ...]
    """What is to be in the archive of it, or is."""
    events: tuple[Mapping[str, Any], ...]
    attempts: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True)
class Records:
    """Ours (rows, strays), the provider's (tasks, submits, uploads), the harness's (journal)."""

    orders: Sequence[Order]
    ids: Mapping[int, uuid.UUID]
    """Number of an order → id of its generation, as far as its producer knows."""
    rows: Sequence[Row]
    strays: Sequence[Mapping[str, Any]]
    ledger: Sequence[Mapping[str, Any]]
    tasks: Sequence[Mapping[str, Any]]
    submits: Sequence[Mapping[str, Any]]
    uploads: Sequence[Mapping[str, Any]]
    requests: Sequence[Mapping[str, Any]]
    """The provider's log: time, endpoint, about, outcome."""
    faults: Mapping[str, Mapping[str, int]]
    """By endpoint and kind, as the provider counted them."""
    outcomes: Mapping[str, Mapping[str, int]]
    """By endpoint and code of the answer, as the provider counted them."""
    used_credits: Decimal
    key_leaks: int
    journal: Journal
    logs: Mapping[str, str]
    api_key: str
    rejected_messages: int = 0
    archive: Mapping[str, str] | None = None
    """Each file of the archive, by its path in it: its SHA-256. None where there is no archive."""
    notices: Sequence[Mapping[str, Any]] = ()
    """The outbox."""
    called_back: int = 0
    """Attempts of which a callback was heeded."""
    heard: Sequence[Heard] = ()
    """What the producers' web server took, in order."""


def number_of(prompt: object) -> int:
    """The order that a prompt belongs to; -1 for none."""
    found = _TAG.search(prompt if isinstance(prompt, str) else json.dumps(prompt))
    return int(found[1]) if found else -1


def read_rows(engine: Engine) -> list[Row]:
    """Every generation with its history."""
    with engine.connect() as conn:
        generations = conn.execute(
            text(
                "SELECT id, request, status, remote_task_id, credit_cost, error_code, wait_reason,"
                " attention, due_at, video_url FROM generations ORDER BY created_at, id"
            )
        ).all()
        events = _by_generation(conn.execute(text("SELECT * FROM generation_events ORDER BY id")))
        artifacts = _by_generation(conn.execute(text("SELECT * FROM artifacts")))
        attempts = _by_generation(
            conn.execute(text("SELECT * FROM submit_attempts ORDER BY generation_id, number"))
        )
    return [
        Row(
            g.id,
            number_of(g.request),
            g.status,
            g.remote_task_id,
            g.credit_cost,
            g.error_code,
            g.wait_reason,
            g.attention,
            g.due_at,
            g.video_url,
            tuple(artifacts.get(g.id, ())),
            tuple(events.get(g.id, ())),
            tuple(attempts.get(g.id, ())),
        )
        for g in generations
    ]


def _by_generation(result: Any) -> dict[uuid.UUID, list[dict[str, Any]]]:
    found: dict[uuid.UUID, list[dict[str, Any]]] = {}
    for row in result.mappings():
        found.setdefault(row["generation_id"], []).append(dict(row))
    return found


def read(
    engine: Engine,
    sim: simulator.Simulator,
    *,
    orders: Sequence[Order],
    ids: Mapping[int, uuid.UUID],
    journal: Journal,
    logs: Sequence[Path],
    archive: Path | None = None,
    receiver: Receiver | None = None,
) -> Records:
    """Everything there is to be known after a run."""
    with engine.connect() as conn:
        strays = [dict(row) for row in conn.execute(text("SELECT * FROM stray_tasks")).mappings()]
        ledger = [dict(r) for r in conn.execute(text("SELECT * FROM ledger_entries")).mappings()]
        rejected = conn.execute(text("SELECT count(*) FROM rejected_messages")).scalar_one()
        called = conn.execute(text("SELECT count(callback_at) FROM submit_attempts")).scalar_one()
        notices = [dict(r) for r in conn.execute(text("SELECT * FROM notices")).mappings()]
    requests = sim.requests(log=20_000)
    account = next(a for a in sim.accounts() if a["api_key"] == sim.api_key)
    return Records(
        orders,
        dict(ids),
        read_rows(engine),
        strays,
        ledger,
        sim.tasks(origin="submit"),
        sim.submits(),
        sim.uploads(),
        requests["log"],
        {name: count["faults"] for name, count in requests["endpoints"].items()},
        {name: count["outcomes"] for name, count in requests["endpoints"].items()},
        Decimal(str(account["used"])),
        requests["key_leaks"],
        journal,
        {path.name: path.read_text(errors="replace") for path in logs if path.exists()},
        sim.api_key,
        rejected,
        None if archive is None else _files(archive),
        notices,
        called,
        () if receiver is None else receiver.taken(),
    )


def _files(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }
