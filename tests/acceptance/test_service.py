"""What a producer and an operator see of running workers."""

import base64
import json
import signal
import uuid

import pytest
import redis
from sqlalchemy import select

import simulator
from models.lifecycle import Status
from models.tables import RejectedMessage
from tests.acceptance.conftest import PATIENCE, Service, wait_for
from worker import transport

TEXT = {"content": [{"type": "text", "text": "a cat under cherry blossoms"}]}


def test_a_bare_celery_client_gets_its_generation_by_the_task_id(
    service: Service, sim: simulator.Simulator
):
    service.ready(service.worker())
    with service.bare_celery() as app:
        sent = app.send_task(
            "seedance.generate",
            kwargs={"request": TEXT, "metadata": {"order": 7}, "tenant": "acme", "priority": 3},
        )

        view = service.ended(sent.id)

    assert view.status is Status.COMPLETED
    assert (view.metadata, view.tenant, view.priority) == ({"order": 7}, "acme", 3)
    assert [task["task_id"] for task in sim.tasks()] == [view.remote_task_id]


def test_each_line_of_a_worker_says_which_generation_it_is_of(
    service: Service, sim: simulator.Simulator
):
    worker = service.ready(service.worker())
    sim.fault("get", "not_found", times=1)
    generation_id = str(service.enqueue("a cat that nobody may see"))
    view = service.ended(generation_id)
    wait_for(lambda: "is completed" in worker.text(), "the end is told")

    lines = [json.loads(line) for line in worker.text().splitlines()]
    assert all(
        {"timestamp", "level", "event", "logger", "process"} <= line.keys() for line in lines
    )
    [late] = [line for line in lines if "can't be seen" in line["event"]]
    [ended] = [line for line in lines if "is completed" in line["event"]]
    assert (late["level"], ended["level"]) == ("warning", "info")
    for line in (late, ended):
        assert line["generation"] == generation_id
        assert line["task"].startswith(f"{generation_id}.poll.")
        assert (line["stage"], line["attempt"]) == ("poll", 1)
        assert line["remote_task"] == view.remote_task_id
    assert "nobody may see" not in worker.text()


def test_bad_input_ends_as_a_failed_generation_and_garbage_is_set_aside(service: Service):
    worker = service.ready(service.worker())
    with service.bare_celery() as app:
        too_long = app.send_task("seedance.generate", kwargs={"request": {**TEXT, "duration": 99}})
        no_request = app.send_task("seedance.generate", kwargs={"something": 1})
        app.send_task("seedance.no_such_task", args=[1])
        broker = redis.Redis.from_url(service.env["SEEDANCE_BROKER_URL"])
        template = json.loads(_message(app, broker))
        for body in ('"[]"', "[]", '"not base64"', "5"):
            broker.lpush("celery", json.dumps({**template, "body": json.loads(body)}))
        broker.lpush("celery", json.dumps({**template, "content-type": "application/x-pickle"}))
        broker.lpush("celery", json.dumps({**template, "headers": {}}))
        broker.lpush("celery", json.dumps({**template, "body": "x" * transport.MOST_BYTES}))
        broker.close()
        good = app.send_task("seedance.generate", kwargs={"request": TEXT})

        refused = service.ended(too_long.id)
        assert service.ended(good.id).status is Status.COMPLETED

    assert (refused.status, refused.error_code) == (Status.FAILED, "INVALID_REQUEST")
    assert "duration" in (refused.error_message or "")
    assert "99" in (refused.error_message or "")
    assert service.find(no_request.id) is None

    def aside() -> list[str]:
        with service.rt.engine.connect() as conn:
            return list(conn.execute(select(RejectedMessage.reason)).scalars())

    wait_for(lambda: len(aside()) == 9, "all nine are set aside")
    assert any(no_request.id in reason for reason in aside())
    assert any("no_such_task" in reason for reason in aside())
    assert any("at most 1048576 bytes are allowed" in reason for reason in aside())
    assert worker.alive
    assert worker.text().count("was set aside") == 9, "each is told once"


def _message(app, broker) -> bytes:
    """A `seedance.generate` message as Celery writes it, taken off the broker again."""
    app.send_task("seedance.generate", kwargs={"request": TEXT}, queue="a-side-queue")
    taken = broker.rpop("a-side-queue")
    assert taken is not None
    return taken


def test_no_message_carries_a_secret(service: Service):
    """What a worker publishes for others to take: ids and leases alone."""
    idle = service.ready(service.worker("-Q", "nobodys"))
    assert "nobodys is no queue of this service" in idle.text()
    media = {"type": "image_url", "image_url": "https://h/x.png?signed=very-secret"}
    text = {"type": "text", "text": "a prompt of somebody"}
    with redis.Redis.from_url(service.env["SEEDANCE_BROKER_URL"]) as broker:
        ids = [service.enqueue(request={"content": [media, text]}), service.enqueue()]
        wait_for(lambda: broker.llen("seedance.stages") >= 2, "both are published")
        taken = broker.lrange("seedance.stages", 0, -1)
    for raw in taken:
        message = json.loads(raw)
        said = raw.decode() + base64.b64decode(message["body"]).decode()
        assert any(str(generation_id) in said for generation_id in ids)
        for word in (service.env["SEEDANCE_API_KEY"], "very-secret", "prompt", "https://"):
            assert word not in said


def test_many_generations_over_two_workers_are_submitted_once_each(
    service: Service, sim: simulator.Simulator
):
    ids = [service.enqueue(f"cat {number}") for number in range(30)]
    for process in (service.worker(), service.worker()):
        service.ready(process)

    views = [service.ended(generation_id) for generation_id in ids]

    assert {view.status for view in views} == {Status.COMPLETED}
    assert len(sim.submits()) == len(ids)
    assert len({view.remote_task_id for view in views}) == len(ids)


def test_sigterm_hands_the_work_on_at_once(service: Service, sim: simulator.Simulator):
    first = service.ready(service.worker())
    ids = [service.enqueue(f"cat {number} [sim: seconds=120]") for number in range(6)]
    wait_for(lambda: len(sim.submits()) == len(ids), "all are submitted")
    second = service.ready(service.worker())

    assert first.terminate() == 0

    assert second.alive
    for generation_id in ids:
        assert service.ended(generation_id).status is Status.COMPLETED
    assert len(sim.submits()) == len(ids)


def test_beat_reconciles_and_records_the_balance(service: Service, sim: simulator.Simulator):
    service.ready(service.worker())
    lost = service.enqueue("a cat [sim: submit=lost]")
    sim.inject(text="somebody else's", seed=4711)

    service.beat(SEEDANCE_RECONCILE_EVERY="1", SEEDANCE_BALANCE_EVERY="1")

    assert service.ended(lost).status is Status.COMPLETED
    assert len(sim.tasks(origin="submit")) == 1
    wait_for(lambda: sim.received("balance") > 0, "the balance was asked for")


@pytest.mark.parametrize("shutdown", [signal.SIGTERM, signal.SIGINT])
def test_a_worker_stops_when_told(service: Service, shutdown: signal.Signals):
    worker = service.ready(service.worker())
    worker.signal(shutdown)
    assert worker.wait(30) >= 0, "it ends by itself (Celery says 1 after SIGINT)"
    said = [json.loads(line)["event"] for line in worker.text().splitlines()]
    assert said[-2].endswith("stops: it takes nothing new"), said
    assert said[-1].endswith("has stopped"), "the last line, and each is JSON"


def test_a_message_sent_twice_makes_one_generation(service: Service, sim: simulator.Simulator):
    service.ready(service.worker())
    generation_id = str(uuid.uuid4())
    with service.bare_celery() as app:
        for _ in range(3):
            app.send_task("seedance.generate", kwargs={"request": TEXT}, task_id=generation_id)
        view = service.ended(generation_id, PATIENCE)

    assert view.status is Status.COMPLETED
    assert len(sim.submits()) == 1
