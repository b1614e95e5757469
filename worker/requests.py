"""Requests at the door: the provider's body, in which a medium may name a source to upload first.

Everything is checked here, by whatever way a request comes in; nothing is silently corrected.
"""

import json
import math
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any
from urllib.parse import urlsplit

from api_client import ContentItem, GenerationRequest, InvalidRequest, estimate_cost
from models import storable
from models.budgets import BudgetView, Period, Policy
from models.intake import NewGeneration
from models.tables import DEFAULT_TENANT
from worker import tracing
from worker.notify import check_notify, private_allowed

UPLOADABLE = frozenset({"image_url", "video_url"})
"""Item types whose value may be a source. Audio can't be uploaded (api.md, "Endpoints")."""

SOURCES = ("path:", "https://", "http://", "s3://")
"""How a value begins that names a source. `http://` is for private networks only."""

MAX_REQUEST_BYTES = 256 * 1024
MAX_METADATA_BYTES = 64 * 1024
_MAX_NAME = 200
_SMALLEST = Decimal("0.0001")
_PRIORITY = 32_767
_DEPTH = 100


@dataclass(frozen=True)
class Checked:
    """A request that keeps every documented bound, with every default filled in."""

    body: dict[str, Any]
    has_sources: bool
    estimated_cost: Decimal


def is_source(item_type: str, value: str) -> bool:
    """Whether a content item's value must be uploaded before the provider can read it."""
    return item_type in UPLOADABLE and value.lower().startswith(SOURCES)


def check_request(request: GenerationRequest | Mapping[str, Any]) -> Checked:
    """Check a request. Raises InvalidRequest, which names the field, the value and the bound."""
    if isinstance(request, GenerationRequest):
        checked = request
    elif isinstance(request, Mapping):
        checked = GenerationRequest.model_validate(dict(request))
    else:
        raise InvalidRequest("request", request, "an object: the provider's submit body")
    body = {**checked.body(), "seed": checked.seed, "callback_url": checked.callback_url}
    _check_size("request", body, MAX_REQUEST_BYTES)
    sources = [item for item in checked.content if is_source(item.type, item.value)]
    for item in sources:
        _check_source(item)
    return Checked(body, bool(sources), estimate_cost(checked))


def _check_source(item: ContentItem) -> None:
    value = item.value
    scheme, _, rest = value.partition(":")
    if not rest.strip("/ "):
        raise InvalidRequest(item.type, value, f"a file after {scheme}:")
    if "\x00" in value or any(part == ".." for part in rest.split("/")):
        raise InvalidRequest(item.type, value, "a plain path, without .. in it")
    try:
        urlsplit(value)
    except ValueError:
        raise InvalidRequest(item.type, value, "an address that can be read") from None


def new_generation(
    request: GenerationRequest | Mapping[str, Any],
    *,
    generation_id: uuid.UUID | None = None,
    idempotency_key: str | None = None,
    priority: int = 0,
    tenant: str | None = None,
    metadata: Mapping[str, Any] | None = None,
    notify: Any = None,
    deadline: datetime | None = None,
    private_webhooks: bool | None = None,
) -> NewGeneration:
    """Check everything that a producer may give. Raises InvalidRequest.

    `private_webhooks`: whether `notify` may name private addresses; by default the environment
    says so.
    """
    checked = check_request(request)
    if isinstance(priority, bool) or not isinstance(priority, int) or abs(priority) > _PRIORITY:
        raise InvalidRequest(
            "priority", priority, f"a whole number from -{_PRIORITY} to {_PRIORITY}"
        )
    if metadata is not None and not isinstance(metadata, Mapping):
        raise InvalidRequest("metadata", metadata, "an object, or nothing")
    if metadata is not None:
        _check_size("metadata", dict(metadata), MAX_METADATA_BYTES)
    if deadline is not None and deadline.tzinfo is None:
        raise InvalidRequest("deadline", deadline, "a time with its zone")
    if deadline is not None and storable.instant(deadline) is None:
        raise InvalidRequest("deadline", deadline, "a time between 1970 and 9000")
    return NewGeneration(
        id=generation_id or uuid.uuid4(),
        request=checked.body,
        estimated_cost=checked.estimated_cost,
        has_sources=checked.has_sources,
        tenant=_name("tenant", tenant) or DEFAULT_TENANT,
        priority=priority,
        idempotency_key=_name("idempotency_key", idempotency_key),
        metadata=None if metadata is None else dict(metadata),
        deadline=deadline,
        trace=tracing.current(),
        notify=check_notify(
            notify, private=private_allowed() if private_webhooks is None else private_webhooks
        ),
    )


def check_tenant(tenant: str | None) -> str | None:
    """A tenant's name, or None. Raises InvalidRequest."""
    return _name("tenant", tenant)


def new_budget(tenant: str, period: str, amount: str | Decimal, policy: str) -> BudgetView:
    """Check a budget. Raises InvalidRequest."""
    if policy not in list(Policy):
        raise InvalidRequest("policy", policy, " or ".join(Policy))
    checked = check_tenant(tenant)
    if checked is None:
        raise InvalidRequest("tenant", tenant, "the name of a tenant")
    return BudgetView(checked, check_period(period), _amount(amount), Policy(policy))


def check_period(period: str) -> Period:
    """A period by its name. Raises InvalidRequest."""
    if period not in list(Period):
        raise InvalidRequest("period", period, ", ".join(Period))
    return Period(period)


def _amount(given: str | Decimal) -> Decimal:
    try:
        amount = Decimal(given)
    except (ArithmeticError, ValueError):
        amount = Decimal("NaN")
    kept = amount.is_finite() and 0 <= amount < storable.MOST_CREDITS
    if not kept or amount != amount.quantize(_SMALLEST):
        raise InvalidRequest(
            "amount", given, f"credits from 0 to under {storable.MOST_CREDITS}, of 4 decimals"
        )
    return amount


def _name(field: str, value: Any) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or not 0 < len(value) <= _MAX_NAME or not value.isprintable():
        raise InvalidRequest(field, value, f"printable text of 1 to {_MAX_NAME} characters")
    return value


def _check_size(field: str, value: Mapping[str, Any], most: int) -> None:
    _check_json(field, value)
    size = len(json.dumps(value).encode())
    if size > most:
        raise InvalidRequest(field, f"{size} bytes of JSON", f"at most {most} bytes")


def _check_json(field: str, value: Any, depth: int = 0) -> None:
    """What PostgreSQL's jsonb can keep: no NUL, no lone surrogate, no NaN, and text as keys."""
    if depth > _DEPTH:
        raise InvalidRequest(field, "lists or objects in one another", f"at most {_DEPTH} levels")
    match value:
        case None | bool() | int():
            return
        case str():
            if "\x00" in value or any("\ud800" <= c <= "\udfff" for c in value):
                raise InvalidRequest(field, "text with NUL or half a character", "Unicode text")
        case float():
            if not math.isfinite(value):
                raise InvalidRequest(field, value, "a finite number")
        case Mapping():
            for key, inner in value.items():
                if not isinstance(key, str):
                    raise InvalidRequest(field, key, "text as a key")
                _check_json(field, key)
                _check_json(f"{field}.{key}"[:80], inner, depth + 1)
        case Sequence() if not isinstance(value, bytes):
            for inner in value:
                _check_json(field, inner, depth + 1)
        case _:
            raise InvalidRequest(field, type(value).__name__, "a JSON value")
