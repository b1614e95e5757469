"""The provider's answers, typed and tolerant.

Unknown fields are kept (`model_extra`), unknown statuses are kept and count as not terminal. A
field that is not needed and can't be read costs only itself: it becomes None, and what stood there
is in `unread_fields`. Credits are `Decimal`, times are aware and in UTC.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Annotated, Any, ClassVar, Final, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    model_validator,
)

from api_client.envelope import loads
from api_client.redaction import redact_all

_MOST_CREDITS: Final = Decimal(10) ** 15
_FINEST_CREDIT: Final = -12


class TaskStatus(enum.StrEnum):
    """The statuses that the document knows (section "Task Status")."""

    PENDING = "pending"
    QUEUED = "queued"
    PROCESSING = "processing"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


TERMINAL: Final = frozenset(
    {TaskStatus.COMPLETED, TaskStatus.FAILED, TaskStatus.CANCELLED, TaskStatus.EXPIRED}
)


@dataclass(frozen=True, slots=True)
class Exchange:
    """When a request was made and answered; what clock skew can be told from."""

    sent: float
    """`time.monotonic()` just before the first byte of the request was written."""
    received: float
    """`time.monotonic()` just after the head of the answer had arrived."""
    date: datetime | None
    """The answer's Date header, in UTC. It is cut to whole seconds."""
    http_status: int


def _number(value: Any) -> Any:
    if isinstance(value, bool):
        # bool is an int in Python, but not in the provider's document.
        raise ValueError("not a number")  # noqa: TRY004 - pydantic wants a ValueError
    return value


def _credits(value: Decimal) -> Decimal:
    # What a ledger can hold; 1e999999 is a valid Decimal as well.
    exponent = value.as_tuple().exponent
    if not isinstance(exponent, int) or exponent < _FINEST_CREDIT or abs(value) >= _MOST_CREDITS:
        raise ValueError("not an amount of credits")
    return value


def _utc(value: datetime) -> datetime:
    # A stamp without a zone is read as UTC: all stamps in the document end in Z.
    try:
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
    except OverflowError:
        raise ValueError("not a time in UTC") from None


Credits = Annotated[Decimal, BeforeValidator(_number), AfterValidator(_credits)]
Number = Annotated[int, BeforeValidator(_number)]
Moment = Annotated[datetime, AfterValidator(_utc)]
Name = Annotated[str, Field(min_length=1, pattern=r"\S")]


class Answer(BaseModel):
    """What all answers share."""

    model_config = ConfigDict(frozen=True, extra="allow", coerce_numbers_to_str=True)

    needed: ClassVar[frozenset[str]] = frozenset()
    """Fields without which the answer is of no use."""

    exchange: Exchange | None = Field(default=None, exclude=True, repr=False)
    unread_fields: dict[str, Any] = Field(default_factory=dict, exclude=True, repr=False)
    """Fields that were there and could not be read, as they came."""

    @model_validator(mode="wrap")
    @classmethod
    def _set_aside(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            return handler(data)
        except ValidationError as error:
            bad = {str(item["loc"][0]) for item in error.errors() if item["loc"]}
            if not isinstance(data, dict) or not bad or bad & cls.needed:
                raise
        kept = {name: value for name, value in data.items() if name not in bad}
        unread = {name: data[name] for name in bad if name in data}
        return handler({**kept, "unread_fields": unread})

    def __repr_args__(self) -> Any:
        # Signed URLs are keys while they live. Rich prints by these as well.
        return [(name, redact_all(value)) for name, value in super().__repr_args__()]


class Submitted(Answer):
    """A task that the provider has accepted. `credit_cost` is its own figure, in credits."""

    needed = frozenset({"task_id"})

    task_id: Name
    status: str = TaskStatus.PENDING
    credit_cost: Credits | None = None


class Task(Answer):
    """A task as the provider sees it (section "Query Task Status")."""

    needed = frozenset({"task_id", "status"})

    task_id: Name
    status: Name
    """One of `TaskStatus`, or one that the document does not know yet."""
    model: str | None = None
    resolution: str | None = None
    ratio: str | None = None
    duration: Number | None = None
    """Seconds."""
    generate_audio: bool | None = None
    seed: Number | None = None
    video_url: str | None = None
    """Signed, lives seven days; a later `get` may return a fresh one."""
    last_frame_url: str | None = None
    error_code: str | None = None
    error_message: str | None = None
    credit_cost: Credits | None = None
    """Credits. Taken only if the task completes."""
    created_at: Moment | None = None
    updated_at: Moment | None = None

    @property
    def terminal(self) -> bool:
        """True once the status will not change any more; False for an unknown status."""
        return self.status in TERMINAL


class TaskPage(Answer):
    """One page of the task list. The order is undocumented, and pages drift."""

    needed = frozenset({"data", "unreadable"})

    data: tuple[Task, ...]
    unreadable: tuple[Any, ...] = ()
    """Items that are no task, as they came: one of them does not cost the page."""
    total: Number | None = None
    page: Number | None = None
    page_size: Number | None = None

    @model_validator(mode="before")
    @classmethod
    def _read_items(cls, result: Any) -> Any:
        # The document's example shows items as JSON strings.
        items = result.get("data") if isinstance(result, dict) else None
        if not isinstance(items, list | tuple):
            return result
        tasks, unreadable = [], []
        for item in items:
            try:
                tasks.append(Task.model_validate(loads(item) if isinstance(item, str) else item))
            except ValueError:
                unreadable.append(item)
        return {**result, "data": tasks, "unreadable": unreadable}


class Presigned(Answer):
    """Where to PUT a file (section "Get Presigned Upload URL"). The URL is a secret."""

    needed = frozenset({"presigned_url", "file_path"})

    presigned_url: Annotated[str, Field(pattern=r"(?i)^https?://[^/?#]+")]
    file_path: Name
    """What a content item refers to the file by."""
    expires_in: Number | None = None
    """Seconds."""


@dataclass(frozen=True, slots=True)
class Uploaded:
    """A file that is in the provider's storage."""

    file_path: str
    """The value for an `image_url` or `video_url` item."""
    sha256: str
    """Of what was sent, in hex."""
    size: int
    """Bytes."""
    content_type: str


class CancelAnswer(Answer):
    """A hint only: a queued or processing task may still complete, and be charged."""

    task_id: str | None = None
    status: str | None = None


class Balance(Answer):
    """The account, in credits (section "Balance Query")."""

    needed = frozenset({"remain_credits"})

    remain_credits: Credits
    total_credits: Credits | None = None
    used_credits: Credits | None = None
