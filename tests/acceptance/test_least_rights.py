"""The whole service with a database role for each kind of process, and addresses from files."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from sqlalchemy import text

import simulator
from models.database import make_engine
from models.grants import Purpose
from models.lifecycle import Status
from tests.acceptance.conftest import BIN, Service, wait_for
from tests.acceptance.test_gateway import Gateway
from tests.receiver import SECRET, receiving
from worker import producer
from worker.embedded_postgres import EmbeddedPostgres
from worker.producer import BudgetExceeded
from worker.upkeep import prune

OFTEN = {"SEEDANCE_RECONCILE_EVERY": "1", "SEEDANCE_BALANCE_EVERY": "1"}


def seedance(service: Service, *command: str, **env: str) -> str:
    """What a command says that succeeds."""
    done = subprocess.run(
        [BIN / "seedance", *command],
        env={"PATH": "/usr/bin:/bin", **service.env, **env},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def addresses(
    service: Service, tmp_path: Path, postgres: EmbeddedPostgres
) -> Iterator[dict[Purpose, str]]:
    """The database's address as each of three roles; the server must refuse none of them anything.

    Roles are the server's, not the database's: another test's may be there already.
    """
    url = service.env["SEEDANCE_DATABASE_URL"]
    owner = make_engine(url)
    made = "CREATE ROLE limited_{0} LOGIN; EXCEPTION WHEN duplicate_object THEN NULL;"
    with owner.begin() as conn:
        for purpose in Purpose:
            conn.execute(text(f"DO $$ BEGIN {made.format(purpose)} END $$"))
    owner.dispose()
    granted = [f"--grant=limited_{purpose}={purpose}" for purpose in Purpose]
    assert seedance(service, "migrate", *granted).count("has the rights of a") == 3
    before = postgres.log.stat().st_size
    yield {p: url.replace("://seedance@", f"://limited_{p}@") for p in Purpose}
    said = postgres.log.read_bytes()[before:].decode(errors="replace")
    assert "permission denied" not in said, said


@pytest.mark.timeout(300)
def test_every_process_does_its_work_with_the_rights_of_its_kind(
    service: Service,
    sim: simulator.Simulator,
    addresses: dict[Purpose, str],
    make_runtime,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    del service.env["SEEDANCE_DATABASE_URL"]
    files = {purpose: tmp_path / f"address-of-{purpose}" for purpose in Purpose}
    for purpose, file in files.items():
        file.write_text(addresses[purpose] + "\n")
    gateway = Gateway(service, SEEDANCE_DATABASE_URL_FILE=str(files[Purpose.GATEWAY])).up()
    videos = tmp_path / "videos"
    videos.mkdir()
    mine = {
        "SEEDANCE_DATABASE_URL_FILE": str(files[Purpose.WORKER]),
        "SEEDANCE_WEBHOOK_SECRETS": SECRET,
        "SEEDANCE_ALLOW_PRIVATE_WEBHOOKS": "true",
        "SEEDANCE_ARCHIVE_URL": videos.as_uri(),
        "SEEDANCE_PUBLIC_URL": gateway.url,
        "SEEDANCE_METRICS_EVERY": "0.5",
        "SEEDANCE_MEDIA_ROOTS": str(tmp_path),
        "SEEDANCE_CHECK_BALANCE": "true",
        **OFTEN,
    }
    monkeypatch.setenv("SEEDANCE_DATABASE_URL_FILE", str(files[Purpose.PRODUCER]))
    monkeypatch.setenv("SEEDANCE_ALLOW_PRIVATE_WEBHOOKS", "true")
    seedance(service, "budget", "set", "acme", "total", "100", **mine)
    (tmp_path / "scene.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(600))
    service.ready(service.worker(**mine))
    service.beat(**mine)

    with receiving() as receiver:
        content = [
            {"type": "image_url", "image_url": "path:scene.png"},
            {"type": "text", "text": "a cat [sim: seconds=30]"},
        ]
        whole = producer.enqueue(
            {"content": content},
            tenant="acme",
            notify={"webhook": receiver.url(), "on": "change"},
        )
        lost = producer.enqueue(
            {"content": [{"type": "text", "text": "a fox [sim: submit=lost, seconds=30]"}]}
        )
        failed = producer.enqueue(
            {"content": [{"type": "text", "text": "x [sim: fail=INTERNAL_ERROR, seconds=5]"}]},
        )
        with pytest.raises(BudgetExceeded):
            producer.enqueue_many([{"content": content, "duration": 15}] * 9, tenant="acme")
        seedance(service, "pause", "--tenant", "held", "--reason", "test", **mine)
        held = producer.enqueue({"content": content}, tenant="held")
        assert producer.cancel(held).status is Status.CANCELLED
        views = producer.wait_many([whole, lost, failed], timeout=120)
        assert views[whole].status is views[lost].status is Status.COMPLETED
        assert views[failed].status is Status.FAILED
        assert producer.wait(producer.retry(failed), timeout=120).ended
        assert [event.event for event in producer.events(whole, timeout=20)]

        def delivered() -> bool:
            query = "SELECT count(*) FILTER (WHERE status = 'delivered'), count(*) FROM notices"
            with service.rt.engine.connect() as conn:
                done, all_of_them = conn.execute(text(query)).one()
            return done == all_of_them >= 4

        wait_for(delivered, "notices are delivered")
    wait_for(lambda: any(videos.rglob("*.mp4")), "the video is stored")
    wait_for(lambda: sim.received("list") >= 3, "the task list is read again and again")
    assert requests.get(f"{gateway.url}/metrics", timeout=20).status_code == 200
    assert gateway.ready()[0] == 200
    for command in (["reconcile"], ["balance"], ["resume", "--tenant", "held"], ["history"]):
        seedance(service, *command, **mine)
    assert "nothing" not in seedance(service, "show", str(whole), **mine)
    rt = make_runtime(database_url=addresses[Purpose.WORKER], retain_events=1, retain_balances=1)
    with service.rt.engine.begin() as conn:
        conn.execute(text("UPDATE generation_events SET at = at - interval '1 day'"))
        conn.execute(text("UPDATE balance_snapshots SET at = at - interval '1 day'"))
    assert prune.run(rt) > 0
    for process in service._processes:
        assert "InsufficientPrivilege" not in process.text()
        assert "ProgrammingError" not in process.text()
