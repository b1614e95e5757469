"""Accept: a message of any Celery client becomes one row, or is refused, or is set aside."""

import re
import threading
import uuid
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy.exc import DBAPIError

from models.lifecycle import Status
from tests.integration.conftest import text_request
from tests.integration.invariants import in_background, laboratory
from worker.stages import accept


@pytest.fixture
def lab(make_runtime, sim, caplog):
    with laboratory(make_runtime, sim, caplog) as lab:
        yield lab


def send(lab, request=None, *, message_id=None, args=(), **options):
    message_id = message_id or str(uuid.uuid4())
    kwargs = {"request": text_request() if request is None else request, **options}
    accept.run(lab.rt, message_id, args, kwargs)
    return uuid.UUID(message_id)


def rejected(lab):
    return lab.sql("SELECT reason, headers, body FROM rejected_messages ORDER BY id")


def rows(lab):
    return lab.value("SELECT count(*) FROM generations")


def test_the_message_id_becomes_the_generations_id(lab):
    deadline = datetime.now(UTC) + timedelta(hours=1)
    generation_id = send(
        lab,
        text_request(seed=3),
        idempotency_key="order-7",
        priority=4,
        tenant="acme",
        metadata={"order": 7, "名": "é\u2028"},
        deadline=deadline.isoformat(),
    )
    view = lab.get(generation_id)
    assert view.status is Status.ACCEPTED
    assert (view.idempotency_key, view.priority, view.tenant) == ("order-7", 4, "acme")
    assert view.metadata == {"order": 7, "名": "é\u2028"}
    assert view.deadline_at == deadline
    assert view.request["seed"] == 3
    assert view.request["ratio"] == "16:9"
    [claim] = lab.admit()
    lab.run(claim)
    lab.complete(generation_id)


def test_redelivery_changes_nothing(lab):
    generation_id = send(lab)
    [claim] = lab.admit()
    lab.run(claim)
    for _ in range(3):
        send(lab, message_id=str(generation_id))
    assert rows(lab) == 1
    assert lab.history(generation_id) == ["accept", "admit", "intend", "submit"]
    lab.end_tasks()


def test_the_same_message_to_two_workers_at_once(lab):
    for _ in range(5):
        message_id = str(uuid.uuid4())
        start = threading.Barrier(2)

        def work(message_id=message_id, start=start):
            start.wait(10)
            send(lab, message_id=message_id)

        with in_background(work):
            work()
        assert lab.history(uuid.UUID(message_id)) == ["accept"]
    assert rows(lab) == 5


def test_an_idempotency_key_twice_is_one_row(lab):
    first = send(lab, idempotency_key="once")
    send(lab, idempotency_key="once")
    assert rows(lab) == 1
    other = send(lab, idempotency_key="once", tenant="other")
    assert {lab.get(i).status for i in (first, other)} == {Status.ACCEPTED}


def test_a_key_for_another_request_is_a_conflict(lab):
    send(lab, idempotency_key="once")
    conflicting = send(lab, text_request("a dog"), idempotency_key="once")
    view = lab.get(conflicting)
    assert (view.status, view.error_code) == (Status.FAILED, "IDEMPOTENCY_CONFLICT")
    assert "once" in (view.error_message or "")


@pytest.mark.parametrize(
    ("request_", "options", "names"),
    [
        ({"content": []}, {}, "content"),
        ({}, {}, "content"),
        ({"content": "a cat"}, {}, "content"),
        (text_request(duration=3), {}, "duration"),
        (text_request(duration=True), {}, "duration"),
        (text_request(duration="5"), {}, "duration"),
        (text_request(resolution="4k"), {}, "resolution"),
        (text_request(model="seedance-3"), {}, "model"),
        (text_request(seed=-2), {}, "seed"),
        (text_request(ratio="wide"), {}, "ratio"),
        (text_request(colour="red"), {}, "colour"),
        (text_request("a \x00 cat"), {}, "content"),
        (text_request("half \ud800 a character"), {}, "content"),
        (text_request(), {"priority": 40_000}, "priority"),
        (text_request(), {"priority": "high"}, "priority"),
        (text_request(), {"tenant": ""}, "tenant"),
        (text_request(), {"tenant": "a\nb"}, "tenant"),
        (text_request(), {"metadata": [1]}, "metadata"),
        (text_request(), {"metadata": {"a": float("nan")}}, "metadata"),
        (text_request(), {"idempotency_key": 7}, "idempotency_key"),
        (text_request(), {"deadline": "tomorrow"}, "deadline"),
        (text_request(), {"deadline": "2030-01-01T00:00:00"}, "deadline"),
        (text_request(), {"notify": "http://example.com"}, "notify"),
        (text_request(), {"prio": 1}, "prio"),
    ],
    ids=repr,
)
def test_a_broken_bound_is_a_failed_generation_that_says_why(lab, request_, options, names):
    generation_id = send(lab, request_, **options)
    view = lab.get(generation_id)
    assert (view.status, view.error_code) == (Status.FAILED, "INVALID_REQUEST")
    assert names in (view.error_message or "")
    assert lab.history(generation_id) == ["reject"]
    assert rejected(lab) == []
    send(lab, request_, message_id=str(generation_id), **options)
    assert rows(lab) == 1
    assert lab.once() == 0


def test_what_is_refused_is_still_its_producers(lab):
    """By tenant and metadata it knows what was refused; of those, what can be kept."""
    mine = {"tenant": "acme", "metadata": {"order": 7}}
    view = lab.get(send(lab, {"content": []}, **mine))
    assert (view.status, view.tenant, view.metadata) == (Status.FAILED, "acme", {"order": 7})
    send(lab, idempotency_key="once", **mine)
    view = lab.get(send(lab, text_request("a dog"), idempotency_key="once", **mine))
    assert (view.error_code, view.tenant) == ("IDEMPOTENCY_CONFLICT", "acme")
    assert view.metadata == {"order": 7}
    view = lab.get(send(lab, tenant="a\nb", metadata={"order": 8}))
    assert (view.error_code, view.tenant) == ("INVALID_REQUEST", "default")
    assert view.metadata == {"order": 8}
    assert lab.get(send(lab, metadata={"a": "x" * 70_000})).metadata is None


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"request": text_request("x" * 300_000)}, r"request is '\d+ bytes of JSON'; .* 262144 "),
        ({"metadata": {"a": "x" * 70_000}}, r"metadata is '\d+ bytes of JSON'; .* 65536 bytes"),
        ({"tenant": "x" * 300_000}, r"tenant is 'xx.*1 to 200 characters"),
        ({"notify": {"webhook": "https://h/" + "x" * 3_000}}, r"notify.webhook .* 2000 characters"),
        ({"deadline": "x" * 300_000}, r"deadline is 'xx.*ISO 8601"),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_what_is_too_large_is_refused_with_its_size(lab, options, said):
    view = lab.get(send(lab, **options))
    assert (view.status, view.error_code) == (Status.FAILED, "INVALID_REQUEST")
    assert re.search(said, view.error_message or "")
    assert len(view.error_message or "") < 400, "what was sent is not all said again"


def test_positional_arguments_are_refused(lab):
    view = lab.get(send(lab, args=(1, 2)))
    assert (view.status, view.error_code) == (Status.FAILED, "INVALID_REQUEST")


@pytest.mark.parametrize(
    ("message_id", "kwargs"),
    [
        ("not-a-uuid", {"request": {}}),
        (None, {}),
        (None, {"request": None}),
        (None, {"request": [1, 2]}),
        (None, {"request": "text"}),
        (None, {"request": 7, "secret": "x" * 3_000_000}),
        ("\x00", {"a": "\x00"}),
        ("", {}),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_what_is_no_request_is_set_aside_once(lab, caplog, message_id, kwargs):
    accept.run(lab.rt, message_id or str(uuid.uuid4()), (), kwargs)
    [row] = rejected(lab)
    assert row.reason
    assert len(row.body) <= 1024 * 1024
    assert rows(lab) == 0
    assert len([r for r in caplog.records if "set aside" in r.getMessage()]) == 1
    assert "xxxx" not in caplog.text


def test_a_database_that_is_away_is_not_the_messages_fault(lab):
    """It raises, so that the message is given back, and is accepted later."""
    message_id = str(uuid.uuid4())
    url = lab.rt.settings.database_url
    with pytest.raises(DBAPIError):
        accept.run(
            lab.make_runtime(database_url=url.replace("/test_", "/gone_")),
            message_id,
            (),
            {"request": text_request()},
        )
    send(lab, message_id=message_id)
    assert lab.get(uuid.UUID(message_id)).status is Status.ACCEPTED
