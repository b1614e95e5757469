"""The service with RabbitMQ as its broker: quorum queues, on a node of its own."""

import json
import signal
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery
from kombu import Connection
from sqlalchemy import func, select

import simulator
from models.lifecycle import Status
from models.tables import RejectedMessage
from tests import rabbitmq
from tests.acceptance.conftest import Service, wait_for
from worker import transport
from worker.checkup.finding import Level
from worker.checkup.valkey import broker, rate

pytestmark = [
    pytest.mark.skipif(rabbitmq.ABSENT, reason=rabbitmq.WHY_ABSENT),
    pytest.mark.timeout(300),
]

TEXT = {"content": [{"type": "text", "text": "a cat under cherry blossoms"}]}


@pytest.fixture(scope="session")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[rabbitmq.RabbitMQ]:
    server = rabbitmq.RabbitMQ(tmp_path_factory.mktemp("rabbitmq"))
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture
def broker_url(node: rabbitmq.RabbitMQ) -> str:
    """In place of Valkey's, for every fixture that asks."""
    return node.vhost()


def quorum_client(service: Service) -> Celery:
    """A producer as the README shows it for RabbitMQ."""
    client = service.bare_celery()
    client.conf.task_default_queue_type = "quorum"
    return client


def test_requests_notices_and_garbage(
    service: Service, sim: simulator.Simulator, node: rabbitmq.RabbitMQ
):
    """A request of a bare client, its notice in a queue of the client's own, and what is none."""
    worker = service.ready(service.worker())
    assert "keeps the request rate by itself" in worker.text()
    notify = {"task": "shop.video_done", "queue": "shop"}
    with (
        quorum_client(service) as app,
        Connection(service.env["SEEDANCE_BROKER_URL"]) as connection,
        connection.channel() as opened,
    ):
        channel: Any = opened  # an amqp.Channel, of which kombu's stubs know less
        channel.queue_declare("shop", durable=True, auto_delete=False)
        garbage = [
            ("[]", "application/json"),
            ("no json", "application/json"),
            ("x" * (transport.MOST_BYTES + 1), "application/json"),
            ("pickled", "application/x-pickle"),
        ]
        for body, kind in garbage:
            headers = {"task": "seedance.generate", "id": str(uuid.uuid4())}
            message = channel.prepare_message(
                body, content_type=kind, content_encoding="utf-8", headers=headers
            )
            channel.basic_publish(message, exchange="", routing_key="celery")
        sent = app.send_task("seedance.generate", kwargs={"request": TEXT, "notify": notify})
        view = service.ended(sent.id)
        told = wait_for(lambda: channel.basic_get("shop", no_ack=True), "the notice is there")

        found, workers = broker(service.env["SEEDANCE_BROKER_URL"]).checks

    assert (found.level, workers.level) == (Level.OK, Level.OK), (found, workers)
    assert found.found.startswith("RabbitMQ 3") or found.found.startswith("RabbitMQ 4")
    assert rate(service.rt.settings).checks[0].level is Level.WARN
    assert view.status is Status.COMPLETED
    assert len(sim.submits()) == 1
    assert told.headers["task"] == "shop.video_done"
    assert json.loads(told.body)[1]["notice"]["data"]["id"] == sent.id

    def aside() -> bool:
        with service.rt.engine.connect() as conn:
            query = select(func.count()).select_from(RejectedMessage)
            return bool(conn.execute(query).scalar_one() == len(garbage))

    wait_for(aside, "all that is no request is set aside")
    vhost = service.env["SEEDANCE_BROKER_URL"].rpartition("/")[2]
    listed = node.control("list_queues", "-p", vhost, "--no-table-headers", "name", "type")
    kinds = dict(line.split("\t") for line in listed.splitlines())
    ours = ("seedance.stages", "celery", "seedance.upkeep", "seedance.side")
    assert {name: kinds[name] for name in ours} == dict.fromkeys(ours, "quorum")
    assert not [name for name in kinds if "delayed" in name]


def test_every_generation_is_sent_once_though_a_worker_and_the_broker_are_killed(
    service: Service, sim: simulator.Simulator, node: rabbitmq.RabbitMQ
):
    killed, other = service.ready(service.worker()), service.ready(service.worker())
    ids = [service.enqueue(f"cat {number} [sim: seconds=60]") for number in range(12)]
    wait_for(lambda: len(sim.submits()) >= 3, "some are submitted")
    killed.kill()
    node.kill()
    node.start()
    with quorum_client(service) as app:
        ids.append(uuid.UUID(app.send_task("seedance.generate", kwargs={"request": TEXT}).id))

    views = [service.ended(generation_id, 120) for generation_id in ids]

    assert {view.status for view in views} == {Status.COMPLETED}
    assert len(sim.tasks(origin="submit")) == len(ids)
    assert other.alive, other.text()[-2000:]


def test_a_frozen_broker_holds_nobody_for_ever(
    service: Service, sim: simulator.Simulator, node: rabbitmq.RabbitMQ
):
    worker = service.ready(service.worker())
    node.signal(signal.SIGSTOP)
    try:
        generation_id = service.enqueue("a cat")
        wait_for(lambda: "the dispatcher starts again" in worker.text(), "it gives up waiting")
    finally:
        node.signal(signal.SIGCONT)
    assert service.ended(generation_id, 120).status is Status.COMPLETED
    assert len(sim.submits()) == 1


def test_a_request_outlasts_a_long_outage_of_the_database(
    service: Service, sim: simulator.Simulator, node: rabbitmq.RabbitMQ
):
    """RabbitMQ drops a message that comes back too often: by itself from version 4 on."""
    vhost = service.env["SEEDANCE_BROKER_URL"].rpartition("/")[2]
    policy = json.dumps({"delivery-limit": 13})
    node.control("set_policy", "-p", vhost, "limit", "^celery$", policy, "--apply-to", "queues")
    engine = service.rt.engine
    with engine.begin() as conn:
        conn.exec_driver_sql("ALTER TABLE generations RENAME TO elsewhere")
    try:
        worker = service.ready(service.worker())
        with quorum_client(service) as app:
            sent = app.send_task("seedance.generate", kwargs={"request": TEXT})
        # More returns than the policy allows.
        wait_for(lambda: worker.text().count("it is sent anew") >= 2, "it came back often", 120)
    finally:
        with engine.begin() as conn:
            conn.exec_driver_sql("ALTER TABLE elsewhere RENAME TO generations")
    assert service.ended(sent.id, 120).status is Status.COMPLETED
    assert len(sim.submits()) == 1
