"""Real workers tell a real receiver, which is down for a while, while workers are killed."""

from collections import defaultdict
from pathlib import Path

import redis
from celery import Celery
from sqlalchemy import text

from models.notices import State, reading
from tests.acceptance.conftest import Service, wait_for
from tests.receiver import Receiver, receiving, webhook_settings
from worker.embedded_valkey import EmbeddedValkey

CHANGES = ["uploading", "submitting", "running", "completed"]


def nothing_waits(service: Service) -> bool:
    with service.rt.engine.connect() as conn:
        return reading.counts(conn)[State.PENDING] == 0


def changes_by_generation(receiver: Receiver) -> dict[str, list[tuple[int, str]]]:
    """What was taken of each generation, in order, repetitions left out."""
    found: dict[str, list[tuple[int, str]]] = defaultdict(list)
    seen = set()
    for one in receiver.taken():
        assert one.verified
        if one.id not in seen:
            seen.add(one.id)
            found[one.data["id"]].append((one.data["sequence"], one.data["status"]))
    return found


def test_each_notice_arrives_in_its_order_though_the_receiver_was_down_and_workers_died(
    service: Service,
):
    with receiving() as receiver:
        env = {**webhook_settings(receiver), "SEEDANCE_CONCURRENCY": "4"}
        workers = [service.ready(service.worker(**env)) for _ in range(2)]
        receiver.stop()
        notify = {"webhook": receiver.url(), "on": "change"}
        ids = [service.enqueue(f"cat {n}", notify=notify, private_webhooks=True) for n in range(8)]
        for generation_id in ids:
            service.ended(generation_id)  # nobody waits for the receiver
        with service.rt.engine.connect() as conn:
            assert reading.counts(conn)[State.PENDING] >= len(ids) * len(CHANGES)

        receiver.start()
        wait_for(lambda: len(receiver.taken()) >= 3, "some are taken")
        for worker in workers:
            worker.kill()
        service.worker(**env)
        wait_for(lambda: nothing_waits(service), "everything is told")

    told = changes_by_generation(receiver)
    assert told.keys() == {str(one) for one in ids}
    for changes in told.values():
        assert [sequence for sequence, _ in changes] == list(range(1, len(changes) + 1))
        assert [status for _, status in changes] == CHANGES


def test_a_receiver_that_hangs_slows_neither_generations_nor_other_receivers(service: Service):
    with receiving() as slow, receiving() as quick:
        slow.delay = 1.2  # just within what a lease of 3 s allows
        env = webhook_settings(quick)
        service.ready(service.worker(**env))
        notify = {"webhook": slow.url(), "on": "change"}
        hanging = [
            service.enqueue("a cat", notify=notify, private_webhooks=True) for _ in range(24)
        ]
        wait_for(lambda: slow.heard, "the slow one has begun to answer")
        other = service.enqueue("a dog", notify={"webhook": quick.url()}, private_webhooks=True)
        service.ended(other)
        wait_for(lambda: quick.taken(), "the other is told")
        assert len(slow.heard) < len(hanging) * len(CHANGES), "while there is much left for it"
        for generation_id in hanging:
            service.ended(generation_id)  # nobody waits for the receiver
        slow.delay = 0.0


def test_a_celery_worker_of_the_producer_gets_its_task(service: Service):
    service.ready(service.worker())
    notify = {"task": "shop.video_done", "queue": "shop"}
    generation_id = service.enqueue("a cat", notify=notify)
    service.ended(generation_id)
    broker = service.env["SEEDANCE_BROKER_URL"]
    with (
        Celery("shop", broker=broker, set_as_current=False) as shop,
        shop.connection() as connection,
        connection.SimpleQueue("shop") as queue,
    ):
        message = queue.get(timeout=60)
        message.ack()
    _, kwargs, _ = message.payload
    assert message.headers["task"] == "shop.video_done"
    assert kwargs["notice"]["type"] == "generation.completed"
    assert kwargs["notice"]["data"]["id"] == str(generation_id)
    with service.rt.engine.connect() as conn:
        [view] = reading.listing(conn, generation_id=generation_id)
    assert message.headers["id"] == str(view.id)


def test_a_producers_queue_never_becomes_one_of_the_workers(service: Service, tmp_path: Path):
    """A worker that lost its connection would take from it, and set what it finds there aside."""
    notify = {"task": "shop.video_done", "queue": "shop"}
    with EmbeddedValkey(tmp_path / "valkey", durable=False) as broker:
        service.env["SEEDANCE_BROKER_URL"] = broker.url()
        service.ready(service.worker())
        service.ended(service.enqueue("a cat", notify=notify))
        with redis.Redis.from_url(broker.url()) as client:
            wait_for(lambda: client.llen("shop"), "the notice is there")

        broker.kill()
        broker.start()
        service.ended(service.enqueue("a dog"))

        with service.bare_celery() as app:
            taken = wait_for(lambda: app.control.inspect(timeout=5).active_queues(), "it answers")
    names = {queue["name"] for queues in taken.values() for queue in queues}
    assert names == {"seedance.stages", "celery", "seedance.upkeep", "seedance.side"}


def test_a_message_that_is_refused_at_the_door_tells_its_sender(service: Service):
    with receiving() as receiver:
        service.ready(service.worker(**webhook_settings(receiver)))
        request = {"content": [{"type": "text", "text": "a cat"}], "duration": 99}
        with service.bare_celery() as app:
            sent = app.send_task(
                "seedance.generate",
                kwargs={"request": request, "notify": {"webhook": receiver.url()}},
            )
        wait_for(lambda: receiver.taken(), "the refusal is told")
        [told] = receiver.taken()
        assert told.payload["type"] == "generation.failed"
        assert told.data["id"] == sent.id
        assert told.data["error_code"] == "INVALID_REQUEST"
    with service.rt.engine.connect() as conn:
        assert conn.execute(text("SELECT count(*) FROM rejected_messages")).scalar_one() == 0
