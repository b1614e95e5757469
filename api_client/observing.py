"""What a request came to, told to whoever counts or traces: never its address, body or answer."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from api_client.errors import (
    AnswerLost,
    ApiError,
    ConcurrencyLimit,
    ContentRefused,
    InsufficientCredit,
    InvalidApiKey,
    NotSent,
    RateLimited,
    TaskNotFound,
)


class Outcome(StrEnum):
    """How a request ended; few values, for labels."""

    OK = "ok"
    NOT_SENT = "not_sent"
    LOST = "lost"
    LIMITED = "limited"
    KEY = "key"
    CREDIT = "credit"
    CONTENT = "content"
    NOT_FOUND = "not_found"
    SERVER_ERROR = "server_error"
    UNUSABLE = "unusable"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class RequestSeen:
    """One request that was made, or tried."""

    endpoint: str
    outcome: Outcome
    seconds: float
    """From before connecting to the end of the answer."""
    http_status: int | None = None
    code: str = ""
    """The provider's code of a refusal."""


_KINDS: tuple[tuple[type[ApiError] | tuple[type[ApiError], ...], Outcome], ...] = (
    (NotSent, Outcome.NOT_SENT),
    (AnswerLost, Outcome.LOST),
    ((RateLimited, ConcurrencyLimit), Outcome.LIMITED),
    (InvalidApiKey, Outcome.KEY),
    (InsufficientCredit, Outcome.CREDIT),
    (ContentRefused, Outcome.CONTENT),
    (TaskNotFound, Outcome.NOT_FOUND),
)


def outcome_of(error: ApiError) -> Outcome:
    """The outcome that an error stands for."""
    for kinds, outcome in _KINDS:
        if isinstance(error, kinds):
            return outcome
    if (error.http_status or 0) >= 500:
        return Outcome.SERVER_ERROR
    if not error.code and 200 <= (error.http_status or 0) < 300:
        return Outcome.UNUSABLE
    return Outcome.REFUSED


def seen(endpoint: str, seconds: float, error: ApiError | None = None) -> RequestSeen:
    """What is told of a request that took so long and, maybe, ended so."""
    if error is None:
        return RequestSeen(endpoint, Outcome.OK, seconds)
    return RequestSeen(endpoint, outcome_of(error), seconds, error.http_status, error.code)
