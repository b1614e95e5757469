"""Answers: tolerant where the provider may change, exact about credits."""

import contextlib
import json
from datetime import UTC, datetime
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from api_client import (
    Balance,
    ClientConfig,
    Exchange,
    Presigned,
    SeedanceClient,
    Submitted,
    Task,
    TaskPage,
    TaskStatus,
    redact,
)
from api_client.envelope import Envelope, decode, loads

# The document's own example.
COMPLETED = {
    "task_id": "a1b2c3d4e5f6...",
    "model": "seedance-2.0",
    "status": "completed",
    "resolution": "720p",
    "ratio": "16:9",
    "duration": 8,
    "generate_audio": False,
    "seed": None,
    "video_url": "https://cdn.example.com/video.mp4?token=secret",
    "last_frame_url": None,
    "error_code": None,
    "error_message": None,
    "credit_cost": 14.4,
    "created_at": "2025-01-15T10:30:00Z",
    "updated_at": "2025-01-15T10:33:45Z",
}


def test_the_documents_task():
    task = Task.model_validate(loads(json.dumps(COMPLETED)))
    assert task.status == TaskStatus.COMPLETED
    assert task.terminal
    assert task.credit_cost == Decimal("14.4")
    assert task.created_at == datetime(2025, 1, 15, 10, 30, tzinfo=UTC)
    assert task.unread_fields == {}


@pytest.mark.parametrize("status", TaskStatus)
def test_terminal(status):
    ended = status in ("completed", "failed", "cancelled", "expired")
    assert Task(task_id="t", status=status).terminal is ended


def test_what_is_unknown_is_kept():
    task = Task.model_validate({"task_id": "t", "status": "paused", "fps": 24})
    assert task.status == "paused"
    assert not task.terminal
    assert task.model_extra == {"fps": 24}
    assert task.model_dump(mode="json")["fps"] == 24


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("seed", True),
        ("seed", "many"),
        ("seed", 1.5),
        ("duration", False),
        ("credit_cost", True),
        ("credit_cost", "free"),
        ("credit_cost", Decimal("1e999999")),
        ("credit_cost", Decimal("1e-999999")),
        ("credit_cost", 10**15),
        ("created_at", "yesterday"),
        ("created_at", "0001-01-01T00:00:00+14:00"),
        ("video_url", {"url": "x"}),
        ("model", []),
    ],
)
def test_a_field_that_cannot_be_read_costs_only_itself(field, value):
    task = Task.model_validate({"task_id": "t", "status": "queued", "ratio": "1:1", field: value})
    assert getattr(task, field) is None
    assert task.unread_fields == {field: value}
    assert task.ratio == "1:1"


@pytest.mark.parametrize(
    ("field", "value", "read"),
    [
        ("seed", "12345678901234567890", 12345678901234567890),
        ("seed", Decimal("7.0"), 7),
        ("credit_cost", "14.40", Decimal("14.40")),
        ("credit_cost", 0, Decimal(0)),
        ("created_at", "2025-01-15T10:30:00", datetime(2025, 1, 15, 10, 30, tzinfo=UTC)),
        ("created_at", "2025-01-15T12:30:00+02:00", datetime(2025, 1, 15, 10, 30, tzinfo=UTC)),
        ("task_id", 12, "12"),
    ],
)
def test_other_spellings_are_read(field, value, read):
    task = Task.model_validate({"task_id": "t", "status": "queued", field: value})
    assert getattr(task, field) == read


@pytest.mark.parametrize(
    "result",
    [{}, {"task_id": ""}, {"task_id": " "}, {"task_id": None}, {"task_id": True}, {"task_id": []}],
)
def test_a_submit_without_a_task_id_is_no_answer(result):
    with pytest.raises(ValidationError):
        Submitted.model_validate(result)


@pytest.mark.parametrize(
    "url", ["", "ftp://h/x", "/relative", "https://", "file:///etc/passwd", None]
)
def test_only_http_urls_are_uploaded_to(url):
    with pytest.raises(ValidationError):
        Presigned.model_validate({"presigned_url": url, "file_path": "p"})


def test_a_balance_may_be_negative_in_a_post_pay_model():
    balance = Balance.model_validate({"remain_credits": -3.5, "total_credits": "100"})
    assert balance.remain_credits == Decimal("-3.5")
    assert balance.used_credits is None


def test_items_of_a_page_may_be_strings_and_unreadable_ones_are_kept():
    page = TaskPage.model_validate(
        {
            "data": [COMPLETED, json.dumps(COMPLETED), "{ ... task objects ... }", 5, {}, None],
            "total": 42,
            "page": 1,
            "page_size": 10,
        }
    )
    assert [task.task_id for task in page.data] == ["a1b2c3d4e5f6..."] * 2
    assert page.unreadable == ("{ ... task objects ... }", 5, {}, None)
    assert (page.total, page.page, page.page_size) == (42, 1, 10)


def test_a_page_without_data_is_no_answer():
    for result in ({}, {"data": None}, {"data": {}}, {"data": "[]"}):
        with pytest.raises(ValidationError):
            TaskPage.model_validate(result)


def test_no_secret_in_reprs():
    exchange = Exchange(sent=1.0, received=2.0, date=None, http_status=200)
    things = [
        Task.model_validate(
            {**COMPLETED, "nested": {"urls": ["https://h/p?sig=secret"]}, "exchange": exchange}
        ),
        Presigned(presigned_url="https://s3/b/k?X-Amz-Signature=secret", file_path="p"),
        ClientConfig(api_key="secret-key"),
        SeedanceClient(ClientConfig(api_key="secret-key")),
    ]
    for thing in things:
        assert "secret" not in f"{thing!r} {thing}"
        if hasattr(thing, "__rich_repr__"):
            assert "secret" not in repr(list(thing.__rich_repr__()))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("https://h/p?a=b", "https://h/p?…"),
        ("GET /b/k?X-Amz-Signature=s HTTP/1.1", "GET /b/k?… HTTP/1.1"),
        ("see https://h/p?a=b and http://g/?c", "see https://h/p?… and http://g/?…"),
        ("'https://h/p?a='b'", "'https://h/p?…"),
        ("https://user:pass@h/p", "https://…@h/p"),
        ("https://h/p#token=s", "https://h/p?…"),
        ("https://h?x", "https://h?…"),
        ("S3://b/k?versionId=1", "S3://b/k?…"),
        ("Why? Because.", "Why? Because."),
        ("https://h/p", "https://h/p"),
    ],
)
def test_redact(text, expected):
    assert redact(text) == expected
    assert redact(redact(text)) == expected


def test_redact_takes_linear_time():
    for text in ("x" * 10**6, "/" * 10**6, "https://" * 10**5, "a?" * 10**5):
        redact(text)


@given(st.text(alphabet=st.characters(exclude_categories=["C", "Z"], exclude_characters='"<>')))
def test_redact_leaves_nothing_of_a_query(query):
    assert redact(f"PUT https://host/path?a={query} 403") == "PUT https://host/path?… 403"


@given(st.binary())
def test_any_bytes_decode_to_an_envelope(body):
    assert isinstance(decode(body), Envelope)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
KEYS = st.sampled_from(["code", "message", "result", "task_id", "data"])


@given(JSON | st.dictionaries(KEYS, JSON))
def test_any_json_decodes_to_an_envelope_and_any_result_to_an_answer_or_none(parsed):
    envelope = decode(json.dumps(parsed).encode())
    assert isinstance(envelope.code, str)
    assert isinstance(envelope.message, str)
    for kind in (Submitted, Task, TaskPage, Presigned, Balance):
        with contextlib.suppress(ValidationError):
            kind.model_validate(envelope.result)


TASK_FIELDS = st.sampled_from(sorted(Task.model_fields.keys() - {"exchange", "unread_fields"}))


@given(st.dictionaries(TASK_FIELDS, JSON | st.datetimes().map(str)))
def test_a_task_with_id_and_status_is_always_read(fields):
    task = Task.model_validate({**fields, "task_id": "t", "status": "queued"})
    assert task.task_id == "t"


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b'{"code": "200", "message": "Success", "result": {}}', "200"),
        (b'{"code": 200}', "200"),
        (b'\xef\xbb\xbf{"code": "200"}', "200"),
        (b'{"code": " SERVICE_BUSY "}', "SERVICE_BUSY"),
        (b'{"code": true}', ""),
        (b'{"code": null}', ""),
        (b'{"code": ["200"]}', ""),
        (b'{"code": 200.0}', ""),
        (b'{"detail": "Not Found"}', ""),
        (b'["200"]', ""),
        (b"", ""),
        (b"<html>503</html>", ""),
        (b'{"code": "200", "result": NaN}', ""),
        (b'{"code": "200"', ""),
        (b"[" * 100_000, ""),
        (b'{"code": ' + b"1" * 5000 + b"}", ""),
        (b'{"code": "200", "x": 1e' + b"9" * 30 + b"}", ""),
        (b"\xff\xfe", ""),
    ],
)
def test_codes(body, code):
    assert decode(body).code == code


@pytest.mark.parametrize(
    ("body", "task_id"),
    [
        ('{"code": "CONCURRENCY_LIMIT_REACHED", "result": {"task_id": "t1"}}', "t1"),
        ('{"code": "CONCURRENCY_LIMIT_REACHED", "task_id": "t1"}', "t1"),
        ('{"code": "CONCURRENCY_LIMIT_REACHED", "result": null}', None),
        ('{"code": "CONCURRENCY_LIMIT_REACHED", "result": {"task_id": ""}}', None),
        ('{"task_id": "t1"}', "t1"),
    ],
)
def test_a_task_id_beside_an_error_is_found(body, task_id):
    assert decode(body.encode()).task_id == task_id


def test_credits_never_pass_through_a_float():
    assert decode(b'{"code": "200", "result": {"c": 0.1}}').result == {"c": Decimal("0.1")}
