"""Accept: a message from any Celery client becomes a row, once, under the message's own id."""

import json
import logging
import uuid
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from api_client import InvalidRequest
from models import intake, storable
from models.budgets import BudgetExceeded
from models.intake import IdempotencyConflict, RefusedRequest
from models.tables import DEFAULT_TENANT
from worker import rejects
from worker.crash_points import reached
from worker.notify import check_notify
from worker.requests import check_options, new_generation
from worker.runtime import Runtime

log = logging.getLogger(__name__)

OPTIONS = frozenset({"idempotency_key", "priority", "tenant", "metadata", "notify", "deadline"})


def run(rt: Runtime, message_id: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Store the request that a `seedance.generate` message carries.

    A request that breaks a bound is recorded as a failed generation with INVALID_REQUEST; what
    is no request at all is set aside.
    """
    try:
        generation_id = uuid.UUID(message_id)
    except (ValueError, TypeError, AttributeError):
        rejects.store(rt, f"its task id {str(message_id)[:80]!r} is not a UUID", kwargs)
        return
    request = kwargs.get("request")
    if not isinstance(request, Mapping):
        rejects.store(
            rt, f"message {generation_id} has no keyword `request` with an object", kwargs
        )
        return
    options = {name: value for name, value in kwargs.items() if name != "request"}
    reached("accept.before_commit")
    try:
        _check_options(args, options)
        new = new_generation(
            request,
            generation_id=generation_id,
            private_webhooks=rt.settings.allow_private_webhooks,
            **{**options, "deadline": _deadline(options)},
        )
        with rt.engine.begin() as conn:
            accepted = intake.accept(conn, new)
        if accepted.id != generation_id:
            log.info(
                "message %s repeats idempotency key %r: it is generation %s",
                generation_id,
                new.idempotency_key,
                accepted.id,
            )
    except InvalidRequest as error:
        _refuse(rt, generation_id, request, options, "INVALID_REQUEST", str(error))
    except IdempotencyConflict as error:
        _refuse(rt, generation_id, request, options, "IDEMPOTENCY_CONFLICT", str(error))
    except BudgetExceeded as error:
        _refuse(rt, generation_id, request, options, "BUDGET_EXCEEDED", str(error))
    reached("accept.after_commit")


def _check_options(args: Sequence[Any], options: Mapping[str, Any]) -> None:
    allowed = f"only the keywords request, {', '.join(sorted(OPTIONS))}"
    if args:
        raise InvalidRequest("positional arguments", list(args), allowed)
    for name in sorted(options.keys() - OPTIONS):
        raise InvalidRequest(name, options[name], allowed)


def _deadline(options: Mapping[str, Any]) -> datetime | None:
    value = options.get("deadline")
    if value is None:
        return None
    try:
        return datetime.fromisoformat(value)
    except (TypeError, ValueError):
        raise InvalidRequest("deadline", value, "a time in ISO 8601 with its zone") from None


def _refuse(
    rt: Runtime,
    generation_id: uuid.UUID,
    request: Mapping[str, Any],
    options: Mapping[str, Any],
    code: str,
    message: str,
) -> None:
    # Not the message, which quotes what was asked for.
    log.info("generation %s is refused at the door: %s", generation_id, code)
    with rt.engine.begin() as conn:
        intake.record_refused(
            conn,
            RefusedRequest(
                generation_id,
                _storable(request),
                storable.text(message) or "",
                code=code,
                tenant=_in_order(options, "tenant") or DEFAULT_TENANT,
                metadata=_in_order(options, "metadata"),
                notify=_notify(rt, options),
            ),
        )


def _in_order(options: Mapping[str, Any], name: str) -> Any:
    """An option by which its producer knows it, if that at least is in order; else None."""
    given: dict[str, Any] = {name: options.get(name)}
    try:
        return getattr(check_options(**given), name)
    except InvalidRequest:
        return None


def _notify(rt: Runtime, options: Mapping[str, Any]) -> dict[str, Any] | None:
    """Whom to tell of the refusal, if that at least is in order."""
    try:
        return check_notify(options.get("notify"), private=rt.settings.allow_private_webhooks)
    except InvalidRequest:
        return None


def _storable(request: Mapping[str, Any]) -> dict[str, Any]:
    """The request as it came, if jsonb can keep it; else what can be shown of it."""
    try:
        text = json.dumps(request, allow_nan=False)
        text.encode()
        if "\\u0000" not in text and "\\ud" not in text.lower() and len(text) < rejects.MOST_BYTES:
            kept: dict[str, Any] = json.loads(text)
            return kept
    except (ValueError, TypeError, RecursionError):
        pass
    return {"unstorable": ascii(request)[:1000].replace("\\", "/")}
