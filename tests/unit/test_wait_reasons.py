"""The sentence of each wait reason, with and without its figures."""

from typing import Any

import pytest

from models.wait_reasons import REQUEST_RATE, Wait, WaitReason, retry, sentence

R = WaitReason
BUDGET = {
    "tenant": "acme",
    "period": "day",
    "policy": "wait",
    "limit": "20",
    "needed": "9",
    "charged": "0",
    "under_way": "18",
    "left": "2",
    "resets_at": None,
}

SENTENCES: list[tuple[WaitReason, dict[str, Any] | None, str]] = [
    (R.OPERATOR, None, "an operator's decision"),
    (
        R.PAUSE,
        {"tenant": None, "why": "new key", "by": "ana"},
        "the end of the pause: new key (ana)",
    ),
    (
        R.PAUSE,
        {"tenant": "acme", "why": "new key", "by": "ana"},
        "the end of the pause of tenant 'acme': new key (ana)",
    ),
    (R.EQUAL_GENERATION, {"generation": "0b"}, "an equal generation with the same seed: 0b"),
    (R.BREAKER, {"breaker": "api_key"}, "circuit breaker api_key"),
    (R.BREAKER, {"breaker": "credit", "reason": "402"}, "circuit breaker credit, opened by 402"),
    (R.RATE, {"cause": "request_rate"}, "the request rate"),
    (R.RATE, {"cause": "backoff"}, "the request rate"),  # of a version before
    (R.RATE, {"cause": "throttled"}, "the provider, which throttles requests"),
    (R.RATE, {"cause": "throttled", "reason": "X"}, "the provider, which throttles requests (X)"),
    (R.RATE, {"cause": "outage"}, "the end of the provider's outage"),
    (R.RATE, {"cause": "outage", "reason": "BUSY"}, "the end of the provider's outage (BUSY)"),
    (R.CONCURRENCY, None, "a free slot"),
    (
        R.CONCURRENCY,
        {"in_flight": 3, "ahead": 0, "slowed_by": []},
        "a free slot: 3 in flight, 0 ahead of it",
    ),
    (
        R.CONCURRENCY,
        {"in_flight": 3, "ahead": 0, "slowed_by": ["7 requests/s"]},
        "a free slot: 3 in flight, 0 ahead of it, 7 requests/s",
    ),
    (
        R.CONCURRENCY,
        {"provider_limit": 2},
        "a free slot: the provider takes at most 2 tasks at a time",
    ),
    (
        R.CREDITS,
        {"needed": "9", "free": "0", "on_account": "18", "under_way": "18"},
        "credits: 9 needed, 0 free (18 on the account, 18 reserved for generations under way)",
    ),
    (
        R.BUDGET,
        BUDGET,
        (
            "budget: 9 needed, and tenant 'acme' may spend 20 a day: 0 are charged and 18 under"
            " way, which leaves 2"
        ),
    ),
    (R.RETRY, {"code": "SERVICE_BUSY"}, "a retry after SERVICE_BUSY"),
    (R.RETRY, {"why": "the intent is 9.0 s old"}, "a retry: the intent is 9.0 s old"),
    (R.REFERENCE, {"error": "HTTP 503"}, "its reference: HTTP 503"),
]


@pytest.mark.parametrize(("reason", "detail", "said"), SENTENCES)
def test_sentence(reason: WaitReason, detail: dict[str, Any] | None, said: str) -> None:
    assert sentence(reason, detail) == said
    assert str(Wait(reason, detail)) == said


@pytest.mark.parametrize("reason", WaitReason)
def test_sentence_without_detail(reason: WaitReason) -> None:
    """Rows converted by the migration have no figures."""
    assert sentence(reason, None)
    assert "None" not in sentence(reason, {})


def test_columns_hold_text_that_postgresql_accepts() -> None:
    assert retry("bad \x00 \ud800 text").columns == {
        "wait_reason": "retry",
        "wait_detail": {"why": "bad  ? text"},
    }


def test_event_detail_leaves_out_missing_figures() -> None:
    assert Wait(R.OPERATOR, {}).event_detail == {"wait_reason": "operator"}
    assert REQUEST_RATE.event_detail == {
        "wait_reason": "rate",
        "wait_detail": {"cause": "request_rate"},
    }
