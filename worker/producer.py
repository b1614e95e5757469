"""Enqueue generations and follow them, from Python.

    from worker.producer import enqueue, get

    with Session(engine) as session, session.begin():
        session.add(order)
        order.generation_id = enqueue(
            {"content": [{"type": "text", "text": "A cat"}]}, session=session
        )

With the caller's session the generation is part of the caller's transaction: both are there
after the commit, or neither. Without one it is stored at once. Only SEEDANCE_DATABASE_URL is
needed; no broker and no API key.
"""

import threading
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any, TypeVar

from sqlalchemy import Connection

from api_client import GenerationRequest, InvalidRequest
from models import budgets, intake, reads, schedule, transitions
from models.budgets import BudgetExceeded, BudgetView, Room
from models.database import alone
from models.intake import IdempotencyConflict
from models.intake_rows import NewGeneration
from models.reads import EventView, GenerationView
from worker import retrying
from worker.author import author
from worker.producer_database import (
    Own,
    connection,
    engine,
    follower,
    joined,
    surely,
)
from worker.requests import (
    check_id,
    check_key,
    check_options,
    check_request,
    new_generation,
    with_options,
)
from worker.retrying import RetryRefused
from worker.waiting import Deadline, Ends, History, StillRunningError, UnknownGenerationError

_T = TypeVar("_T")
_R = TypeVar("_R")

Request = GenerationRequest | Mapping[str, Any]
Id = uuid.UUID | str
"""A generation's id; as text too, as Celery's `send_task(…).id` and notices have it."""


def enqueue(
    request: Request,
    *,
    session: Own | None = None,
    idempotency_key: str | None = None,
    priority: int = 0,
    tenant: str | None = None,
    metadata: Mapping[str, Any] | None = None,
    notify: Mapping[str, Any] | None = None,
    deadline: datetime | None = None,
) -> uuid.UUID:
    """Store a generation request and return the generation's id.

    `priority`: higher goes first. With an `idempotency_key` (unique per tenant) a repeated call
    returns the first call's id. `deadline`: not submitted by then, it ends `expired`.

    Raises InvalidRequest (field, value, bound), IdempotencyConflict (the key was used for a
    different request) and BudgetExceeded (the tenant's budget does not cover it); nothing is
    stored then.
    """
    new = new_generation(
        request,
        idempotency_key=idempotency_key,
        priority=priority,
        tenant=tenant,
        metadata=metadata,
        notify=notify,
        deadline=deadline,
    )
    if session is None:
        return surely(lambda: _stored_alone(new))
    with connection(session) as conn:
        return intake.accept(conn, new).id


def _stored_alone(new: NewGeneration) -> uuid.UUID:
    """In one round trip, but where a budget is to be asked."""
    with alone(engine()) as conn:
        accepted = intake.accept_at_once(conn, new)
    if accepted is None:
        with connection(None) as conn:
            accepted = intake.accept(conn, new)
    return accepted.id


def enqueue_many(
    requests: Iterable[Request],
    *,
    session: Own | None = None,
    idempotency_keys: Sequence[str] | None = None,
    priority: int = 0,
    tenant: str | None = None,
    metadata: Mapping[str, Any] | None = None,
    notify: Mapping[str, Any] | None = None,
    deadline: datetime | None = None,
) -> list[uuid.UUID]:
    """Store many requests in one transaction: all or none. Ids are in the order of `requests`.

    `idempotency_keys`, where given, has one key for each request. A refused request is named by
    its place: InvalidRequest for `requests[3].duration`. BudgetExceeded speaks of them all.
    """
    listed = list(requests)
    if isinstance(idempotency_keys, str):
        raise InvalidRequest("idempotency_keys", idempotency_keys, "a list, one key per request")
    if idempotency_keys is not None and len(idempotency_keys) != len(listed):
        raise InvalidRequest(
            "idempotency_keys", f"{len(idempotency_keys)} keys", f"{len(listed)}, one per request"
        )
    options = check_options(
        priority=priority, tenant=tenant, metadata=metadata, notify=notify, deadline=deadline
    )
    ids = [uuid.uuid4() for _ in listed]
    keys: Sequence[str | None] = [None] * len(listed)
    if idempotency_keys is not None:
        keys = [_placed(place, check_key, key) for place, key in enumerate(idempotency_keys)]
    places = sorted(range(len(listed)), key=lambda place: intake.order(options.tenant, keys[place]))

    def new(place: int) -> NewGeneration:
        return with_options(
            listed[place], options, generation_id=ids[place], idempotency_key=keys[place]
        )

    def store() -> list[uuid.UUID]:
        made = (_placed(place, new, place) for place in places)
        with connection(session) as conn:
            accepted = intake.accept_ordered(conn, made, {options.tenant})
        return [accepted[one].id for one in ids]

    if not listed:
        return []
    return surely(store) if session is None else store()


def _placed(place: int, check: Callable[[_T], _R], value: _T) -> _R:
    """Check one of many. Raises InvalidRequest, which names its place."""
    try:
        return check(value)
    except InvalidRequest as error:
        raise InvalidRequest(
            f"requests[{place}].{error.field}", error.value, error.allowed
        ) from None


def estimate(request: Request) -> Decimal:
    """What a request will cost in credits, by the provider's price list; stores and asks nothing.

    The provider's own figure may differ by its rounding. Raises InvalidRequest.
    """
    return check_request(request).estimated_cost


def budgets_of(tenant: str | None = None, *, session: Own | None = None) -> list[Room]:
    """The budgets, of one tenant if it is named, with what is spent and left of each."""
    with connection(session) as conn:
        return budgets.rooms(conn, None if tenant is None else [tenant])


def cancel(generation_id: Id, *, session: Own | None = None) -> GenerationView:
    """Ask for a generation to be cancelled, and return what it is now.

    Before its submission it is cancelled at once. Later the wish is carried out as soon as it
    can be: the remote task is asked to stop, and may complete all the same, and be charged.
    Raises UnknownGenerationError.
    """
    own = check_id(generation_id)
    with connection(session) as conn:
        transitions.cancel(conn, own)
        schedule.wake(conn)
        return _found(conn, own)


def retry(
    generation_id: Id,
    *,
    session: Own | None = None,
    again: bool = False,
    by: str | None = None,
    reason: str | None = None,
) -> uuid.UUID:
    """Accept the request of a generation that ended without a video once more; the new one's id.

    The two name each other (`retry_of`, `retried_as`). What the provider refused for its content
    is final. `again`: also if it was retried, or is a retry, before; `by` and `reason` are kept.
    Raises RetryRefused, BudgetExceeded and UnknownGenerationError.
    """
    own, who = check_id(generation_id), author(by, reason)
    with connection(session) as conn:
        return retrying.retry(conn, own, by=who, again=again)


def get(generation_id: Id, *, session: Own | None = None) -> GenerationView:
    """A generation as it is now. Raises UnknownGenerationError."""
    own = check_id(generation_id)
    with connection(session) as conn:
        return _found(conn, own)


def get_many(
    generation_ids: Iterable[Id], *, session: Own | None = None
) -> dict[uuid.UUID, GenerationView]:
    """Generations as they are now, in one query. Those that don't exist are left out."""
    ids = [check_id(one) for one in generation_ids]
    with connection(session) as conn:
        return reads.get_many(conn, ids)


def wait(generation_id: Id, *, timeout: float | None = None) -> GenerationView:
    """Wait until a generation has ended, however it does, and return it.

    Raises StillRunningError (a TimeoutError, with how it is) after `timeout` seconds, and
    UnknownGenerationError. Any number of threads may wait; they share one connection. Not within
    the transaction that enqueues it: nobody else sees it before the commit.
    """
    own = check_id(generation_id)
    return wait_many([own], timeout=timeout)[own]


def wait_many(
    generation_ids: Iterable[Id], *, timeout: float | None = None
) -> dict[uuid.UUID, GenerationView]:
    """Wait until all of them have ended; they are in the order in which they were named.

    Raises StillRunningError (how each is, in `views`) and UnknownGenerationError.
    """
    deadline = Deadline(timeout)
    ids = [check_id(one) for one in generation_ids]
    ends, changed = Ends(engine(), ids), threading.Event()
    if ends.read():
        return ends.views
    with follower().following(ids, changed.set):
        while not ends.read():
            changed.wait(deadline.pause(ends.views))
            changed.clear()
    return ends.views


def events(
    generation_id: Id, *, skip: int = 0, timeout: float | None = None
) -> Iterator[EventView]:
    """What has happened to a generation, then what happens, up to its end.

    `skip`: so many events the caller has seen already. Raises StillRunningError when the end has
    not come after `timeout` seconds, and UnknownGenerationError.
    """
    own, deadline = check_id(generation_id), Deadline(timeout)
    history, changed = History(engine(), own, skip), threading.Event()
    with follower().following([own], changed.set):
        while True:
            changed.clear()
            new, ended = history.read()
            yield from new
            if ended:
                return
            changed.wait(deadline.pause(history.views))


def _found(conn: Connection, generation_id: uuid.UUID) -> GenerationView:
    view = reads.get(conn, generation_id)
    if view is None:
        raise UnknownGenerationError(f"there is no generation {generation_id}")
    return view


__all__ = [
    "BudgetExceeded",
    "BudgetView",
    "EventView",
    "GenerationRequest",
    "GenerationView",
    "IdempotencyConflict",
    "InvalidRequest",
    "RetryRefused",
    "Room",
    "StillRunningError",
    "UnknownGenerationError",
    "budgets_of",
    "cancel",
    "enqueue",
    "enqueue_many",
    "estimate",
    "events",
    "get",
    "get_many",
    "joined",
    "retry",
    "wait",
    "wait_many",
]
