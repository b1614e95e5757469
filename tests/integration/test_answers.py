"""Every row of api.md's submit column: what an answer makes of the row, and that it is one POST."""

from decimal import Decimal
from typing import Any, NamedTuple

import pytest

from models.lifecycle import Status
from models.wait_reasons import WaitReason
from tests.integration.conftest import text_request
from tests.integration.invariants import in_background, laboratory
from worker.stages import submit
from worker.stages.resolve import Outcome

A, F, R, U = Status.ACCEPTED, Status.FAILED, Status.RUNNING, Status.UNCERTAIN


@pytest.fixture
def lab(make_runtime, sim, caplog):
    with laboratory(make_runtime, sim, caplog) as lab:
        yield lab


class Row(NamedTuple):
    """A fault of the submit, and what the database must hold after it."""

    kind: str
    params: dict[str, Any]
    status: Status
    outcome: str
    breaker: str | None = None
    tasks: int = 0
    code: str | None = None
    throttled: bool = False
    """Whether all requests wait."""
    ok: bool | None = None
    """Whether flow control takes it for a success of the provider; None: for neither."""


def error(code: str, status: Status, outcome: str, **expected: Any) -> Row:
    return Row("error", {"code": code}, status, outcome, code=code, **expected)


ENVELOPE = [
    error("INVALID_API_KEY", A, "refused", breaker="api_key"),
    error("INSUFFICIENT_CREDIT", A, "refused", breaker="credit"),
    error("INVALID_PARAMETER", F, "refused", ok=True),
    error("MISSING_PARAMETER", F, "refused", ok=True),
    error("CONTENT_MODERATION_FAILED", F, "refused", ok=True),
    error("COPYRIGHT_VIOLATION", F, "refused", ok=True),
    error("PRIVACY_VIOLATION", F, "refused", ok=True),
    error("CONCURRENCY_LIMIT_REACHED", U, "unknown"),
    error("RATE_LIMIT_EXCEEDED", A, "refused", throttled=True),
    error("SERVICE_BUSY", A, "refused", ok=False),
    error("CREDIT_DEDUCT_FAILED", U, "unknown", ok=False),
    error("TASK_SUBMIT_FAILED", U, "unknown", ok=False),
    error("VIDEO_DOWNLOAD_FAILED", U, "unknown", ok=False),
    error("INTERNAL_ERROR", U, "unknown", ok=False),
]
"""Answers with the provider's own envelope: they mean the same under any HTTP status."""

OTHER = [
    Row("concurrency", {"mode": "created_with_id"}, R, "submitted", tasks=1),
    Row("concurrency", {"mode": "created"}, U, "unknown", tasks=1),
    Row("error_after", {"code": "CREDIT_DEDUCT_FAILED"}, U, "unknown", tasks=1),
    Row("error_after", {"code": "TASK_SUBMIT_FAILED"}, U, "unknown", tasks=1),
    Row("error_after", {"code": "INTERNAL_ERROR"}, U, "unknown", tasks=1),
    Row("error", {"code": "NEVER_HEARD_OF", "status": 200}, U, "unknown"),
    Row("error", {"code": "NEVER_HEARD_OF", "status": 500}, U, "unknown"),
    Row("error", {"code": "NEVER_HEARD_OF", "status": 418}, F, "refused"),
    Row("bare", {"status": 408}, U, "unknown"),
    Row("bare", {"status": 429}, U, "unknown", throttled=True),
    Row("bare", {"status": 500}, U, "unknown"),
    Row("bare", {"status": 502}, U, "unknown"),
    Row("bare_after", {"status": 408}, U, "unknown", tasks=1),
    Row("bare_after", {"status": 429}, U, "unknown", tasks=1, throttled=True),
    Row("bare_after", {"status": 503, "retry_after": 1}, U, "unknown", tasks=1, throttled=True),
    Row("bare_after", {"status": 504}, U, "unknown", tasks=1),
    # Without the provider's envelope nothing is a definite refusal: a proxy may have answered.
    Row("redirect", {"status": 307}, U, "unknown"),
    *[Row("bare", {"status": status}, U, "unknown") for status in (400, 401, 402, 403, 404)],
    *[Row("bare_after", {"status": status}, U, "unknown", tasks=1) for status in (401, 403)],
    Row("null_result", {}, U, "unknown", tasks=1),
    Row("no_task_id", {}, U, "unknown", tasks=1),
    Row("garbage", {}, U, "unknown", tasks=1),
    Row("cut_json", {}, U, "unknown", tasks=1),
    Row("cut_json", {"connection": True}, U, "unknown", tasks=1),
    Row("int_code", {}, R, "submitted", tasks=1),
    Row("unknown_status", {}, R, "submitted", tasks=1),
    Row("unknown_fields", {}, R, "submitted", tasks=1),
    Row("lost", {}, U, "unknown", tasks=1),
    Row("drop_before", {}, U, "unknown"),
]


def name(row: Row) -> str:
    return "-".join([row.kind, *map(str, row.params.values())])


@pytest.mark.parametrize("style", ["mapped", "ok200"])
@pytest.mark.parametrize("row", ENVELOPE, ids=name)
def test_an_error_of_the_provider(lab, row, style):
    params = {"status": 200} if style == "ok200" else {}
    follow(lab, row._replace(params={**row.params, **params}))


@pytest.mark.parametrize("row", OTHER, ids=name)
def test_any_other_answer(lab, row):
    follow(lab, row)


def follow(lab, row):
    """One submit with the fault; then, unless it was refused for good, on to its only task."""
    lab.sim.fault("submit", row.kind, times=1, **row.params)

    generation_id = lab.send()

    view = lab.get(generation_id)
    assert view.status is row.status
    assert lab.posts == 1
    assert len(lab.sim.tasks()) == row.tasks
    [attempt] = lab.attempts(generation_id)
    assert attempt.outcome == row.outcome
    assert lab.breakers() == ({row.breaker} if row.breaker else set())
    assert (lab.flow().resume_in > 0) is row.throttled
    if row.breaker is not None:
        assert view.wait_reason is WaitReason.BREAKER
        assert view.wait_detail == {"breaker": row.breaker}
    elif row.status is A:
        assert (view.wait_reason, view.wait_detail) == (WaitReason.RETRY, {"code": row.code})
    if row.kind == "error" and row.code:
        assert provider_ok(lab, generation_id) is row.ok
    if row.code is not None:
        assert attempt.code == row.code
    if view.status is F:
        assert view.error_code == (row.code or row.params.get("code") or "HTTP_307")
        assert view.credit_cost in (None, 0)
        return
    lab.calm()
    if view.status is U:
        expected = Outcome.ADOPTED if row.tasks else Outcome.ABSENT
        assert lab.resolve(generation_id) is expected
    if lab.get(generation_id).status is A:
        assert lab.send_again(generation_id).status is R
        assert lab.posts == 2
    lab.complete(generation_id)
    assert len(lab.sim.tasks()) == 1


def provider_ok(lab, generation_id):
    """Return whether flow control counts the only attempt as a success of the provider."""
    return lab.value(
        "SELECT provider_ok FROM submit_attempts WHERE generation_id = :id", id=generation_id
    )


def test_an_answer_that_takes_too_long(lab):
    lab.rt = lab.make_runtime(http_timeout=0.3)
    lab.sim.fault("submit", "delay_after", seconds=1, times=1)

    generation_id = lab.send()

    assert lab.get(generation_id).status is U
    assert lab.posts == 1
    assert lab.resolve(generation_id) is Outcome.ADOPTED
    lab.complete(generation_id)


@pytest.mark.parametrize(
    "address", ["http://127.0.0.1:9", "http://no-such-host.invalid", "https://127.0.0.1:9"]
)
def test_an_unreachable_provider_puts_it_back_and_counts_as_failing(lab, address):
    good = lab.rt
    lab.rt = lab.make_runtime(api_base_url=address)

    generation_id = lab.send()

    view = lab.get(generation_id)
    assert view.status is A
    assert lab.outcomes(generation_id) == ["not_sent"]
    assert (view.wait_reason, view.wait_detail) == (WaitReason.RETRY, {"code": "UNREACHABLE"})
    assert provider_ok(lab, generation_id) is False
    assert lab.flow().failed_ago is not None
    assert lab.breakers() == set()
    assert lab.posts == 0
    lab.rt = good
    assert lab.send_again(generation_id).status is R
    lab.complete(generation_id)


def test_a_server_that_speaks_no_tls_was_never_sent_anything(lab):
    lab.rt = lab.make_runtime(api_base_url=lab.sim.url.replace("http://", "https://"))

    generation_id = lab.send()

    assert lab.get(generation_id).status is A
    assert lab.outcomes(generation_id) == ["not_sent"]
    assert lab.posts == 0


def test_a_402_keeps_the_estimate_that_was_refused(lab):
    lab.sim.fault("submit", "error", code="INSUFFICIENT_CREDIT", times=1)

    generation_id = lab.send(resolution="1080p", duration=10)

    assert lab.value("SELECT refused_estimate FROM breakers") == Decimal(45)
    assert lab.get(generation_id).estimated_cost == Decimal(45)


def test_a_limit_is_learned_and_never_falls_below_one(lab):
    lab.sim.configure(max_concurrent=1, concurrency_mode="refused")
    first = lab.send("first")
    assert lab.get(first).status is R
    lab.sim.fault("submit", "concurrency", mode="refused", times=1)

    second = lab.send("second")

    assert lab.get(second).status is U
    assert lab.value("SELECT concurrency FROM flow_control") == 1
    assert lab.resolve(second) is Outcome.ABSENT
    lab.complete(first)
    assert lab.send_again(second).status is R
    lab.complete(second)


def test_the_refused_prompt_of_the_document_is_final(lab):
    generation_id = lab.send("a cat [sim: refuse=CONTENT_MODERATION_FAILED]")

    view = lab.get(generation_id)
    assert view.status is F
    assert view.error_code == "CONTENT_MODERATION_FAILED"
    assert view.error_message
    assert lab.once() == 0
    assert lab.posts == 1


def test_endless_submit_failures_are_bounded_in_time_and_not_in_number(lab):
    lab.rt = lab.make_runtime(max_attempts=2, retry_for=3600.0)
    lab.sim.fault("submit", "error", code="TASK_SUBMIT_FAILED")

    generation_id = lab.send()
    for _ in range(3):
        assert lab.resolve(generation_id) is Outcome.ABSENT
        assert lab.send_again(generation_id).status is Status.UNCERTAIN
    lab.sql("UPDATE submit_attempts SET started_at = started_at - interval '2 h'")
    assert lab.resolve(generation_id) is Outcome.ABSENT

    view = lab.get(generation_id)
    assert view.status is F
    assert view.error_code == "SUBMIT_ATTEMPTS_EXHAUSTED"
    assert "4 attempts" in (view.error_message or "")
    assert lab.posts == 4
    assert len({attempt.seed for attempt in lab.attempts(generation_id)}) == 4


def test_the_answer_that_comes_late_but_in_time_counts(lab):
    claim = lab.start(text_request("[sim: submit=delay_after:0.4]"))
    with in_background(lambda: submit.run(lab.rt, [(claim.id, claim.lease)])):
        lab.sim.wait(tasks=1)
        # Nothing may be done about it meanwhile: it is not settled.
        assert lab.get(claim.id).status is Status.SUBMITTING
        assert lab.due() == []
        assert lab.reconcile().adopted == ()
    assert lab.get(claim.id).status is R
    assert lab.outcomes(claim.id) == ["submitted"]
