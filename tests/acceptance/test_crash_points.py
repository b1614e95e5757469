"""Workers that die at the worst moments. What they began is ended by others, exactly once."""

import hashlib
import uuid
from pathlib import Path
from typing import get_args

import pytest

import simulator
from models.ledger import reading
from models.lifecycle import Status
from tests.acceptance.conftest import ROOT, Service, wait_for
from tests.receiver import receiving, webhook_settings
from worker.crash_points import CrashPoint

WITH_REFERENCE = {
    "content": [
        {"type": "image_url", "image_url": "path:lake.jpg"},
        {"type": "text", "text": "waves"},
    ]
}
LOST = {"content": [{"type": "text", "text": "a cat [sim: submit=lost]"}]}
# It is at work when it is adopted: somebody must look at it again.
LOST_AND_LONG = {"content": [{"type": "text", "text": "a cat [sim: submit=lost, seconds=3000]"}]}
PLAIN = {"content": [{"type": "text", "text": "a cat"}]}


@pytest.mark.parametrize("point", get_args(CrashPoint))
def test_death_at_a_crash_point_costs_nothing(
    point: CrashPoint, service: Service, sim: simulator.Simulator, tmp_path: Path
):
    if point.startswith("deliver."):
        _death_while_delivering(point, service, tmp_path)
        return
    if point.startswith("observe."):
        _death_while_observing(point, service, sim, tmp_path)
        return
    archive = tmp_path / "archive"
    archive.mkdir()
    media = {"SEEDANCE_MEDIA_ROOTS": str(ROOT / "examples" / "media")}
    if point.startswith("archive."):
        media["SEEDANCE_ARCHIVE_URL"] = archive.as_uri()
    if point.startswith("resolve."):
        # Early scans, 2 s after the answer was lost, find nothing: it is resolved when it settles.
        sim.configure(list_lag=5)
        media["SEEDANCE_SEND_BUDGET"] = "6"
    once = tmp_path / "died"
    doomed = service.worker(SEEDANCE_CRASH_AT=point, SEEDANCE_CRASH_ONCE=str(once), **media)
    request = PLAIN
    if point.startswith("upload."):
        request = WITH_REFERENCE
    elif point == "resolve.after_decision":
        request = LOST_AND_LONG
    elif point.startswith("resolve."):
        request = LOST
    with service.bare_celery() as app:
        sent = app.send_task("seedance.generate", kwargs={"request": request})
        assert doomed.wait() == -9, doomed.text()
        assert once.exists()
        service.worker(**media)

        view = service.ended(sent.id, 75 if point.startswith("accept.before") else 60)

    assert view.status is Status.COMPLETED
    tasks = sim.tasks(origin="submit")
    assert [task["task_id"] for task in tasks] == [view.remote_task_id]
    assert str(view.credit_cost.normalize()) == str(_charged(tasks[0]))
    with service.rt.engine.connect() as conn:
        booked = [entry.kind for entry in reading.entries(conn, view.id)]
        assert reading.imbalances(conn) == []
    # However often it was tried: each reservation once and released, one charge.
    assert booked.count("reserved") == booked.count("released") == view.attempt
    assert (booked.count("estimated"), booked.count("charged")) == (1, 1)
    if point.startswith("upload."):
        assert len(sim.uploads()) >= 1
    if point.startswith("archive."):
        _stored_once(service, view.id, archive, tasks[0]["video_sha256"])


def _stored_once(service: Service, generation_id: uuid.UUID, folder: Path, sha256: str) -> None:
    """Whole, under its name, recorded once, and nothing else lies there."""

    def uri() -> str | None:
        found = service.find(generation_id)
        return found and found.video_uri

    stored = folder / sha256[:2] / f"{sha256}.mp4"
    assert wait_for(uri, "the video is stored") == stored.as_uri()
    assert hashlib.sha256(stored.read_bytes()).hexdigest() == sha256
    assert [path for path in folder.rglob("*") if path.is_file()] == [stored]
    assert service.history(generation_id).count("archived") == 1


def _death_while_delivering(point: CrashPoint, service: Service, tmp_path: Path) -> None:
    """The notice comes all the same; a second time only if the first was sent before the death."""
    once = tmp_path / "died"
    with receiving() as receiver:
        env = webhook_settings(receiver)
        doomed = service.worker(SEEDANCE_CRASH_AT=point, SEEDANCE_CRASH_ONCE=str(once), **env)
        notify = {"webhook": receiver.url()}
        generation_id = service.enqueue(notify=notify, private_webhooks=True)
        assert doomed.wait() == -9, doomed.text()
        assert once.exists()
        before = len(receiver.heard)
        service.worker(**env)
        wait_for(lambda: len(receiver.taken()) > before, "the notice comes")
    assert before == (1 if point == "deliver.after_send" else 0)
    assert {one.data["id"] for one in receiver.heard} == {str(generation_id)}
    assert len({one.id for one in receiver.heard}) == 1, "known by its id"
    assert all(one.verified for one in receiver.heard)


def _death_while_observing(
    point: str, service: Service, sim: simulator.Simulator, tmp_path: Path
) -> None:
    """The worker that reads the task list dies: another does, or all are polled one by one."""
    by_list = {"SEEDANCE_OBSERVE_FROM": "3"}
    once = tmp_path / "died"
    doomed = service.worker(SEEDANCE_CRASH_AT=point, SEEDANCE_CRASH_ONCE=str(once), **by_list)
    ids = [service.enqueue(f"cat {number} [sim: seconds=300]") for number in range(8)]
    assert doomed.wait() == -9, doomed.text()
    assert once.exists()
    service.worker(**by_list)
    for generation_id in ids:
        assert service.ended(generation_id).status is Status.COMPLETED
    assert len(sim.tasks(origin="submit")) == len(ids)
    with service.rt.engine.connect() as conn:
        assert reading.imbalances(conn) == []


def _charged(task: dict) -> object:
    from decimal import Decimal

    return Decimal(task["charged"]).normalize()


def test_all_workers_killed_at_once(service: Service, sim: simulator.Simulator):
    workers = [service.ready(service.worker()) for _ in range(2)]
    ids = [service.enqueue(f"cat {number} [sim: seconds=60]") for number in range(12)]
    wait_for(lambda: len(sim.submits()) >= 4, "some are submitted")

    for worker in workers:
        worker.kill()
    service.worker()

    for generation_id in ids:
        assert service.ended(generation_id).status is Status.COMPLETED
    assert len(sim.tasks(origin="submit")) == len(ids)
