"""The Seedance 2.0 API, typed: all seven calls, usable alone.

    from api_client import ClientConfig, ContentItem, GenerationRequest, SeedanceClient

    request = GenerationRequest(content=[ContentItem(type="text", text="A cat")], duration=8)
    with SeedanceClient(ClientConfig(api_key=key)) as client:
        task = client.wait(client.submit(request).task_id)
        print(task.status, task.video_url)

Requests are frozen and checked when built; answers are frozen and keep what they don't know.
Credits are `Decimal`. Errors say what may be done about them: see `api_client.errors`.
"""

from api_client.answers import (
    TERMINAL,
    Balance,
    CancelAnswer,
    Exchange,
    Presigned,
    Submitted,
    Task,
    TaskPage,
    TaskStatus,
    Uploaded,
)
from api_client.client import SeedanceClient
from api_client.config import DEFAULT_BASE_URL, ClientConfig
from api_client.errors import (
    AnswerLost,
    ApiError,
    CancelNotAllowed,
    ConcurrencyLimit,
    ContentRefused,
    Disposition,
    InsufficientCredit,
    InvalidApiKey,
    InvalidRequest,
    NotSent,
    RateLimited,
    SeedanceError,
    StorageRefused,
    TaskNotFound,
    WaitTimeout,
)
from api_client.media import media_type
from api_client.observing import Outcome, RequestSeen
from api_client.pricing import PRICES, ROUNDING, estimate_cost
from api_client.redaction import redact
from api_client.request import ContentItem, GenerationRequest
from api_client.verdicts import classify

__all__ = [
    "DEFAULT_BASE_URL",
    "PRICES",
    "ROUNDING",
    "TERMINAL",
    "AnswerLost",
    "ApiError",
    "Balance",
    "CancelAnswer",
    "CancelNotAllowed",
    "ClientConfig",
    "ConcurrencyLimit",
    "ContentItem",
    "ContentRefused",
    "Disposition",
    "Exchange",
    "GenerationRequest",
    "InsufficientCredit",
    "InvalidApiKey",
    "InvalidRequest",
    "NotSent",
    "Outcome",
    "Presigned",
    "RateLimited",
    "RequestSeen",
    "SeedanceClient",
    "SeedanceError",
    "StorageRefused",
    "Submitted",
    "Task",
    "TaskNotFound",
    "TaskPage",
    "TaskStatus",
    "Uploaded",
    "WaitTimeout",
    "classify",
    "estimate_cost",
    "media_type",
    "redact",
]
