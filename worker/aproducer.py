"""`worker.producer` for asyncio: the same names, to be awaited (all but `estimate`, which asks
nobody; `joined` is for connections that are not awaited).

    from worker.aproducer import enqueue, wait

    generation_id = await enqueue({"content": [{"type": "text", "text": "A cat"}]})
    video = await wait(generation_id, timeout=300)

The short statements run in threads; whoever waits holds neither a thread nor a connection, so
thousands may. With an AsyncSession or AsyncConnection of the caller (over psycopg) the generation
is part of the caller's transaction.
"""

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, TypedDict, TypeVar, Unpack

from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
from sqlalchemy.orm import Session

from worker import producer
from worker.producer import (
    BudgetExceeded,
    BudgetView,
    EventView,
    GenerationRequest,
    GenerationView,
    Id,
    IdempotencyConflict,
    InvalidRequest,
    Request,
    RetryRefused,
    Room,
    StillRunningError,
    UnknownGenerationError,
    estimate,
)
from worker.producer_database import engine, follower
from worker.requests import check_id
from worker.waiting import Deadline, Ends, History

Own = AsyncSession | AsyncConnection
T = TypeVar("T")


class Options(TypedDict, total=False):
    """What `enqueue` and `enqueue_many` take beside requests and keys."""

    priority: int
    tenant: str | None
    metadata: Mapping[str, Any] | None
    notify: Mapping[str, Any] | None
    deadline: datetime | None


class OptionsOfOne(Options, total=False):
    """What `enqueue` takes."""

    idempotency_key: str | None


class OptionsOfMany(Options, total=False):
    """What `enqueue_many` takes."""

    idempotency_keys: Sequence[str] | None


class OptionsOfRetry(TypedDict, total=False):
    """What `retry` takes."""

    again: bool
    by: str | None
    reason: str | None


async def enqueue(
    request: Request, *, session: Own | None = None, **options: Unpack[OptionsOfOne]
) -> uuid.UUID:
    """`worker.producer.enqueue`, with its options."""
    return await _run(session, lambda own: producer.enqueue(request, session=own, **options))


async def enqueue_many(
    requests: Iterable[Request],
    *,
    session: Own | None = None,
    **options: Unpack[OptionsOfMany],
) -> list[uuid.UUID]:
    """`worker.producer.enqueue_many`, with its options."""
    listed = list(requests)
    return await _run(session, lambda own: producer.enqueue_many(listed, session=own, **options))


async def budgets_of(tenant: str | None = None, *, session: Own | None = None) -> list[Room]:
    """`worker.producer.budgets_of`."""
    return await _run(session, lambda own: producer.budgets_of(tenant, session=own))


async def cancel(generation_id: Id, *, session: Own | None = None) -> GenerationView:
    """`worker.producer.cancel`."""
    return await _run(session, lambda own: producer.cancel(generation_id, session=own))


async def retry(
    generation_id: Id, *, session: Own | None = None, **options: Unpack[OptionsOfRetry]
) -> uuid.UUID:
    """`worker.producer.retry`, with its options."""
    return await _run(session, lambda own: producer.retry(generation_id, session=own, **options))


async def get(generation_id: Id, *, session: Own | None = None) -> GenerationView:
    """`worker.producer.get`."""
    return await _run(session, lambda own: producer.get(generation_id, session=own))


async def get_many(
    generation_ids: Iterable[Id], *, session: Own | None = None
) -> dict[uuid.UUID, GenerationView]:
    """`worker.producer.get_many`."""
    ids = list(generation_ids)
    return await _run(session, lambda own: producer.get_many(ids, session=own))


async def wait(generation_id: Id, *, timeout: float | None = None) -> GenerationView:
    """`worker.producer.wait`."""
    own = check_id(generation_id)
    return (await wait_many([own], timeout=timeout))[own]


async def wait_many(
    generation_ids: Iterable[Id],
    *,
    timeout: float | None = None,
) -> dict[uuid.UUID, GenerationView]:
    """`worker.producer.wait_many`."""
    deadline = Deadline(timeout)
    ids = [check_id(one) for one in generation_ids]
    ends = Ends(engine(), ids)
    if await asyncio.to_thread(ends.read):
        return ends.views
    async with _following(ids) as changed:
        while not await asyncio.to_thread(ends.read):
            await _pause(changed, deadline.pause(ends.views))
    return ends.views


async def events(
    generation_id: Id,
    *,
    skip: int = 0,
    timeout: float | None = None,
) -> AsyncIterator[EventView]:
    """`worker.producer.events`."""
    own, deadline = check_id(generation_id), Deadline(timeout)
    history = History(engine(), own, skip)
    async with _following([own]) as changed:
        while True:
            new, ended = await asyncio.to_thread(history.read)
            for event in new:
                yield event
            if ended:
                return
            await _pause(changed, deadline.pause(history.views))


async def _run(own: Own | None, act: Callable[[Session | Connection | None], T]) -> T:
    if own is None:
        return await asyncio.to_thread(act, None)
    if not isinstance(own, AsyncSession | AsyncConnection):
        raise InvalidRequest(
            "session", own, "an AsyncSession or AsyncConnection (a Session: worker.producer)"
        )
    return await own.run_sync(act)


@contextlib.asynccontextmanager
async def _following(ids: Sequence[uuid.UUID]) -> AsyncIterator[asyncio.Event]:
    """An event that is set when one of the generations may have changed."""
    loop, changed = asyncio.get_running_loop(), asyncio.Event()

    def poke() -> None:
        with contextlib.suppress(RuntimeError):  # the loop was closed in this moment
            loop.call_soon_threadsafe(changed.set)

    teller = follower()
    teller.add(ids, poke)
    try:
        await asyncio.to_thread(teller.ask, ids)
        yield changed
    finally:
        teller.remove(ids, poke)


async def _pause(changed: asyncio.Event, seconds: float) -> None:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(changed.wait(), seconds)
    changed.clear()


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
    "retry",
    "wait",
    "wait_many",
]
