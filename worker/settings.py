"""The service's settings: from the environment, typed, checked when read, documented here once.

The README's table is held against this class by a test.
"""

import os
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from models.database import normalise_url
from models.submission import Timing
from worker import broker_address
from worker.archive import address as archive_address
from worker.variables import FILES, PREFIX, SECRET, SettingsError, secret
from worker.webhook_secrets import FEWEST_BYTES, MOST_BYTES, is_webhook_secret

OUTSIDE = frozenset(
    {
        "SEEDANCE_HEARTBEAT_FILE",
        "SEEDANCE_DATA_DIR",
        "SEEDANCE_OPERATOR",
        "SEEDANCE_CRASH_AT",
        "SEEDANCE_CRASH_BY",
        "SEEDANCE_CRASH_ONCE",
    }
)
"""Variables with our prefix that are read elsewhere."""

MOST_CLASSES = 50
"""Classes of tenants: each is one more series of many metrics."""

_SHORTEST_TOKEN = 16
_DAY = 86_400.0
_LONGEST_PUBLIC_URL = 400
"""A `callback_url` has up to 512 characters, of which ours adds up to 96."""

Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Settings(BaseSettings):
    """Everything that can be set, each as `SEEDANCE_<NAME>`; times are in seconds."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="ignore")

    api_key: SecretStr = Field(description="The provider's key. Needed by workers.")
    api_base_url: str = Field(
        "https://api.seedance2.movie", description="Where the provider's API is."
    )
    database_url: str = Field(
        description="PostgreSQL: `postgresql+psycopg://user:password@host/database`.", repr=False
    )
    broker_url: str = Field(
        "redis://127.0.0.1:6379/0",
        description="Celery's broker: Valkey or Redis (`redis://`, `rediss://`), the same behind"
        " sentinels (`sentinel://a:26379;sentinel://b:26379/0?master_name=NAME`), or RabbitMQ"
        " (`amqp://`, `amqps://`).",
        repr=False,
    )
    send_budget: Seconds = Field(
        10.0, description="B: the longest age of an intent at which its POST may still be sent."
    )
    late_creation: Seconds = Field(
        60.0,
        description="K: the longest time from sending until the provider may still create the"
        " task, client time-outs notwithstanding.",
    )
    list_lag: float = Field(
        15.0,
        ge=0,
        allow_inf_nan=False,
        description="L: the longest lag until a created task shows in the list.",
    )
    settle_margin: float = Field(
        5.0,
        ge=0,
        allow_inf_nan=False,
        description="Added to B + K + L before an unknown outcome is resolved.",
    )
    key_exclusive: bool = Field(
        False,
        description="Nobody but this service uses the API key. Allows lost answers with a seed"
        " fixed by the producer to be adopted by equal parameters; wrong, it voids the promise.",
    )
    lease: Seconds = Field(
        60.0,
        description="How long a claimed generation belongs to its worker. After a crash it moves"
        " again when this has passed. Longer than the longest HTTP timeout.",
    )
    http_timeout: Seconds = Field(
        30.0, description="How long an answer of the provider may take to come."
    )
    http_connect_timeout: Seconds = Field(
        5.0, description="How long connecting to the provider may take."
    )
    poll_min: Seconds = Field(
        5.0, description="The shortest time between two looks at a task (the provider advises 5)."
    )
    poll_max: Seconds = Field(30.0, description="The longest time between two looks at a task.")
    observe_from: int = Field(
        20,
        ge=0,
        description="From so many looks due within `SEEDANCE_POLL_MIN` on, what runs is followed by"
        " the task list, where that takes fewer requests; 0: always a GET for each.",
    )
    stalled_after: Seconds = Field(
        7_200.0,
        description="How long after its submission a task that has not ended needs attention"
        " (the provider speaks of minutes). It is still looked at, more seldom.",
    )
    reconcile_every: Seconds = Field(
        300.0, description="How often beat reconciles against the provider's task list."
    )
    balance_every: Seconds = Field(120.0, description="How often beat records the balance.")
    check_balance: bool = Field(
        True,
        description="Whether a generation is let in only if the balance, less what is under way,"
        " covers its estimate. Without it parallel work can overdraw the account.",
    )
    max_in_flight: int = Field(
        50, ge=1, description="How many generations may be past admission and not ended."
    )
    rate_limit: str = Field(
        "20/second", description="Requests to the provider, of all workers together."
    )
    rate_limit_url: str = Field(
        "",
        description="Valkey or Redis that the request rate is shared through. Empty: the broker,"
        " if it is one; with RabbitMQ each worker then keeps the rate by itself.",
        repr=False,
    )
    max_attempts: int = Field(
        5,
        ge=1,
        description="How often a generation is submitted when each answer was lost and turned out"
        " to have made no remote task.",
    )
    retry_for: Seconds = Field(
        86_400.0,
        description="How long a generation that the provider refuses for now (SERVICE_BUSY,"
        " TASK_SUBMIT_FAILED) is retried, from its first refusal; then it fails. Its own deadline"
        " ends it earlier.",
    )
    max_tries: int = Field(
        10,
        ge=2,
        description="How often a generation is begun without any progress (workers that"
        " die of it) before it fails or needs attention.",
    )
    concurrency: int = Field(
        16, ge=1, le=1000, description="Threads of a worker: so many steps at a time."
    )
    tick: Seconds = Field(
        1.0, description="How often a dispatcher looks for due work when nothing wakes it."
    )
    probe_every: Seconds = Field(
        30.0,
        description="How often an open circuit breaker is probed, by asking for the balance; the"
        " longer it is open the more seldom, down to a tenth as often.",
    )
    upload_valid: Seconds = Field(
        86_400.0, description="How long an uploaded file is reused for the same bytes."
    )
    upload_max_bytes: int = Field(
        200_000_000, ge=1, description="The largest reference that is uploaded, in bytes."
    )
    media_roots: Annotated[tuple[Path, ...], NoDecode] = Field(
        (), description="Folders that `path:` references may lie in, separated by `:`."
    )
    allow_private_sources: bool = Field(
        False, description="Whether references may come from private or loopback addresses."
    )
    archive_url: str = Field(
        "",
        description="Where videos and last frames are stored as soon as they are there, before"
        " their signed addresses end: `file:///folder`, `s3://bucket/folder`, `gs://…`, `az://…`."
        " Empty: nowhere.",
    )
    archive_max_bytes: int = Field(
        2_000_000_000, ge=1, description="The largest video that is stored, in bytes."
    )
    public_url: str = Field(
        "",
        description="Where the provider reaches `seedance gateway` from outside, as"
        " `https://host/path`: its callbacks show at once what has ended. Empty: polling alone.",
    )
    gateway_host: str = Field("127.0.0.1", description="The address that the gateway listens on.")
    gateway_port: int = Field(
        8080, ge=0, le=65_535, description="The port that the gateway listens on; 0: any free one."
    )
    gateway_rate: str = Field(
        "200/second", description="Callbacks that a gateway looks up; beyond it answers 429."
    )
    webhook_secrets: SecretStr = Field(
        SecretStr(""),
        description="Secrets that webhooks are signed with, separated by spaces, each as `whsec_`"
        " and 24 to 64 bytes in base64. Several sign together, for a change of secrets; without"
        " one no webhook is sent.",
    )
    allow_private_webhooks: bool = Field(
        False,
        description="Whether webhooks may go to private or loopback addresses, and over plain"
        " http. Read where generations are enqueued and by workers.",
    )
    notice_retry: Seconds = Field(
        5.0,
        description="About how soon a notice that was not taken is tried again; doubled each time,"
        " up to four hours.",
    )
    notice_patience: Seconds = Field(
        3 * 86_400.0,
        description="How long a notice is tried until it is set aside as dead.",
    )
    retain_notices: Seconds = Field(
        30 * 86_400.0,
        description="How long notices are kept once they are delivered or dead; at most as long"
        " as their generations.",
    )
    metrics_every: float = Field(
        15.0,
        ge=0,
        allow_inf_nan=False,
        description="How often a worker writes what it has counted (requests to the provider, tries"
        " of notices) for `/metrics`. 0: never.",
    )
    metrics_tenants: Annotated[tuple[tuple[str, str], ...], NoDecode] = Field(
        (),
        description="Tenants with a label of their own at `/metrics`, as `acme,beta=trial`: a"
        " name, or a name and its class. All others are `other`.",
    )
    metrics_token: SecretStr = Field(
        SecretStr(""),
        description="What a scraper sends as `Authorization: Bearer …`, at least 16 characters."
        " Without one the gateway shows `/metrics` on its own machine alone.",
    )
    metrics_host: str = Field(
        "127.0.0.1", description="The address that `seedance metrics` listens on."
    )
    metrics_port: int = Field(
        9464,
        ge=0,
        le=65_535,
        description="The port that `seedance metrics` listens on; 0: any free one.",
    )
    tracing: bool = Field(
        False,
        description="Whether workers trace their stages and requests by OpenTelemetry; where to,"
        " the OTEL_… variables say. Needs the extra `otel`.",
    )
    log_format: Literal["auto", "json", "console"] = Field(
        "auto",
        description="How services log: `json`, `console` (readable), or `auto`: readable on a"
        " terminal, else JSON.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="The least level that services log; `--log-level` goes first."
    )
    retain_generations: float = Field(
        180 * 86_400.0,
        ge=0,
        allow_inf_nan=False,
        description="How long generations are kept after their end, with their attempts; their"
        " idempotency keys are forgotten with them. 0: for ever. At least a day.",
    )
    retain_events: float = Field(
        90 * 86_400.0,
        ge=0,
        allow_inf_nan=False,
        description="How long the history of an ended generation is kept, but for its end."
        " 0: as long as the generation.",
    )
    retain_balances: Seconds = Field(
        90 * 86_400.0, description="How long recorded balances are kept."
    )
    retain_rejected: Seconds = Field(
        30 * 86_400.0, description="How long messages that were set aside are kept."
    )

    @field_validator("database_url")
    @classmethod
    def _database(cls, value: str) -> str:
        return normalise_url(value)

    @field_validator("broker_url")
    @classmethod
    def _broker(cls, value: str) -> str:
        return broker_address.normalise(value)

    @field_validator("rate_limit_url")
    @classmethod
    def _store(cls, value: str) -> str:
        return broker_address.normalise_store(value) if value else ""

    @field_validator("api_base_url")
    @classmethod
    def _base_url(cls, value: str) -> str:
        if not re.match(r"^https?://[^/?#@]+(/[^?#]*)?$", value):
            raise ValueError("is not an http(s) address without user, query or fragment")
        return value.rstrip("/")

    @field_validator("api_key")
    @classmethod
    def _key(cls, value: SecretStr) -> SecretStr:
        if not re.fullmatch(r"[\x21-\x7e]+", value.get_secret_value()):
            raise ValueError("is empty or has characters that no HTTP header may carry")
        return value

    @field_validator("webhook_secrets")
    @classmethod
    def _webhook_secrets(cls, value: SecretStr) -> SecretStr:
        for place, one in enumerate(value.get_secret_value().split(), start=1):
            if not is_webhook_secret(one):
                # Not shown: it may be one but for a slip.
                raise ValueError(
                    f"has a secret (number {place}) that is not `whsec_` and"
                    f" {FEWEST_BYTES} to {MOST_BYTES} bytes in base64"
                )
        return value

    @field_validator("archive_url")
    @classmethod
    def _archive(cls, value: str) -> str:
        return str(archive_address.parse(value)) if value else ""

    @field_validator("public_url")
    @classmethod
    def _public_url(cls, value: str) -> str:
        if value and not re.match(r"^https?://[^/?#@\s]+(/[^?#\s]*)?$", value):
            raise ValueError(
                f"is {value[:80]!r}; write it as https://host/path, without user or query"
            )
        if len(value) > _LONGEST_PUBLIC_URL:
            raise ValueError(f"has {len(value)} characters; {_LONGEST_PUBLIC_URL} are allowed")
        return value.rstrip("/")

    @field_validator("metrics_tenants", mode="before")
    @classmethod
    def _tenants(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        classes: dict[str, str] = {}
        for part in filter(None, (part.strip() for part in value.split(","))):
            name, _, kind = (word.strip() for word in part.partition("="))
            if not re.fullmatch(r"[\w.:@/+-]{1,64}", kind or name) or not name:
                raise ValueError(f"has {part[:80]!r}; write it as tenant or tenant=class")
            classes[name] = kind or name
        if len(set(classes.values())) > MOST_CLASSES:
            raise ValueError(
                f"is {value[:80]!r}, with {len(set(classes.values()))} classes of tenants;"
                f" {MOST_CLASSES} are allowed"
            )
        return tuple(classes.items())

    @field_validator("metrics_token")
    @classmethod
    def _token(cls, value: SecretStr) -> SecretStr:
        token = value.get_secret_value()
        if token and not re.fullmatch(rf"[\x21-\x7e]{{{_SHORTEST_TOKEN},}}", token):
            raise ValueError(f"has to have at least {_SHORTEST_TOKEN} printable characters")
        return value

    @field_validator("gateway_host", "metrics_host")
    @classmethod
    def _host(cls, value: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9.:_-]+", value):
            raise ValueError(f"is {value[:80]!r}; write an address or a host name")
        return value

    @field_validator("rate_limit", "gateway_rate")
    @classmethod
    def _rate(cls, value: str) -> str:
        if not re.fullmatch(r"[1-9]\d*\s*/\s*(\d+\s*)?(second|minute|hour)", value):
            raise ValueError(f"is {value!r}; write it as 20/second or 600/minute")
        return value

    @field_validator("media_roots", mode="before")
    @classmethod
    def _roots(cls, value: Any) -> Any:
        parts = value.split(os.pathsep) if isinstance(value, str) else value
        roots = tuple(Path(part) for part in parts if str(part))
        for root in roots:
            if not root.is_absolute() or not root.is_dir():
                raise ValueError(f"{str(root)!r} is not an absolute path of a folder")
        return roots

    @model_validator(mode="after")
    def _together(self) -> Self:
        longest = self.http_timeout + self.http_connect_timeout
        if self.lease <= longest:
            raise ValueError(
                f"SEEDANCE_LEASE is {self.lease:g} s and must be longer than the longest request,"
                f" SEEDANCE_HTTP_TIMEOUT + SEEDANCE_HTTP_CONNECT_TIMEOUT = {longest:g} s"
            )
        if self.poll_max < self.poll_min:
            raise ValueError(
                f"SEEDANCE_POLL_MAX is {self.poll_max:g} s, under SEEDANCE_POLL_MIN,"
                f" {self.poll_min:g} s"
            )
        if self.retry_for < self.timing.settle:
            # A first refusal would fail what had waited for nothing but an uncertain outcome.
            raise ValueError(
                f"SEEDANCE_RETRY_FOR is {self.retry_for:g} s and must be at least the time in"
                " which an outcome settles, SEEDANCE_SEND_BUDGET + SEEDANCE_LATE_CREATION +"
                f" SEEDANCE_LIST_LAG + SEEDANCE_SETTLE_MARGIN = {self.timing.settle:g} s"
            )
        shortest = max(_DAY, 10 * self.timing.settle)
        if 0 < self.retain_generations < shortest:
            # A late task must find its attempt.
            raise ValueError(
                f"SEEDANCE_RETAIN_GENERATIONS is {self.retain_generations:g} s and must be 0 (for"
                f" ever) or at least {shortest:g} s"
            )
        if self.public_url.startswith("http://") and not self.api_base_url.startswith("http://"):
            raise ValueError(
                f"SEEDANCE_PUBLIC_URL is {self.public_url!r}: use https://, since the secrets of"
                " callbacks are in their addresses (http:// is for a simulated provider)"
            )
        return self

    @property
    def timing(self) -> Timing:
        """B, K and L of the submit protocol."""
        return Timing(self.send_budget, self.late_creation, self.list_lag, self.settle_margin)

    @property
    def shared_rate_url(self) -> str:
        """What the request rate is shared through, if it is a Valkey or Redis."""
        return self.rate_limit_url or self.broker_url


def load_settings(environ: Mapping[str, str] | None = None, **overrides: Any) -> Settings:
    """Read the settings. Raises SettingsError, which names every variable that is wrong.

    Each secret comes from its variable, or from the file that `<variable>_FILE` names.
    """
    given = dict(os.environ if environ is None else environ)
    values: dict[str, Any] = {}
    unreadable: dict[str, str] = {}
    for name in Settings.model_fields:
        variable = PREFIX + name.upper()
        try:
            value = secret(variable, given) if name in SECRET else given.get(variable)
        except SettingsError as error:
            if name not in overrides:
                unreadable[name] = str(error)
            continue
        if value:
            values[name] = value
    try:
        # By values rather than by pydantic-settings' own look at os.environ, so that a test or
        # a caller can hand over another environment.
        settings = Settings(_env_prefix="\0", **{**values, **overrides})
    except ValidationError as error:
        told = _explain(error, without=unreadable.keys())
        raise SettingsError("\n".join([*unreadable.values(), *told])) from None
    if unreadable:
        raise SettingsError("\n".join(unreadable.values()))
    return settings


def _explain(error: ValidationError, *, without: Collection[str]) -> list[str]:
    lines = []
    for problem in error.errors(include_url=False, include_context=False):
        where = ".".join(str(part) for part in problem["loc"][:1])
        if where in without:
            continue
        what = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "missing":
            what = "is not set: " + (Settings.model_fields[where].description or "it is needed")
        elif problem["type"] != "value_error" and where not in SECRET:
            what = f"is {str(problem['input'])[:80]!r}: {what[:1].lower()}{what[1:]}"
        lines.append(f"{PREFIX}{where.upper()} {what}" if where else what)
    return lines


def unknown_variables(environ: Mapping[str, str] | None = None) -> list[str]:
    """Variables with our prefix that mean nothing: most often a slip in the name."""
    given = os.environ if environ is None else environ
    known = {PREFIX + name.upper() for name in Settings.model_fields} | OUTSIDE | FILES
    return sorted(name for name in given if name.startswith(PREFIX) and name not in known)


__all__ = ["Settings", "SettingsError", "load_settings", "unknown_variables"]
