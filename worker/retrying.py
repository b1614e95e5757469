"""A retry: the request of a generation that ended without a video, accepted once more."""

import uuid
from dataclasses import replace

from sqlalchemy import Connection

from api_client import InvalidRequest
from models import intake
from models.operating import retries
from models.operating.actions import By
from models.operating.retries import MEANS, Refusal
from worker.requests import new_generation
from worker.waiting import UnknownGenerationError


class RetryRefused(Exception):
    """It can't be retried; nothing was stored. The message says why."""

    def __init__(self, generation_id: uuid.UUID, why: str, refusal: Refusal | None) -> None:
        super().__init__(f"generation {generation_id} is not retried: {why}")
        self.told = f"generation {generation_id}: {why}"
        """The same, shorter: for who says already that it was not retried."""
        self.refusal = refusal
        """None where its request does not keep today's bounds."""


def retry(conn: Connection, generation_id: uuid.UUID, *, by: By, again: bool = False) -> uuid.UUID:
    """Accept a generation's request once more, and link the two; returns the new one's id.

    Same request, tenant, priority, metadata and notices; the deadline, if it is still ahead. The
    idempotency key stays with the first: whoever repeats it gets that one, which names its retry.
    Raises RetryRefused, BudgetExceeded and UnknownGenerationError.
    """
    found = retries.lock(conn, generation_id, again=again)
    if found is None:
        raise UnknownGenerationError(f"there is no generation {generation_id}")
    refusal = retries.refuse(found.end, again=again)
    if refusal is not None:
        raise RetryRefused(found.id, _explained(refusal, found), refusal)
    try:
        new = new_generation(
            found.request,
            tenant=found.tenant,
            priority=found.priority,
            metadata=found.metadata,
            deadline=found.deadline,
        )
    except InvalidRequest as error:
        raise RetryRefused(found.id, f"its request: {error}", None) from None
    intake.accept(conn, replace(new, notify=found.notify))
    retries.link(conn, found.id, new.id, by)
    return new.id


def _explained(refusal: Refusal, found: retries.Locked) -> str:
    """The reason, with what it is about."""
    end = found.end
    match refusal:
        case Refusal.OPEN:
            return f"{MEANS[refusal]}: it is {end.status}"
        case Refusal.FINAL | Refusal.DOOR:
            return f"{MEANS[refusal]} ({end.error_code})"
        case Refusal.RETRIED:
            return f"{MEANS[refusal]} (as {end.retried_as})"
        case Refusal.RETRY:
            return f"{MEANS[refusal]} (of {end.retry_of})"
        case _:
            return MEANS[refusal]
