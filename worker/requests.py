"""Requests at the door: the provider's body, in which a medium may name a source to upload first.

Everything is checked here, by whatever way a request comes in; nothing is silently corrected.
"""

import json
import math
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from functools import lru_cache
from typing import Any, Final, get_args
from urllib.parse import urlsplit

from api_client import GenerationRequest, InvalidRequest, estimate_cost
from api_client.request import ContentType
from models import storable
from models.budgets import BudgetView, Period, Policy
from models.intake_rows import NewGeneration
from models.tables import DEFAULT_TENANT
from worker import tracing
from worker.notify import check_notify, private_allowed

CONTENT_TYPES: Final = frozenset(get_args(ContentType))

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
_MOST_DIGITS = 10**1_000
"""Python writes and reads numbers of up to 4,300 digits, and others fewer."""


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
        if (known := _as_known(request)) is not None:
            return known
        checked = GenerationRequest.model_validate(dict(request))
    else:
        raise InvalidRequest("request", request, "an object: the provider's submit body")
    return _checked(checked)


def _checked(checked: GenerationRequest) -> Checked:
    body = {**checked.body(), "seed": checked.seed, "callback_url": checked.callback_url}
    _check_size("request", body, MAX_REQUEST_BYTES)
    sources = {
        place: item
        for place, item in enumerate(checked.content)
        if is_source(item.type, item.value)
    }
    for place, item in sources.items():
        _check_source(f"content.{place}.{item.type}", item.value)
    return Checked(body, bool(sources), estimate_cost(checked))


_SCALARS = frozenset({str, int, bool, type(None)})
_ITEM_BYTES = 64
"""At least what an item takes as JSON beside its value."""
_CHARACTER_BYTES = 12
"""The most that a character takes as JSON, as two escaped halves."""


def _as_known(request: Mapping[str, Any]) -> Checked | None:
    """What the whole check would say, by a tenth of its cost, of a plain request whose options
    (all but `content`) were found good before. None: check it all.
    """
    content = request.get("content")
    if type(content) is not list or not content:
        return None
    items = []
    size = 0
    for item in content:
        if type(item) is not dict or len(item) != 2:
            return None
        kind = item.get("type")
        if type(kind) is not str or kind not in CONTENT_TYPES:
            return None
        value = item.get(kind)
        if type(value) is not str or not value or not _is_text(value) or is_source(kind, value):
            return None
        size += _ITEM_BYTES + _CHARACTER_BYTES * len(value)
        items.append({"type": kind, kind: value})
    options = tuple((name, type(v), v) for name, v in request.items() if name != "content")
    if not all(kind in _SCALARS for _, kind, _ in options):
        return None
    try:
        known = _known(options)
    except InvalidRequest:
        return None  # told by the whole check, beside what else may be wrong
    if size + known.size > MAX_REQUEST_BYTES:
        return None
    return Checked({**known.body, "content": items}, has_sources=False, estimated_cost=known.cost)


@dataclass(frozen=True)
class _Known:
    body: dict[str, Any]
    cost: Decimal
    size: int
    """As JSON, in bytes."""


# By type too: 5 and 5.0, or 1 and True, are the same key, and not equally good.
@lru_cache(maxsize=1024)
def _known(options: tuple[tuple[str, type, Any], ...]) -> _Known:
    given = {name: value for name, _, value in options}
    checked = _checked(
        GenerationRequest.model_validate({**given, "content": [{"type": "text", "text": "x"}]})
    )
    return _Known(checked.body, checked.estimated_cost, len(json.dumps(checked.body)))


def _is_text(value: str) -> bool:
    """What PostgreSQL can keep: no NUL, no half of a surrogate pair."""
    if "\x00" in value:
        return False
    if value.isascii():
        return True
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _check_source(field: str, value: str) -> None:
    scheme, _, rest = value.partition(":")
    if not rest.strip("/ "):
        raise InvalidRequest(field, value, f"a file after {scheme}:")
    if "\x00" in value or any(part == ".." for part in rest.split("/")):
        raise InvalidRequest(field, value, "a plain path, without .. in it")
    try:
        urlsplit(value)
    except ValueError:
        raise InvalidRequest(field, value, "an address that can be read") from None


@dataclass(frozen=True)
class Options:
    """What a producer may say beside the request and its key: checked, the same for many."""

    tenant: str
    priority: int
    metadata: dict[str, Any] | None
    notify: dict[str, Any] | None
    deadline: datetime | None
    trace: str | None
    """Where the producer is."""


def check_options(
    *,
    priority: int = 0,
    tenant: str | None = None,
    metadata: Mapping[str, Any] | None = None,
    notify: Any = None,
    deadline: datetime | None = None,
    private_webhooks: bool | None = None,
) -> Options:
    """Check what is beside the request. Raises InvalidRequest.

    `private_webhooks`: whether `notify` may name private addresses; by default the environment
    says so.
    """
    if isinstance(priority, bool) or not isinstance(priority, int) or abs(priority) > _PRIORITY:
        raise InvalidRequest(
            "priority", priority, f"a whole number from -{_PRIORITY} to {_PRIORITY}"
        )
    if metadata is not None and not isinstance(metadata, Mapping):
        raise InvalidRequest("metadata", metadata, "an object, or nothing")
    if metadata is not None:
        _check_size("metadata", dict(metadata), MAX_METADATA_BYTES)
    if deadline is not None and not (
        isinstance(deadline, datetime) and deadline.utcoffset() is not None
    ):
        raise InvalidRequest("deadline", deadline, "a datetime with its zone")
    if deadline is not None and storable.instant(deadline) is None:
        raise InvalidRequest("deadline", deadline, "a time between 1970 and 9000")
    return Options(
        tenant=_name("tenant", tenant) or DEFAULT_TENANT,
        priority=priority,
        metadata=None if metadata is None else dict(metadata),
        notify=check_notify(
            notify, private=private_allowed() if private_webhooks is None else private_webhooks
        ),
        deadline=deadline,
        trace=tracing.current(),
    )


def with_options(
    request: GenerationRequest | Mapping[str, Any],
    options: Options,
    *,
    generation_id: uuid.UUID | None = None,
    idempotency_key: str | None = None,
) -> NewGeneration:
    """A generation of a request, which is checked here. Raises InvalidRequest."""
    checked = check_request(request)
    return NewGeneration(
        id=generation_id or uuid.uuid4(),
        request=checked.body,
        estimated_cost=checked.estimated_cost,
        has_sources=checked.has_sources,
        tenant=options.tenant,
        priority=options.priority,
        idempotency_key=_name("idempotency_key", idempotency_key),
        metadata=options.metadata,
        deadline=options.deadline,
        notify=options.notify,
        trace=options.trace,
    )


def new_generation(
    request: GenerationRequest | Mapping[str, Any],
    *,
    generation_id: uuid.UUID | None = None,
    idempotency_key: str | None = None,
    **options: Any,
) -> NewGeneration:
    """Check everything that a producer may give; `options` are those of `check_options`. Raises
    InvalidRequest.
    """
    return with_options(
        request,
        check_options(**options),
        generation_id=generation_id,
        idempotency_key=idempotency_key,
    )


def check_id(generation_id: uuid.UUID | str) -> uuid.UUID:
    """A generation's id; as text too, as Celery and notices give it. Raises InvalidRequest."""
    if isinstance(generation_id, uuid.UUID):
        return generation_id
    try:
        return uuid.UUID(generation_id)
    except (ValueError, TypeError, AttributeError):
        raise InvalidRequest("generation_id", generation_id, "a UUID, or its text") from None


def check_key(idempotency_key: str | None) -> str | None:
    """An idempotency key, or None. Raises InvalidRequest."""
    return _name("idempotency_key", idempotency_key)


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
        case None | bool():
            return
        case int():
            if abs(value) >= _MOST_DIGITS:
                raise InvalidRequest(field, "a longer number", "a number of up to 1,000 digits")
        case str():
            if not _is_text(value):
                raise InvalidRequest(field, "text with NUL or half a character", "Unicode text")
        case float():
            if not math.isfinite(value):
                raise InvalidRequest(field, value, "a finite number")
        case dict():
            for key, inner in value.items():
                if not isinstance(key, str):
                    raise InvalidRequest(field, key, "text as a key")
                _check_json(field, key)
                _check_json(f"{field}.{key}"[:80], inner, depth + 1)
        case list() | tuple():
            for place, inner in enumerate(value):
                _check_json(f"{field}.{place}"[:80], inner, depth + 1)
        case _:
            raise InvalidRequest(
                field,
                type(value).__name__,
                "a JSON value: text, number, true, false, null, list, dict",
            )
