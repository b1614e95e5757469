"""Why a generation is delayed: a reason code, its figures, and the sentence made of both. Pure.

`generations.wait_reason` has the code and `wait_detail` the figures. Queries compare the code; the
sentence is made when it is shown, so rewording it changes no schedule.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from models import storable


class WaitReason(StrEnum):
    """What delays a generation; the values of `generations.wait_reason`."""

    OPERATOR = "operator"
    """An operator's decision (`seedance resolve`)."""
    PAUSE = "pause"
    """A pause; detail: `tenant` (null for all), `why`, `by`."""
    EQUAL_GENERATION = "equal_generation"
    """An equal generation with the same seed; detail: its id as `generation`."""
    BREAKER = "breaker"
    """A rejected key or exhausted credits; detail: `breaker`, perhaps `reason`."""
    RATE = "rate"
    """The request rate; detail: `cause` "request_rate" (the setting, or the discovered rate),
    "throttled" (Retry-After) or "outage" (one probe at a time), perhaps `reason`.
    """
    CONCURRENCY = "concurrency"
    """A free slot; detail: `provider_limit`, or `in_flight`, `ahead` and `slowed_by`."""
    CREDITS = "credits"
    """The account's credits; detail: `needed`, `free`, `on_account`, `under_way`."""
    BUDGET = "budget"
    """The tenant's budget; detail: `tenant`, `period`, `policy`, `limit`, `needed`, `charged`,
    `under_way`, `left`, `resets_at` (null for a total).
    """
    RETRY = "retry"
    """The generation's own retry delay; detail: `code` of the refusal, or `why` it wasn't sent."""
    REFERENCE = "reference"
    """A reference that can't be read or uploaded yet; detail: `error`."""


NO_WAIT: Mapping[str, Any] = {"wait_reason": None, "wait_detail": None}
"""Column values of a generation that nothing delays."""


@dataclass(frozen=True)
class Wait:
    """A reason for a delay with its figures. Amounts of credits are decimal strings."""

    reason: WaitReason
    detail: Mapping[str, Any] | None = None

    def __str__(self) -> str:
        return sentence(self.reason, self.detail)

    @property
    def columns(self) -> dict[str, Any]:
        """Return the column values that store it."""
        return {"wait_reason": str(self.reason), "wait_detail": self._stored_detail()}

    @property
    def event_detail(self) -> dict[str, Any]:
        """Return the detail of a history event that records it."""
        return {name: value for name, value in self.columns.items() if value is not None}

    def _stored_detail(self) -> dict[str, Any] | None:
        if not self.detail:
            return None
        # An error's text comes from the provider: PostgreSQL refuses some of its characters.
        return {
            name: storable.text(value) if isinstance(value, str) else value
            for name, value in self.detail.items()
        }


def retry(why: str) -> Wait:
    """Return the wait of a generation whose POST was not sent."""
    return Wait(WaitReason.RETRY, {"why": why})


REQUEST_RATE = Wait(WaitReason.RATE, {"cause": "request_rate"})

MAY_BE_SHORT_SQL = (
    f"(wait_reason IS NULL OR wait_reason IN ('{WaitReason.CREDITS}', '{WaitReason.BREAKER}',"
    f" '{WaitReason.RATE}', '{WaitReason.CONCURRENCY}', '{WaitReason.RETRY}'))"
)
"""Condition on a row of `generations` that is due: what delayed it is over, credits may be next."""


def sentence(reason: WaitReason, detail: Mapping[str, Any] | None) -> str:
    """Return what operators read after "waits for". Missing figures are left out."""
    d: Mapping[str, Any] = detail or {}
    match reason:
        case WaitReason.OPERATOR:
            return "an operator's decision"
        case WaitReason.PAUSE:
            return _pause(d)
        case WaitReason.EQUAL_GENERATION:
            equal = "an equal generation with the same seed"
            return f"{equal}: {d['generation']}" if d.get("generation") else equal
        case WaitReason.BREAKER:
            opened = f", opened by {d['reason']}" if d.get("reason") else ""
            return f"circuit breaker {d.get('breaker', '')}".rstrip() + opened
        case WaitReason.RATE:
            return _rate(d)
        case WaitReason.CONCURRENCY:
            return _concurrency(d)
        case WaitReason.CREDITS:
            return _credits(d)
        case WaitReason.BUDGET:
            return f"budget: {over_budget(d)}" if "limit" in d else "the tenant's budget"
        case WaitReason.RETRY:
            if d.get("code"):
                return f"a retry after {d['code']}"
            return f"a retry: {d['why']}" if d.get("why") else "a retry"
        case WaitReason.REFERENCE:
            return f"its reference: {d['error']}" if d.get("error") else "its reference"


def _pause(d: Mapping[str, Any]) -> str:
    of = f" of tenant {d['tenant']!r}" if d.get("tenant") else ""
    why = f": {d['why']}" if d.get("why") else ""
    by = f" ({d['by']})" if d.get("by") else ""
    return f"the end of the pause{of}{why}{by}"


def _rate(d: Mapping[str, Any]) -> str:
    after = f" ({d['reason']})" if d.get("reason") else ""
    match d.get("cause"):
        case "throttled":
            return f"the provider, which throttles requests{after}"
        case "outage":
            return f"the end of the provider's outage{after}"
        case _:
            return "the request rate"


def _concurrency(d: Mapping[str, Any]) -> str:
    if d.get("provider_limit") is not None:
        return f"a free slot: the provider takes at most {d['provider_limit']} tasks at a time"
    if d.get("in_flight") is None:
        return "a free slot"
    figures = f"a free slot: {d['in_flight']} in flight, {d['ahead']} ahead of it"
    return ", ".join((figures, *d.get("slowed_by", ())))


def _credits(d: Mapping[str, Any]) -> str:
    if "needed" not in d:
        return "credits"
    return (
        f"credits: {d['needed']} needed, {d['free']} free ({d['on_account']} on the account,"
        f" {d['under_way']} reserved for generations under way)"
    )


def over_budget(d: Mapping[str, Any]) -> str:
    """Return the figures of a budget that doesn't cover a request."""
    each = "" if d["period"] == "total" else f" a {d['period']}"
    return (
        f"{d['needed']} needed, and tenant {d['tenant']!r} may spend {d['limit']}{each}:"
        f" {d['charged']} are charged and {d['under_way']} under way,"
        f" which leaves {d['left']}"
    )
