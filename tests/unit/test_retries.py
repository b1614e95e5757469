"""What may be retried: decided from the facts alone."""

import uuid

import pytest

from models.error_classes import FINAL
from models.lifecycle import TERMINAL, Status
from models.operating.retries import MEANS, End, Refusal, refuse

ID = uuid.UUID(int=7)
FAILED = {"status": Status.FAILED, "error_code": "INTERNAL_ERROR"}


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("code", sorted(FINAL))
def test_what_the_provider_refused_for_its_content_is_never_retried(code: str, again: bool):
    assert refuse(End(Status.FAILED, code), again=again) is Refusal.FINAL


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("status", sorted(set(Status) - TERMINAL))
def test_what_has_not_ended_is_not_retried(status: Status, again: bool):
    assert refuse(End(status, None), again=again) is Refusal.OPEN


@pytest.mark.parametrize(
    ("end", "careless", "again"),
    [
        (End(**FAILED), None, None),
        (End(Status.CANCELLED, None), None, None),
        (End(Status.EXPIRED, "DEADLINE_PASSED"), None, None),
        (End(Status.FAILED, "BUDGET_EXCEEDED"), None, None),
        (End(Status.COMPLETED, None), Refusal.COMPLETED, Refusal.COMPLETED),
        (End(Status.FAILED, "INVALID_REQUEST"), Refusal.DOOR, Refusal.DOOR),
        (End(Status.FAILED, "IDEMPOTENCY_CONFLICT"), Refusal.DOOR, Refusal.DOOR),
        (End(**FAILED, unsettled=True), Refusal.UNSETTLED, Refusal.UNSETTLED),
        (End(**FAILED, retried_as=ID), Refusal.RETRIED, None),
        (End(**FAILED, retry_of=ID), Refusal.RETRY, None),
        (End(**FAILED, has_task=True), Refusal.TASK, None),
        (End(**FAILED, retried_as=ID, chain_lost=True), Refusal.GONE, Refusal.GONE),
    ],
)
def test_the_rest(end: End, careless: Refusal | None, again: Refusal | None):
    assert refuse(end, again=False) is careless
    assert refuse(end, again=True) is again


def test_every_refusal_is_told_in_words():
    assert set(MEANS) == set(Refusal)
