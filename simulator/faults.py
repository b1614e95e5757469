"""Faults that were ordered: which request gets one, and how often."""

import random
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from simulator.effects import Effect, build

Endpoint = Literal[
    "presign", "put", "submit", "get", "list", "cancel", "balance", "cdn", "callback", "*"
]


class FaultOrder(BaseModel):
    """What `POST /admin/faults` takes."""

    model_config = ConfigDict(extra="forbid")

    endpoint: Endpoint
    kind: str
    times: Annotated[int, Field(ge=1)] | None = Field(None, description="How often; None: always.")
    probability: Annotated[float, Field(ge=0, le=1)] = Field(
        1.0, description="Chance for each request that matches."
    )
    after: int = Field(0, ge=0, description="Let this many matching requests pass first.")
    match: str | None = Field(
        None, description="Only requests with this text in body, query, path or prompt."
    )
    api_key: str | None = Field(None, description="Only requests with this key.")
    younger_than: float | None = Field(
        None, description="Only for tasks created less than this many real seconds ago."
    )
    first: int | None = Field(
        None, ge=1, description="Only the first N matching requests for each task (or upload)."
    )
    params: dict[str, Any] = Field(default_factory=dict, description="Parameters of the kind.")

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, data: Any) -> Any:
        # {"kind": "delay_after", "seconds": 3} means {"params": {"seconds": 3}}.
        if isinstance(data, dict):
            extra = {name: data[name] for name in data if name not in cls.model_fields}
            if extra:
                known = {name: data[name] for name in data if name in cls.model_fields}
                return {**known, "params": {**extra, **known.get("params", {})}}
        return data

    @field_validator("kind")
    @classmethod
    def _known(cls, kind: str) -> str:
        build(kind, {})
        return kind


@dataclass(frozen=True, slots=True)
class Subject:
    """What a fault may look at in a request."""

    endpoint: str
    api_key: str | None = None
    text: str = ""
    task_id: str | None = None
    age: float | None = None


@dataclass(slots=True)
class Fault:
    """An order and what became of it."""

    fault_id: int
    order: FaultOrder
    effect: Effect
    matched: int = 0
    hits: int = 0
    per_task: dict[str, int] = field(default_factory=dict)

    def view(self) -> dict[str, Any]:
        """As the admin API shows it."""
        return {
            "id": self.fault_id,
            **self.order.model_dump(exclude_none=True),
            "matched": self.matched,
            "hits": self.hits,
        }

    def applies(self, subject: Subject, rng: random.Random) -> bool:
        """Whether this request gets the fault; counts it if so."""
        order = self.order
        if order.endpoint not in (subject.endpoint, "*"):
            return False
        if order.times is not None and self.hits >= order.times:
            return False
        if order.api_key is not None and order.api_key != subject.api_key:
            return False
        if order.match is not None and order.match not in subject.text:
            return False
        if order.younger_than is not None and not (
            subject.age is not None and subject.age < order.younger_than
        ):
            return False
        if order.first is not None:
            name = subject.task_id or subject.text
            self.per_task[name] = self.per_task.get(name, 0) + 1
            if self.per_task[name] > order.first:
                return False
        self.matched += 1
        if self.matched <= order.after:
            return False
        # Drawn for every request that matches, so that a seeded run can be replayed.
        if order.probability < 1 and rng.random() >= order.probability:
            return False
        self.hits += 1
        return True


class FaultBook:
    """All orders; the first one that applies to a request is the one it gets."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._faults: list[Fault] = []
        self._count = 0

    def order(self, order: FaultOrder) -> Fault:
        """Take an order. Raises ValueError when its parameters make no sense."""
        effect = build(order.kind, order.params)
        self._count += 1
        fault = Fault(self._count, order, effect)
        self._faults.append(fault)
        return fault

    def pick(self, subject: Subject) -> Fault | None:
        """The fault that this request gets, if any."""
        for fault in self._faults:
            if fault.applies(subject, self._rng):
                return fault
        return None

    def view(self) -> list[dict[str, Any]]:
        """Every order, with its counts."""
        return [fault.view() for fault in self._faults]

    def clear(self, fault_id: int | None = None) -> int:
        """Drop one order, or all; answers how many there were."""
        kept = [f for f in self._faults if fault_id is not None and f.fault_id != fault_id]
        gone = len(self._faults) - len(kept)
        self._faults = kept
        return gone

    def __bool__(self) -> bool:
        return bool(self._faults)
