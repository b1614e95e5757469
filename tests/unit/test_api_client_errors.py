"""What every answer means: the whole table, row by row, and the errors that carry it."""

import copy
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api_client import errors
from api_client.errors import (
    AnswerLost,
    ApiError,
    Disposition,
    InvalidRequest,
    NotSent,
    SeedanceError,
    WaitTimeout,
)
from api_client.verdicts import TABLE, classify, error_class

# P permanent, R retry, A ambiguous, H hold; "." is left to the HTTP status.
# The columns are submit, get, list, cancel, presign.
CODES = """
INVALID_API_KEY             401  H H H H H
INSUFFICIENT_CREDIT         402  H P . . .
INVALID_PARAMETER           400  P P P P P
MISSING_PARAMETER           400  P P P P P
CONTENT_MODERATION_FAILED   400  P P . . .
COPYRIGHT_VIOLATION         400  P P . . .
PRIVACY_VIOLATION           400  P P . . .
CONCURRENCY_LIMIT_REACHED   429  A R R R R
RATE_LIMIT_EXCEEDED         429  R R R R R
SERVICE_BUSY                503  R R R R R
CREDIT_DEDUCT_FAILED        500  A P . . .
TASK_SUBMIT_FAILED          500  A P . . .
VIDEO_DOWNLOAD_FAILED       500  A P . . .
INTERNAL_ERROR              500  A R R R R
TASK_NOT_FOUND              404  . A . A .
TASK_CANCEL_NOT_ALLOWED     400  . . . A .
FILE_UPLOAD_FAILED          500  . . . . R
"""

# Without a code that is known: no envelope, or an unknown code in it.
STATUSES = """
200  A R R R R
201  A R R R R
204  A R R R R
301  P P P P P
302  P P P P P
307  P P P P P
400  P P P P P
401  H H H H H
402  H P P P P
403  P P P P P
404  P A P A P
405  P P P P P
408  A R R R R
409  P P P P P
413  P P P P P
422  P P P P P
429  A R R R R
500  A R R R R
502  A R R R R
503  A R R R R
504  A R R R R
599  A R R R R
"""

ENDPOINTS = ("submit", "get", "list", "cancel", "presign")
LETTERS = {
    "P": Disposition.PERMANENT,
    "R": Disposition.RETRY,
    "A": Disposition.AMBIGUOUS,
    "H": Disposition.HOLD,
}


def rows(table: str) -> list[list[str]]:
    return [line.split() for line in table.strip().splitlines()]


CASES = [
    pytest.param(endpoint, code, status, letter, id=f"{code}-{endpoint}-{status}")
    for code, documented, *letters in rows(CODES)
    for endpoint, letter in zip(ENDPOINTS, letters, strict=True)
    # "Most responses use HTTP 200 with error details in the body."
    for status in (200, int(documented))
    if letter != "."
]
BARE = [
    pytest.param(
        endpoint,
        code,
        int(status),
        # Only the provider's own envelope can refuse a submit.
        "A" if endpoint == "submit" and not code else letter,
        id=f"{status}-{endpoint}-{code or 'bare'}",
    )
    for status, *letters in rows(STATUSES)
    for endpoint, letter in zip(ENDPOINTS, letters, strict=True)
    for code in ("", "SOMETHING_NEW")
]


@pytest.mark.parametrize(("endpoint", "code", "status", "letter"), CASES + BARE)
def test_table(endpoint, code, status, letter):
    assert classify(endpoint, code, status) is LETTERS[letter]


def test_every_documented_code_has_its_row():
    assert {row[0] for row in rows(CODES)} == set(TABLE) - {"200"}


@pytest.mark.parametrize("status", [200, 201, 302, 400, 500])
def test_a_success_without_a_usable_result_leaves_a_submit_in_doubt(status):
    assert classify("submit", "200", status) is Disposition.AMBIGUOUS
    assert classify("get", "200", status) is Disposition.RETRY


@pytest.mark.parametrize(
    ("endpoint", "code", "status", "letter"),
    [
        ("submit", "TASK_NOT_FOUND", 200, "A"),
        ("submit", "TASK_NOT_FOUND", 404, "P"),
        ("submit", "FILE_UPLOAD_FAILED", 500, "A"),
        ("list", "INSUFFICIENT_CREDIT", 200, "R"),
        ("list", "INSUFFICIENT_CREDIT", 402, "P"),
        ("balance", "INVALID_API_KEY", 401, "H"),
        ("balance", "SERVICE_BUSY", 503, "R"),
        ("balance", "", 502, "R"),
        ("storage", "", 403, "P"),
        ("storage", "", 400, "P"),
        ("storage", "", 301, "P"),
        ("storage", "", 408, "R"),
        ("storage", "", 429, "R"),
        ("storage", "", 503, "R"),
    ],
)
def test_beside_the_table(endpoint, code, status, letter):
    assert classify(endpoint, code, status) is LETTERS[letter]


@pytest.mark.parametrize("endpoint", [*ENDPOINTS, "balance", "storage"])
def test_no_answer_after_sending(endpoint):
    expected = Disposition.AMBIGUOUS if endpoint == "submit" else Disposition.RETRY
    assert classify(endpoint, "", None) is expected


@given(code=st.text(max_size=20), status=st.none() | st.integers(100, 999))
def test_a_submit_is_never_repeated_on_an_unknown_answer(code, status):
    if code not in TABLE:
        assert classify("submit", code, status) is not Disposition.RETRY


@pytest.mark.parametrize(
    ("endpoint", "code", "status", "kind"),
    [
        ("get", "INVALID_API_KEY", 200, "InvalidApiKey"),
        ("get", "", 401, "InvalidApiKey"),
        ("submit", "INSUFFICIENT_CREDIT", 200, "InsufficientCredit"),
        ("submit", "PRIVACY_VIOLATION", 400, "ContentRefused"),
        ("get", "TASK_NOT_FOUND", 200, "TaskNotFound"),
        ("cancel", "", 404, "TaskNotFound"),
        ("submit", "", 404, "ApiError"),
        ("cancel", "TASK_CANCEL_NOT_ALLOWED", 400, "CancelNotAllowed"),
        ("submit", "RATE_LIMIT_EXCEEDED", 429, "RateLimited"),
        ("list", "", 503, "RateLimited"),
        ("submit", "CONCURRENCY_LIMIT_REACHED", 429, "ConcurrencyLimit"),
        ("submit", "INTERNAL_ERROR", 503, "ApiError"),
        ("storage", "", 403, "StorageRefused"),
    ],
)
def test_error_classes(endpoint, code, status, kind):
    assert error_class(endpoint, code, status) is getattr(errors, kind)


def api_error(kind=ApiError):
    return kind(
        "slow down",
        endpoint="get",
        disposition=Disposition.RETRY,
        code="RATE_LIMIT_EXCEEDED",
        http_status=429,
        retry_after=2.5,
        task_id="t1",
    )


@pytest.mark.parametrize(
    "error",
    [
        api_error(),
        api_error(NotSent),
        api_error(AnswerLost),
        InvalidRequest("duration", 16, "4 to 15"),
        WaitTimeout("t1", 3.0, None),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_survive_pickling_and_copying(error):
    for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(twin) is type(error)
        assert str(twin) == str(error)
        assert twin.__dict__ == error.__dict__


def test_what_an_error_says():
    assert str(api_error()) == "get: HTTP 429 RATE_LIMIT_EXCEEDED: slow down"
    lost = AnswerLost("gone", endpoint="submit", disposition=Disposition.AMBIGUOUS)
    assert str(lost) == "submit: gone"
    assert lost.http_status is None


def test_the_tree_in_the_docstring_is_the_tree():
    drawn = {line.strip(" │├└─").split()[0] for line in errors.__doc__.splitlines() if "─" in line}
    real = {
        kind.__name__
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, SeedanceError) and kind is not SeedanceError
    }
    assert drawn == real
