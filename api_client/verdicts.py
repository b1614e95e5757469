"""What every answer means, as data.

One row for each code of the provider ("Business Error Codes") and the rules for everything
else ("HTTP Status Mapping"). The one that matters most: **a submit has no idempotency key**, so a
refusal counts as one only if the provider's own envelope says so with a code that stands below as
PERMANENT, RETRY or HOLD. Whatever else comes back leaves a submit AMBIGUOUS.
"""

from __future__ import annotations

from typing import Final, Literal

from api_client import errors
from api_client.errors import ApiError, Disposition

Endpoint = Literal["submit", "get", "list", "cancel", "presign", "balance", "storage"]

SUCCESS: Final = "200"

_P, _R, _A, _H = (
    Disposition.PERMANENT,
    Disposition.RETRY,
    Disposition.AMBIGUOUS,
    Disposition.HOLD,
)


def _row(
    submit: Disposition | None = None,
    get: Disposition | None = None,
    many: Disposition | None = None,
    cancel: Disposition | None = None,
    presign: Disposition | None = None,
) -> dict[str, Disposition]:
    """One row; None where the code makes no sense, which leaves it to the HTTP status."""
    # The balance is read like the list: no input of ours, no effect.
    columns = {
        "submit": submit,
        "get": get,
        "list": many,
        "cancel": cancel,
        "presign": presign,
        "balance": many,
    }
    return {endpoint: value for endpoint, value in columns.items() if value is not None}


_REFUSED = _row(submit=_P, get=_P)
_BUSY = _row(_R, _R, _R, _R, _R)
_UNKNOWN_OUTCOME = _row(_A, _R, _R, _R, _R)

TABLE: Final[dict[str, dict[str, Disposition]]] = {
    "INVALID_API_KEY": _row(_H, _H, _H, _H, _H),
    "INSUFFICIENT_CREDIT": _row(submit=_H, get=_P),
    "INVALID_PARAMETER": _row(_P, _P, _P, _P, _P),
    "MISSING_PARAMETER": _row(_P, _P, _P, _P, _P),
    "CONTENT_MODERATION_FAILED": _REFUSED,
    "COPYRIGHT_VIOLATION": _REFUSED,
    "PRIVACY_VIOLATION": _REFUSED,
    # "task is queued": it may exist although this is an error.
    "CONCURRENCY_LIMIT_REACHED": _UNKNOWN_OUTCOME,
    "RATE_LIMIT_EXCEEDED": _BUSY,
    "SERVICE_BUSY": _BUSY,
    # "please retry", says the document; but whether the task was made, it does not say.
    "CREDIT_DEDUCT_FAILED": _row(submit=_A, get=_P),
    "TASK_SUBMIT_FAILED": _row(submit=_A, get=_P),
    "VIDEO_DOWNLOAD_FAILED": _row(submit=_A, get=_P),
    "INTERNAL_ERROR": _UNKNOWN_OUTCOME,
    # A fresh task may not be visible yet, a replica may lag, the key may be another's.
    "TASK_NOT_FOUND": _row(get=_A, cancel=_A),
    # Probably terminal already: a `get` tells.
    "TASK_CANCEL_NOT_ALLOWED": _row(cancel=_A),
    "FILE_UPLOAD_FAILED": _row(presign=_R),
    # "Success", yet the result could not be used.
    SUCCESS: _UNKNOWN_OUTCOME,
}

# "HTTP Status Mapping": what a status says by itself, without a code that is known here.
_BY_STATUS: Final[dict[int, dict[str, Disposition]]] = {
    401: TABLE["INVALID_API_KEY"],
    402: TABLE["INSUFFICIENT_CREDIT"],
    404: TABLE["TASK_NOT_FOUND"],
    # These may come from something in between, after the provider has done the work.
    408: _UNKNOWN_OUTCOME,
    429: _UNKNOWN_OUTCOME,
}

_KINDS: Final[dict[str, type[ApiError]]] = {
    "INVALID_API_KEY": errors.InvalidApiKey,
    "INSUFFICIENT_CREDIT": errors.InsufficientCredit,
    "CONTENT_MODERATION_FAILED": errors.ContentRefused,
    "COPYRIGHT_VIOLATION": errors.ContentRefused,
    "PRIVACY_VIOLATION": errors.ContentRefused,
    "TASK_NOT_FOUND": errors.TaskNotFound,
    "TASK_CANCEL_NOT_ALLOWED": errors.CancelNotAllowed,
    "RATE_LIMIT_EXCEEDED": errors.RateLimited,
    "SERVICE_BUSY": errors.RateLimited,
    "CONCURRENCY_LIMIT_REACHED": errors.ConcurrencyLimit,
}


def classify(endpoint: Endpoint, code: str, http_status: int | None) -> Disposition:
    """What may be done after this answer to a call of `endpoint`.

    `code` is the provider's, or "" where the answer had no envelope; `http_status` is None where
    there was no answer at all although the request was sent. A code that is not in the table, or
    makes no sense for the endpoint, is judged by its HTTP status.
    """
    known = TABLE.get(code, {}).get(endpoint)
    if known is not None:
        return known
    if endpoint == "submit" and not code:
        # Without the provider's envelope anything in between may have answered, and the task
        # may exist: only the provider itself can refuse a submit.
        return _A
    if http_status is not None and 300 <= http_status < 500:
        return _BY_STATUS.get(http_status, {}).get(endpoint) or (
            # Storage is no endpoint of the provider; its uploads are harmless to repeat.
            _R if endpoint == "storage" and http_status in (408, 429) else _P
        )
    return _A if endpoint == "submit" else _R


def error_class(endpoint: Endpoint, code: str, http_status: int) -> type[ApiError]:
    """The subclass of `ApiError` for an answer."""
    if endpoint == "storage":
        return errors.StorageRefused
    if code in _KINDS:
        return _KINDS[code]
    if code in TABLE:
        return ApiError
    if http_status == 404 and endpoint in ("get", "cancel"):
        return errors.TaskNotFound
    by_status: dict[int, type[ApiError]] = {
        401: errors.InvalidApiKey,
        402: errors.InsufficientCredit,
        429: errors.RateLimited,
        503: errors.RateLimited,
    }
    return by_status.get(http_status, ApiError)
