"""The kinds of faults: each says what happens before, instead of and after the processing."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from simulator.answers import Answer, bare, failure
from simulator.errors import ApiError

Reshape = Callable[[Answer], Answer]
Params = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Effect:
    """What one fault does to one request."""

    delay_before: float = 0.0
    process: bool = True
    delay_after: float = 0.0
    # Close the connection instead of answering.
    drop: bool = False
    reshape: Reshape | None = None
    # Forces what CONCURRENCY_LIMIT_REACHED does with the task, limit or not.
    concurrency: str | None = None
    # Callbacks only: send it again.
    twice: bool = False


NO_EFFECT = Effect()


def _seconds(params: Params, default: float) -> float:
    return float(params.get("seconds", default))


def _drop_before(params: Params) -> Effect:
    """connection closed, nothing processed"""
    return Effect(delay_before=_seconds(params, 0), process=False, drop=True)


def _drop_after(params: Params) -> Effect:
    """processed, connection closed without an answer {seconds: before closing}"""
    return Effect(delay_after=_seconds(params, 0), drop=True)


def _delay_after(params: Params) -> Effect:
    """processed at once, answered {seconds=5} later"""
    return Effect(delay_after=_seconds(params, 5))


def _delay_before(params: Params) -> Effect:
    """processed {seconds=5} after it was read, even if the client has gone; then answered"""
    return Effect(delay_before=_seconds(params, 5))


def _error(params: Params) -> Effect:
    """any error {code=INTERNAL_ERROR, message, status, retry_after}, nothing processed"""
    return Effect(
        delay_before=_seconds(params, 0), process=False, reshape=lambda _: _failure(params)
    )


def _error_after(params: Params) -> Effect:
    """processed, then an error {code=INTERNAL_ERROR, message, status, retry_after}"""
    return Effect(delay_after=_seconds(params, 0), reshape=lambda _: _failure(params))


def _failure(params: Params) -> Answer:
    retry_after = params.get("retry_after")
    error = ApiError(
        str(params.get("code", "INTERNAL_ERROR")),
        params.get("message"),
        retry_after=None if retry_after is None else str(retry_after),
    )
    answer = failure(error)
    answer.status = int(params.get("status", answer.status))
    return answer


def _rate_limited(params: Params) -> Effect:
    """RATE_LIMIT_EXCEEDED, nothing processed {retry_after}"""
    return _error({**params, "code": "RATE_LIMIT_EXCEEDED"})


def _service_busy(params: Params) -> Effect:
    """SERVICE_BUSY, nothing processed {retry_after}"""
    return _error({**params, "code": "SERVICE_BUSY"})


def _not_found(params: Params) -> Effect:
    """TASK_NOT_FOUND, as from a replica that lags"""
    return _error({**params, "code": "TASK_NOT_FOUND"})


def _bare(params: Params) -> Effect:
    """an HTML page without envelope {status=502, processed=false, retry_after}"""

    def page(_: Answer) -> Answer:
        answer = bare(int(params.get("status", 502)))
        if "retry_after" in params:
            answer.headers["Retry-After"] = str(params["retry_after"])
        return answer

    return Effect(
        process=bool(params.get("processed", False)),
        delay_after=_seconds(params, 0),
        reshape=page,
    )


def _bare_after(params: Params) -> Effect:
    """processed, then an HTML page without envelope {status=503, retry_after}"""
    return _bare({"status": 503, **params, "processed": True})


def _redirect(params: Params) -> Effect:
    """3xx {status=302, location=http://127.0.0.1:9/}, nothing processed"""
    answer = bare(int(params.get("status", 302)), "Found")
    answer.headers["Location"] = str(params.get("location", "http://127.0.0.1:9/"))
    return Effect(process=False, reshape=lambda _: answer)


def _concurrency(params: Params) -> Effect:
    """CONCURRENCY_LIMIT_REACHED {mode=created_with_id | created | refused}"""
    mode = str(params.get("mode", "created_with_id"))
    if mode not in ("created_with_id", "created", "refused"):
        raise ValueError(f"concurrency has no mode {mode!r}")
    return Effect(concurrency=mode)


def _null_result(_: Params) -> Effect:
    """processed, success with a null result"""
    return Effect(reshape=lambda answer: _with(answer, result=None))


def _no_task_id(_: Params) -> Effect:
    """processed, success whose result lacks task_id"""
    return _on_result(lambda result: result.pop("task_id", None))


def _cut_json(params: Params) -> Effect:
    """processed, JSON cut off in the middle {connection=false: closed before its length}"""

    def cut(answer: Answer) -> Answer:
        if params.get("connection"):
            answer.cut_connection = 0.5
        else:
            body = answer.body()
            answer.raw = body[: len(body) // 2]
        return answer

    return Effect(reshape=cut)


def _garbage(params: Params) -> Effect:
    """processed, success status with a body that is no JSON {text}"""

    def junk(answer: Answer) -> Answer:
        answer.raw = str(params.get("text", "\x00\ufffd not json")).encode()
        return answer

    return Effect(reshape=junk)


def _int_code(_: Params) -> Effect:
    """processed, the envelope's code as a number"""

    def number(answer: Answer) -> Answer:
        code = str(answer.envelope.get("code", ""))
        return _with(answer, code=int(code)) if code.isdigit() else answer

    return Effect(reshape=number)


def _unknown_status(params: Params) -> Effect:
    """a status that the document doesn't know {status=post_processing}"""
    status = str(params.get("status", "post_processing"))
    return _on_result(lambda result: result.update(status=status))


def _unknown_fields(_: Params) -> Effect:
    """fields that the document doesn't know"""
    extra = {"queue_position": 3, "provider": {"region": "eu-1"}, "tags": ["a", None]}
    return _on_result(lambda result: result.update(extra))


def _backwards(params: Params) -> Effect:
    """an older state of the task {status=pending}: not ended, no video, no error"""
    stale = {
        "status": str(params.get("status", "pending")),
        "video_url": None,
        "last_frame_url": None,
        "error_code": None,
        "error_message": None,
    }

    def back(result: dict[str, Any]) -> None:
        result.update({name: value for name, value in stale.items() if name in result})
        if "created_at" in result:
            result["updated_at"] = result["created_at"]

    return _on_result(back)


def _empty_list(_: Params) -> Effect:
    """a list with no items, though total says otherwise"""

    def empty(answer: Answer) -> Answer:
        result = answer.envelope.get("result")
        if isinstance(result, dict) and "data" in result:
            return _with(answer, result={**result, "data": []})
        return answer

    return Effect(reshape=empty)


def _duplicate(_: Params) -> Effect:
    """callback only: sent twice"""
    return Effect(twice=True)


def _on_result(change: Callable[[dict[str, Any]], object]) -> Effect:
    """Change the result, or each task of a list's page."""

    def reshape(answer: Answer) -> Answer:
        result = answer.envelope.get("result")
        if isinstance(result, dict):
            items = result.get("data")
            for item in items if isinstance(items, list) else [result]:
                if isinstance(item, dict):
                    change(item)
        return answer

    return Effect(reshape=reshape)


def _with(answer: Answer, **changes: Any) -> Answer:
    answer.envelope = {**answer.envelope, **changes}
    return answer


KINDS: dict[str, Callable[[Params], Effect]] = {
    "drop_before": _drop_before,
    "drop_after": _drop_after,
    "lost": _drop_after,
    "delay_before": _delay_before,
    "delay_after": _delay_after,
    "error": _error,
    "error_after": _error_after,
    "rate_limited": _rate_limited,
    "service_busy": _service_busy,
    "not_found": _not_found,
    "bare": _bare,
    "bare_after": _bare_after,
    "redirect": _redirect,
    "concurrency": _concurrency,
    "null_result": _null_result,
    "no_task_id": _no_task_id,
    "cut_json": _cut_json,
    "garbage": _garbage,
    "int_code": _int_code,
    "unknown_status": _unknown_status,
    "unknown_fields": _unknown_fields,
    "backwards": _backwards,
    "empty_list": _empty_list,
    "duplicate": _duplicate,
}


def build(kind: str, params: Params) -> Effect:
    """The effect of a fault kind, or ValueError for one that doesn't exist."""
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}")
    effect = KINDS[kind](params)
    if effect.reshape is not None:
        effect.reshape(Answer())  # wrong parameters show now, not at some later request
    return effect
