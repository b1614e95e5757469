"""Accepting a request: the row that makes it durable, written once however often it is sent."""

import contextlib
import itertools
import uuid
from collections.abc import Generator, Iterable, Iterator, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, TypeVar

from sqlalchemy import Connection, func, select
from sqlalchemy.dialects.postgresql import insert

from models import budgets, intake_rows, notices
from models.base import table_of
from models.intake_rows import Found, NewGeneration
from models.lifecycle import Event, Status
from models.tables import DEFAULT_TENANT, Generation

_generations = table_of(Generation)
g = _generations.c
_T = TypeVar("_T")

BATCH = 1_000
"""Requests that one statement stores."""


class IdempotencyConflict(ValueError):
    """The idempotency key, or the id, was used before for a different request."""


@dataclass(frozen=True)
class Accepted:
    """The generation that stands for the request, and whether this call created it."""

    id: uuid.UUID
    created: bool


def accept(conn: Connection, new: NewGeneration) -> Accepted:
    """Store a request, or find the row that it made before.

    Raises IdempotencyConflict where the id or the key stands for a different request, and
    BudgetExceeded.
    """
    return accept_at_once(conn, new) or accept_many(conn, [new])[0]


def accept_at_once(conn: Connection, new: NewGeneration) -> Accepted | None:
    """`accept` in one statement, which needs no transaction around it.

    None, and nothing stored, where the tenant has a budget to be asked: that takes a transaction.
    """
    left_out = intake_rows.store(conn, [new], asking={new.tenant})
    return None if left_out is None else _answers(conn, [new], left_out)[0]


def accept_many(conn: Connection, requests: Sequence[NewGeneration]) -> list[Accepted]:
    """Store many requests, each batch in one statement; the answers are in the order of `requests`.

    Raises IdempotencyConflict, and BudgetExceeded where a tenant's budget does not cover what is
    new of its: none is stored then.
    """
    if not requests:
        return []
    ordered = sorted(requests, key=lambda new: order(new.tenant, new.idempotency_key))
    accepted = accept_ordered(conn, ordered, {new.tenant for new in requests})
    return [accepted[new.id] for new in requests]


def order(tenant: str, idempotency_key: str | None) -> tuple[str, str]:
    """What requests are sorted by before they are stored: over all statements of a transaction,
    and in one way everywhere. Two lists with the same keys must not wait for each other.
    """
    return tenant, idempotency_key or ""


def accept_ordered(
    conn: Connection, requests: Iterable[NewGeneration], tenants: Set[str]
) -> dict[uuid.UUID, Accepted]:
    """`accept_many` of requests in their `order`, which may be made only now: the next batch is
    made, in a thread, while PostgreSQL stores the last. The answers are by id.

    `tenants`: all that they may be of. What making one raises, this raises; none is stored then.
    """
    every: list[NewGeneration] = []
    left_out: set[uuid.UUID] = set()
    # Undone where it is refused, whatever the caller makes of its transaction then.
    with conn.begin_nested():
        held = budgets.hold(conn, tenants)
        with contextlib.closing(_one_ahead(_documents(requests))) as batches:
            for batch, document in batches:
                left_out |= intake_rows.store_document(conn, document)
                every += batch
        accepted = _answers(conn, every, left_out)
        if held:
            budgets.check(conn, _costs(new for new in every if new.id not in left_out))
    return dict(zip((new.id for new in every), accepted, strict=True))


def _documents(
    requests: Iterable[NewGeneration],
) -> Iterator[tuple[list[NewGeneration], str]]:
    rest = iter(requests)
    while batch := list(itertools.islice(rest, BATCH)):
        yield batch, intake_rows.document(batch)


def _one_ahead(items: Iterator[_T]) -> Generator[_T]:
    """The items, each taken from its source while the one before is being used."""
    with ThreadPoolExecutor(1, "intake") as pool:
        following = pool.submit(next, items, None)
        while (item := following.result()) is not None:
            following = pool.submit(next, items, None)
            yield item


def _costs(requests: Iterable[NewGeneration]) -> dict[str, Decimal]:
    costs: dict[str, Decimal] = {}
    for new in requests:
        costs[new.tenant] = costs.get(new.tenant, Decimal(0)) + new.estimated_cost
    return costs


def _answers(
    conn: Connection, requests: Sequence[NewGeneration], left_out: Set[uuid.UUID]
) -> list[Accepted]:
    if not left_out:
        return [Accepted(new.id, created=True) for new in requests]
    found = intake_rows.found(conn, [new for new in requests if new.id in left_out])
    return [
        _same(new, found[new.id]) if new.id in left_out else Accepted(new.id, created=True)
        for new in requests
    ]


def _same(new: NewGeneration, found: Found) -> Accepted:
    if found.request != new.request:
        by = f"id {new.id}" if found.id == new.id else f"idempotency_key {new.idempotency_key!r}"
        raise IdempotencyConflict(
            f"{by} was used before, by generation {found.id}, for a different request;"
            " use a new key for a new request"
        )
    return Accepted(found.id, created=False)


@dataclass(frozen=True)
class RefusedRequest:
    """A request that breaks a bound, kept as a failed generation so that its producer sees why."""

    id: uuid.UUID
    request: dict[str, Any]
    message: str
    code: str = "INVALID_REQUEST"
    tenant: str = DEFAULT_TENANT
    metadata: dict[str, Any] | None = field(default=None)
    notify: dict[str, Any] | None = None


def record_refused(conn: Connection, refused: RefusedRequest) -> bool:
    """Store a request that was refused at the door. False if its id exists already."""
    made = (
        insert(_generations)
        .values(
            id=refused.id,
            status=str(Status.FAILED),
            request=refused.request,
            metadata=refused.metadata,
            notify=refused.notify,
            notified=0 if refused.notify is None else 1,
            tenant=refused.tenant,
            estimated_cost=0,
            credit_cost=0,
            error_code=refused.code,
            error_message=refused.message,
            finished_at=func.now(),
        )
        .on_conflict_do_nothing()
        .returning(g.id)
        .cte("made")
    )
    told = intake_rows.told(made.c.id, Event.REJECT)
    created = conn.execute(select(made.c.id).add_cte(told)).first() is not None
    if created and refused.notify is not None:
        notices.write(conn, [refused.id])
    return created
