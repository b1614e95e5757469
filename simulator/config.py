"""What a simulator is told: accounts, speed, limits, and how far it strays from the document.

Every field can be changed while the server runs (`PATCH /admin/config`). The defaults are the
document's own words; everything else is a way in which a real provider may differ from them.
"""

from decimal import Decimal
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

DEFAULT_API_KEY = "sim-key"

Probability = Annotated[float, Field(ge=0, le=1)]
Seconds = Annotated[float, Field(ge=0, le=10**9, allow_inf_nan=False)]

ConcurrencyMode = Literal["created_with_id", "created", "refused"]
CancelMode = Literal["works", "late", "completes"]
ListOrder = Literal["created_desc", "created_asc", "updated_desc", "updated_asc", "random"]
SeedEcho = Literal["used", "given", "null", "minus_one", "string"]


class Config(BaseModel):
    """Settings of one simulator; see each field's description."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True)

    api_keys: list[str] = Field(
        [DEFAULT_API_KEY],
        min_length=1,
        description="Accepted keys. Each has an account of its own; a key taken off is disabled.",
    )
    credits: Decimal = Field(
        Decimal(10_000), allow_inf_nan=False, description="Total credits of each account."
    )
    count_pending: bool = Field(
        False, description="402 also counts the cost of tasks that have not ended yet."
    )
    cost_of_unsuccessful: Literal["zero", "estimate"] = Field(
        "zero", description="`credit_cost` shown for failed, cancelled and expired tasks."
    )

    speed: float = Field(
        1.0, ge=0, le=1e6, description="Simulated seconds per real second; 0 stops all tasks."
    )
    random_seed: int | None = Field(
        None, description="Seed of everything drawn (faults, durations, order); None: any."
    )
    fail_probability: Probability = Field(0.0, description="Share of tasks that end failed.")
    fail_code: str = Field("VIDEO_DOWNLOAD_FAILED", description="Their error_code.")

    max_concurrent: int | None = Field(
        None, ge=0, description="Tasks at work per account; None: no limit."
    )
    concurrency_mode: ConcurrencyMode = Field(
        "created_with_id", description="What CONCURRENCY_LIMIT_REACHED does with the task."
    )
    rate_limit: float | None = Field(None, gt=0, description="Requests per second and account.")
    rate_burst: int = Field(10, ge=1, description="Requests that may come at once.")
    retry_after: str | None = Field("1", description="Retry-After of RATE_LIMIT_EXCEEDED.")

    error_style: Literal["mapped", "ok200"] = Field(
        "mapped",
        description="mapped: HTTP status by the document's table, 200 for codes it doesn't list; "
        "ok200: HTTP 200 for every error, which the document calls the usual case.",
    )
    list_order: ListOrder = Field("created_desc", description="Order of the task list.")
    list_items: Literal["object", "string", "mixed"] = Field(
        "object", description="Whether list items are objects, JSON strings, or now this now that."
    )
    list_lag: Seconds = Field(0.0, description="Real seconds until a task shows in the list.")
    get_lag: Seconds = Field(0.0, description="Real seconds until a task is found by its id.")
    drift_insert: Probability = Field(
        0.0, description="Chance per list call that a phantom task comes into being."
    )
    drift_delete: Probability = Field(
        0.0, description="Chance per list call that a phantom task vanishes."
    )
    drift_update: Probability = Field(
        0.0, description="Chance per list call that some task's updated_at moves to now."
    )
    seed_echo: SeedEcho = Field(
        "used",
        description="`seed` of a task: used (given, or drawn when -1 or absent), given (null when "
        "absent), null, minus_one (-1), string (the used one as text).",
    )
    ratio_echo: Literal["given", "pixels", "decimal"] = Field(
        "given", description="16:9 comes back as 16:9, as 1280x720, or as 1.78:1."
    )
    date_skew: float = Field(
        0.0, ge=-1e6, le=1e6, description="Seconds the Date header is ahead of the real time."
    )
    stamp_skew: float = Field(
        0.0, ge=-1e6, le=1e6, description="Seconds created_at and updated_at are ahead."
    )
    truncate_stamps: bool = Field(
        True, description="Whole seconds in stamps, as in the document; else microseconds."
    )

    cancel_mode: CancelMode = Field(
        "works",
        description="Cancelling a queued or processing task: works at once; late (after "
        "`cancel_delay` simulated seconds); completes (says cancelled, ends completed, charges).",
    )
    cancel_delay: Seconds = Field(5.0, description="Simulated seconds of cancel_mode late.")

    presign_seconds: int = Field(3600, ge=0, description="Validity of a presigned URL.")
    url_seconds: int = Field(7 * 86_400, ge=0, description="Validity of a signed video URL.")
    same_media: bool = Field(
        False, description="All videos, and all last frames, are the same to the byte."
    )
    max_upload_bytes: int = Field(200 * 2**20, ge=0, description="Largest file storage takes.")
