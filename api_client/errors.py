"""Everything that this package raises on purpose.

    SeedanceError
    ├── InvalidRequest         refused here, before anything was sent
    ├── WaitTimeout            `wait` gave up waiting; the task goes on
    └── ApiError               a call did not end in its result
        ├── NotSent            nothing of the request left this machine (DNS, connect, TLS, …)
        ├── AnswerLost         sent, and then no complete answer came back
        ├── InvalidApiKey      401
        ├── InsufficientCredit 402
        ├── ContentRefused     moderation, copyright or privacy: final, do not try again
        ├── TaskNotFound       404
        ├── CancelNotAllowed   the task is past cancelling
        ├── RateLimited        429 or 503: too many requests, or a busy service
        ├── ConcurrencyLimit   too many tasks at once; "task is queued"
        └── StorageRefused     the storage refused an upload

What may be done about each is `error.disposition`. Exceptions hold neither the API key nor the
query of a URL, and no cause that would.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Any

from api_client.redaction import shown

if TYPE_CHECKING:
    from api_client.answers import Exchange, Task


class Disposition(enum.Enum):
    """What a caller may do about an error."""

    PERMANENT = "permanent"
    """The same call will fail again."""
    RETRY = "retry"
    """Refused, never sent, or harmless to repeat: call again, later."""
    AMBIGUOUS = "ambiguous"
    """What it did is unknown: find out first (the task list after a submit, a `get` after a
    cancel), since repeating it may cost twice."""
    HOLD = "hold"
    """The work is sound, the account isn't: keep the work, send nothing until that is mended."""


class SeedanceError(Exception):
    """The root of all errors of this package."""

    disposition: Disposition = Disposition.PERMANENT
    retry_after: float | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        # Exceptions with keyword arguments do not survive pickling by themselves.
        return _rebuild, (type(self), self.args, self.__dict__)


class Missing:
    """The value of a field that was not given."""

    def __repr__(self) -> str:
        return "missing"


def _rebuild(
    kind: type[SeedanceError], args: tuple[Any, ...], state: dict[str, Any]
) -> SeedanceError:
    error = kind.__new__(kind, *args)
    error.__dict__.update(state)
    return error


class InvalidRequest(SeedanceError):
    """A value breaks a documented bound. Nothing was sent.

    It is not a `ValueError`, so that it leaves pydantic's validation as it is.
    """

    def __init__(self, field: str, value: Any, allowed: str, *, more: tuple[str, ...] = ()) -> None:
        self.field = field
        self.value = value
        self.allowed = allowed
        self.problems = (f"{field} is {shown(value)}; allowed: {allowed}", *more)
        """One line for each thing that is wrong."""
        super().__init__("; ".join(self.problems))


class WaitTimeout(SeedanceError):
    """`wait` reached its timeout. `task` is what was last seen, if anything was."""

    disposition = Disposition.RETRY

    def __init__(self, task_id: str, timeout: float, task: Task | None) -> None:
        self.task_id = task_id
        self.task = task
        status = task.status if task else "never seen"
        super().__init__(f"task {task_id} is {status} after {timeout:g} s")


class ApiError(SeedanceError):
    """A call did not end in its result."""

    def __init__(
        self,
        message: str,
        *,
        endpoint: str,
        disposition: Disposition,
        code: str = "",
        http_status: int | None = None,
        retry_after: float | None = None,
        task_id: str | None = None,
        exchange: Exchange | None = None,
    ) -> None:
        self.endpoint = endpoint
        """submit, get, list, cancel, presign, balance or storage."""
        self.code = code
        """The provider's code, "" where the answer had none of the provider's envelope."""
        self.http_status = http_status
        """None where no answer came."""
        self.message = message
        """The provider's message, or what went wrong on the way."""
        self.disposition = disposition
        self.retry_after = retry_after
        """Seconds that the server asked to wait."""
        self.task_id = task_id
        """A task id that stood in the answer all the same."""
        self.exchange = exchange
        status = f"HTTP {http_status}" if http_status is not None else ""
        label = " ".join(part for part in (status, code) if part)
        super().__init__(f"{endpoint}: {label + ': ' if label else ''}{message}")


class NotSent(ApiError):
    """Nothing of the request was written: it can't have had an effect."""


class AnswerLost(ApiError):
    """The request was written, wholly or in part, and no complete answer came back."""


class InvalidApiKey(ApiError):
    """The key is unknown, disabled or missing."""


class InsufficientCredit(ApiError):
    """The balance does not cover the task."""


class ContentRefused(ApiError):
    """The provider refused the content. That is final: not to be repeated, nor reworded."""


class TaskNotFound(ApiError):
    """No such task for this key, or not visible yet."""


class CancelNotAllowed(ApiError):
    """The task can't be cancelled in its present status: `get` tells which that is."""


class RateLimited(ApiError):
    """Too many requests, or a busy service."""


class ConcurrencyLimit(ApiError):
    """Too many tasks at once. The provider says "task is queued": it may exist."""


class StorageRefused(ApiError):
    """The storage answered an upload with anything but success."""
