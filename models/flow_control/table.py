"""The tables of flow control, one row for each provider account."""

from sqlalchemy import CheckConstraint, Text
from sqlalchemy.orm import Mapped, mapped_column

from models.base import Base, Credits, Instant

DEFAULT_ACCOUNT = "default"
"""The account of `SEEDANCE_API_KEY`."""


class FlowControl(Base):
    """What the fleet has found out about how fast an account takes requests."""

    __tablename__ = "flow_control"

    account: Mapped[str] = mapped_column(Text, primary_key=True)
    # Request rate: all requests wait until `resume_at` (Retry-After).
    rate: Mapped[float | None]
    rate_refused: Mapped[float | None]
    rate_changed_at: Mapped[Instant | None]
    resume_at: Mapped[Instant | None]
    # Tasks at work.
    concurrency: Mapped[int | None]
    concurrency_refused: Mapped[int | None]
    concurrency_changed_at: Mapped[Instant | None]
    # Failed submits.
    failed_at: Mapped[Instant | None]
    outage_since: Mapped[Instant | None]
    probe_at: Mapped[Instant | None]
    # Since an outage, or since the account is new.
    ramp_since: Mapped[Instant | None]
    # The latest answer that changed anything above.
    reason: Mapped[str | None] = mapped_column(Text)

    __table_args__ = (
        CheckConstraint("rate > 0", name="rate_positive"),
        CheckConstraint("concurrency >= 1", name="concurrency_positive"),
        CheckConstraint("(outage_since IS NULL) = (probe_at IS NULL)", name="outage_has_probe"),
        CheckConstraint(
            "(rate IS NULL) = (rate_refused IS NULL) AND"
            " (rate IS NULL) = (rate_changed_at IS NULL)",
            name="rate_complete",
        ),
        CheckConstraint(
            "(concurrency IS NULL) = (concurrency_refused IS NULL) AND"
            " (concurrency IS NULL) = (concurrency_changed_at IS NULL)",
            name="concurrency_complete",
        ),
    )


class Breaker(Base):
    """A circuit breaker of an account. Nothing is submitted while it has an `opened_at`."""

    __tablename__ = "breakers"

    account: Mapped[str] = mapped_column(Text, primary_key=True)
    name: Mapped[str] = mapped_column(Text, primary_key=True)
    opened_at: Mapped[Instant | None]
    reason: Mapped[str | None] = mapped_column(Text)
    probe_at: Mapped[Instant | None]
    refused_estimate: Mapped[Credits | None]
    # Number of recent trips; the minimum open time grows with it.
    trips: Mapped[int] = mapped_column(server_default="0")
    closed_at: Mapped[Instant | None]

    __table_args__ = (
        CheckConstraint("name IN ('api_key', 'credit')", name="name_known"),
        CheckConstraint("(opened_at IS NULL) = (reason IS NULL)", name="open_has_reason"),
    )
