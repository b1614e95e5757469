"""docs/operate.md, "Back up" and "Restore": as the page says, with the commands that it names."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

import simulator
from models.lifecycle import Status
from tests.acceptance.conftest import Process, Service, wait_for
from tests.acceptance.test_least_rights import seedance
from tests.conftest import MakeRuntime
from worker.embedded_postgres import EmbeddedPostgres, postgres_binaries

RESTORED = "restored"


def tool(*command: str) -> None:
    """One of PostgreSQL's own programs."""
    program, *rest = command
    done = subprocess.run(
        [postgres_binaries() / program, *rest],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture
def restored(postgres: EmbeddedPostgres) -> Iterator[str]:
    """An empty database to restore into."""
    yield postgres.create_database(RESTORED)
    postgres.drop_database(RESTORED)


def told_tasks(*workers: Process) -> dict[str, str]:
    """What the logs say: the remote task of each generation."""
    lines = [line for worker in workers for line in worker.text().splitlines()]
    events: list[dict[str, Any]] = [json.loads(line) for line in lines if line.startswith("{")]
    return {e["generation"]: e["remote_task"] for e in events if e.get("remote_task")}


@pytest.mark.timeout(400)
def test_a_restored_backup_goes_on_without_paying_twice(
    service: Service,
    sim: simulator.Simulator,
    restored: str,
    make_runtime: MakeRuntime,
    tmp_path: Path,
):
    url = service.env["SEEDANCE_DATABASE_URL"]
    first = service.ready(service.worker())
    done = service.enqueue("a cat [sim: seconds=5]")
    assert service.ended(done).status is Status.COMPLETED
    runs = service.enqueue("a dog [sim: seconds=2000]")
    wait_for(lambda: service.find(runs).status is Status.RUNNING, "it runs")
    seedance(service, "pause", "--tenant", "held", "--reason", "not yet")
    waits = service.enqueue("a fox", tenant="held")

    dump = str(tmp_path / "backup")
    tool("pg_dump", "--format=custom", f"--file={dump}", url.replace("+psycopg", ""))

    # What happens after the backup, and is lost with the database.
    seedance(service, "resume", "--tenant", "held")
    later = service.enqueue("an owl [sim: seconds=2000]")
    assert service.ended(waits).status is Status.COMPLETED
    wait_for(lambda: service.find(later).status is Status.RUNNING, "it runs as well")
    first.terminate()
    sim.advance(5_000)
    sent = len(sim.submits())
    assert sent == 4

    # 1. Restore, and pause before anything runs.
    tool("pg_restore", f"--dbname={restored.replace('+psycopg', '')}", dump)
    now = {"SEEDANCE_DATABASE_URL": restored}
    seedance(service, "migrate", **now)
    seedance(service, "pause", "--reason", "restored", **now)
    seedance(service, "resume", "--tenant", "held", **now)
    # 2. What the provider has that the backup has not.
    report = json.loads(seedance(service, "reconcile", "--json", **now))
    tasks = told_tasks(first)
    assert report["corrected"], "what ran at the backup has got its end"
    assert set(report["foreign"]) == {tasks[str(waits)], tasks[str(later)]}
    # 3. Of what waits in the backup, what was sent afterwards is found by the logs.
    listed = json.loads(seedance(service, "list", "--status", "accepted", "--json", **now))
    waiting = {one["id"] for one in listed}
    assert waiting == {str(waits)}
    again = {one for one in waiting if tasks.get(one) in report["foreign"]}
    for one in again:
        seedance(service, "cancel", one, "--reason", f"made by {tasks[one]}", **now)
    # 4. Go on.
    seedance(service, "resume", "--reason", "reconciled", **now)
    service.ready(service.worker(**now))
    after = Service(make_runtime(database_url=restored), service.env, tmp_path)
    fresh = after.enqueue("a hen [sim: seconds=5]")
    assert after.ended(fresh).status is Status.COMPLETED
    assert after.find(runs).status is Status.COMPLETED
    assert after.find(waits).status is Status.CANCELLED
    with after.rt.engine.connect() as conn:
        charged = conn.execute(
            text("SELECT count(*) FROM ledger_entries WHERE kind = 'charged'")
        ).scalar_one()
    assert charged == 3, "what ended after the backup is charged, once"
    assert len(sim.submits()) == sent + 1, "nothing was sent a second time"
