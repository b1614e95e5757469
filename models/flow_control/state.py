"""The state of an account's flow control: read by every admission, intent and request."""

from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, func, select, text

from models.base import table_of
from models.flow_control import rules
from models.flow_control.rules import ConcurrencyLimit, RateLimit
from models.flow_control.table import DEFAULT_ACCOUNT, FlowControl
from models.tables import LIVE_SQL

f = table_of(FlowControl).c


@dataclass(frozen=True)
class FlowState:
    """What the fleet knows of an account. Without evidence nothing is limited."""

    rate: RateLimit | None = None
    resume_in: float = 0.0
    """Seconds for which the provider asked to send nothing; 0 or less: it does not ask."""
    resume_at: datetime | None = None
    concurrency: ConcurrencyLimit | None = None
    failed_ago: float | None = None
    """Seconds since the latest failed submit."""
    outage_age: float | None = None
    """Seconds since the outage began; None: there is none."""
    probe_in: float = 0.0
    """Seconds until the next probe of an outage may be sent."""
    ramp_age: float | None = None
    reason: str | None = None
    """The provider's answer that changed this state last."""

    @property
    def calm(self) -> bool:
        """Whether nothing but the settings limits how fast is submitted."""
        return (
            self.rate is None
            and self.resume_in <= 0
            and self.outage_age is None
            and self.ramp_age is None
            and (self.failed_ago is None or self.failed_ago > rules.WINDOW)
        )

    def aged(self, seconds: float) -> "FlowState":
        """Return the state as it is that many seconds later, if no evidence comes meanwhile."""
        rate = self.rate and replace(self.rate, age=self.rate.age + seconds)
        return replace(self, rate=rate, resume_in=self.resume_in - seconds)


def _seconds_since(column: ColumnElement[Any]) -> ColumnElement[Any]:
    return func.extract("epoch", func.clock_timestamp() - column)


COLUMNS = (
    f.rate,
    f.rate_refused,
    _seconds_since(f.rate_changed_at).label("rate_age"),
    f.resume_at,
    _seconds_since(f.resume_at).label("resumed_ago"),
    f.concurrency,
    f.concurrency_refused,
    _seconds_since(f.concurrency_changed_at).label("concurrency_age"),
    _seconds_since(f.failed_at).label("failed_ago"),
    _seconds_since(f.outage_since).label("outage_age"),
    _seconds_since(f.probe_at).label("probe_ago"),
    _seconds_since(f.ramp_since).label("ramp_age"),
    f.reason,
)


def of_row(row: Any) -> FlowState:
    """Return the state in a row with `COLUMNS`; a state without evidence if there is no row."""
    if row is None:
        return FlowState()
    return FlowState(
        rate=None
        if row.rate is None
        else RateLimit(row.rate, row.rate_refused, float(row.rate_age)),
        resume_in=-float(row.resumed_ago or 0),
        resume_at=row.resume_at,
        concurrency=None
        if row.concurrency is None
        else ConcurrencyLimit(row.concurrency, row.concurrency_refused, float(row.concurrency_age)),
        failed_ago=_float(row.failed_ago),
        outage_age=_float(row.outage_age),
        probe_in=-float(row.probe_ago or 0),
        ramp_age=_float(row.ramp_age),
        reason=row.reason,
    )


def _float(value: Any) -> float | None:
    return None if value is None else float(value)


def read(conn: Connection, *, account: str = DEFAULT_ACCOUNT) -> FlowState:
    """Return the account's state."""
    return of_row(conn.execute(select(*COLUMNS).where(f.account == account)).one_or_none())


@dataclass(frozen=True)
class Allowance:
    """How many submits may be started now, and what limits their number."""

    count: int
    cause: str


_EVIDENCE = text(
    f"""
    SELECT (SELECT count(*) FROM generations
            WHERE {LIVE_SQL} AND attention IS NULL AND (status = 'submitting'
                OR status = 'uploading' AND NOT (has_sources
                    AND (content IS NULL OR content_until <= now())))) AS in_progress,
           (SELECT count(*) FROM generations
            WHERE {LIVE_SQL} AND attention IS NULL AND status = 'uploading' AND NOT (has_sources
                AND (content IS NULL OR content_until <= now()))) AS ready,
           count(*) FILTER (WHERE answered_at > now() - make_interval(secs => :window)) AS answered,
           count(*) FILTER (WHERE provider_ok
                AND answered_at > now() - make_interval(secs => :window)) AS succeeded,
           count(*) FILTER (WHERE answered_at > now() - interval '1 s') AS lately,
           extract(epoch FROM now() - min(answered_at)
                FILTER (WHERE answered_at > now() - make_interval(secs => :window))) AS span,
           count(*) FILTER (WHERE provider_ok
                AND answered_at > now() - make_interval(secs => :ramp)) AS ramped
    FROM submit_attempts
    WHERE provider_ok IS NOT NULL
      AND answered_at > now() - make_interval(secs => greatest(:window, :ramp))
    """  # noqa: S608  (built from constants of this package)
)

_AHEAD = 2.0
"""Seconds of the request rate for which generations are admitted ahead of their submit."""


def allowance(conn: Connection, state: FlowState) -> Allowance | None:
    """Return how many submits may be started now; None where flow control sets no limit."""
    if state.calm:
        return None
    if state.resume_in > 0:
        return Allowance(0, "throttled")
    if state.outage_age is not None:
        # The probe is taken with the intent: a message that was lost must not stop the next one.
        return Allowance(1 if state.probe_in <= 0 else 0, "outage")
    ramp = min(rules.MAX_RAMP, state.ramp_age or 0.0)
    found = conn.execute(_EVIDENCE, {"window": rules.WINDOW, "ramp": ramp}).one()
    limits = []
    if state.ramp_age is not None and state.ramp_age < rules.MAX_RAMP:
        count = rules.ramp_allowance(succeeded=found.ramped, in_progress=found.in_progress)
        limits += [] if count is None else [Allowance(count, "ramp")]
    count = rules.failure_allowance(
        answered=found.answered,
        succeeded=found.succeeded,
        span=float(found.span or 0),
        lately=found.lately,
        in_progress=found.in_progress,
    )
    limits += [] if count is None else [Allowance(count, "failures")]
    if state.rate is not None:
        ahead = max(1, round(state.rate.now * _AHEAD))
        # What is sent already has had its turn, however long the provider takes to answer.
        limits.append(Allowance(max(0, ahead - found.ready), "rate"))
    return min(limits, key=lambda limit: limit.count, default=None)
