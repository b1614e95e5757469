"""Hard cases of taking in and taking on: bad messages, stuck rows, uploads and breakers."""

import dataclasses
import threading
import uuid
from decimal import Decimal

import pytest
import sqlalchemy as sa

from models import choosing, schedule
from models.choosing import Choice
from models.flow_control import breakers
from models.flow_control.breakers import BreakerName
from models.lifecycle import Status
from tests.brokers import broker_with
from tests.integration.conftest import Steps
from tests.integration.hard_cases import MEDIA, REQUEST, WITH_IMAGE, intended, running, sql
from worker import runtime as process
from worker.dispatcher import Dispatcher
from worker.stages import accept, upload
from worker.tasks import generate


def nested(depth):
    value = 1
    for _ in range(depth):
        value = {"a": value}
    return value


@pytest.mark.parametrize(
    "message",
    [
        {"request": {**REQUEST, "a\x00b": 1}},
        {"request": {**REQUEST, "seed": float("nan")}},
        {"request": REQUEST, "o\x00": 1},
        {"request": {**REQUEST, "a\ud800b": 1}},
        {"request": REQUEST, "metadata": nested(90)},
    ],
    ids=["nul-field", "nan", "nul-option", "surrogate-field", "deep-metadata"],
)
def test_an_odd_message_is_recorded(rt, steps, message):
    generation_id = uuid.uuid4()
    accept.run(rt, str(generation_id), [], message)
    assert steps.get(generation_id)


def test_a_message_is_given_back_while_every_connection_is_taken(rt, monkeypatch):
    monkeypatch.setattr(process, "_built", {})
    tiny = sa.create_engine(rt.settings.database_url, pool_size=1, max_overflow=0, pool_timeout=0.2)
    process.use(dataclasses.replace(rt, engine=tiny))
    with tiny.connect():
        result = generate.apply(kwargs={"request": REQUEST}, task_id=str(uuid.uuid4()))
    tiny.dispose()
    # A failure would be acknowledged, and the message is all there is of the request.
    assert result.state == "REJECTED"


@pytest.mark.parametrize("deadline", ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-12:00"])
def test_a_deadline_at_the_end_of_time_is_listed(rt, steps, deadline):
    accept.run(rt, str(uuid.uuid4()), [], {"request": REQUEST, "deadline": deadline})
    steps.enqueue()
    with rt.engine.connect() as conn:
        assert len(choosing.newest(conn, Choice(), limit=9)) == 2


def test_many_blocked_rows_do_not_starve_one_that_can_be_admitted(rt, steps):
    intended(rt, steps, seed=7)  # in doubt: whoever equals it waits
    for _ in range(150):
        steps.enqueue({**REQUEST, "seed": 7})
    free = steps.enqueue(REQUEST)
    for _ in range(400):
        with rt.engine.begin() as conn:
            schedule.admit(conn, 1, max_in_flight=50, lease_seconds=60, ceiling=None)
        # A second passes.
        sql(rt, "update generations set due_at = due_at - interval '1 s' where status='accepted'")
        if steps.get(free).status is not Status.ACCEPTED:
            break
    assert steps.get(free).status is not Status.ACCEPTED


def test_a_row_locked_by_a_producer_does_not_keep_others_from_being_admitted(rt, steps):
    locked = steps.enqueue()
    other = steps.enqueue()
    with rt.engine.connect() as slow, slow.begin():
        slow.execute(sa.text("select 1 from generations where id = :id for update"), {"id": locked})
        steps.admit()
        assert steps.get(other).status is Status.UPLOADING
        slow.rollback()


def test_a_row_that_was_tried_most_often_is_claimed_with_the_others(rt, steps):
    worn, _ = running(steps)
    running(steps)
    sql(rt, "update generations set due_at=now()")
    sql(rt, "update generations set tries=32767 where id = :id", id=worn)
    assert len(steps.due()) == 2


def test_messages_that_were_lost_do_not_fail_a_generation(rt, steps):
    generation_id = steps.enqueue()
    dispatcher = Dispatcher(rt, broker_with(), slots=4)
    for _ in range(12):
        dispatcher.tick()
        sql(rt, "update generations set due_at=now() where due_at is not null")
    assert steps.get(generation_id).status is not Status.FAILED


def test_an_outage_of_uploads_fails_no_generation(make_runtime, sim, monkeypatch):
    rt = make_runtime(media_roots=MEDIA)
    steps = Steps(rt)
    monkeypatch.setattr(upload, "backoff", lambda *args, **options: 0.0)
    rt.client._calls._sleep = lambda seconds: None
    sim.fault("presign", "service_busy")
    generation_id = steps.enqueue(WITH_IMAGE)
    for _ in range(12):
        steps.once()
    assert steps.get(generation_id).status is not Status.FAILED


def test_one_upload_message_delivered_twice_uploads_and_submits_once(make_runtime, sim):
    rt = make_runtime(media_roots=MEDIA)
    steps = Steps(rt)
    steps.enqueue(WITH_IMAGE)
    [claim] = steps.admit()
    sim.fault("presign", "delay_before", seconds=0.7, times=2)
    threads = [
        threading.Thread(target=upload.run, args=(rt, claim.id, claim.lease)) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(each["puts"] for each in sim.uploads()) == 1
    assert len(sim.tasks()) == 1


def test_an_upload_that_has_expired_is_made_again(make_runtime, sim):
    rt = make_runtime(media_roots=MEDIA)
    steps = Steps(rt)
    sim.fault("submit", "service_busy", times=1)
    generation_id = steps.enqueue(WITH_IMAGE)
    steps.once()
    assert steps.get(generation_id).status is Status.ACCEPTED
    sql(
        rt,
        "update uploads set uploaded_at = now() - interval '3 days',"
        " valid_until = now() - interval '2 days'",
    )
    sql(rt, "update generations set content_until = now() - interval '2 days', due_at=now()")
    [claim] = steps.admit()
    assert claim.stage is schedule.Stage.UPLOAD


def test_a_balance_that_covers_what_was_refused_does_not_close_the_breaker_without_a_pause(rt):
    # Credits may be reserved elsewhere: the account refuses what its balance seems to cover.
    cost = Decimal(9)
    sent = 0
    for _ in range(20):
        with rt.engine.begin() as conn:
            if breakers.read(conn).obstacle(cost) is None:
                sent += 1
                breakers.trip(conn, BreakerName.CREDIT, "402", probe_in=0.0, refused_estimate=cost)
        with rt.engine.begin() as conn:
            if breakers.take_probe(conn, every=30):
                breakers.record_balance(
                    conn, total=Decimal(100), used=Decimal(0), remain=Decimal(50)
                )
    assert sent <= 2


def test_the_values_of_a_failed_statement_are_not_printed(rt):
    with pytest.raises(sa.exc.DataError) as raised:
        sql(rt, "select 1 / 0 where :address <> ''", address="https://v/1?X-Amz-Signature=SECRET")
    assert "SECRET" not in str(raised.value)
