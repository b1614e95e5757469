"""The tables of the outbox: what is to be told, and who can't be told just now."""

import uuid
from enum import StrEnum
from typing import Any

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    ForeignKey,
    Index,
    Integer,
    Text,
    Uuid,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from models.base import Base, Instant


class Target(StrEnum):
    """By which way a producer is told."""

    WEBHOOK = "webhook"
    TASK = "task"


class State(StrEnum):
    """What became of a notice."""

    PENDING = "pending"
    DELIVERED = "delivered"
    DEAD = "dead"
    """Set aside: its receiver is gone, or did not take it in all the time there was."""


UNSIGNED = "SEEDANCE_WEBHOOK_SECRETS is not set"
"""The error of a webhook that a worker has no secret to sign with."""


class Notice(Base):
    """One change of one generation, to be told to one target."""

    __tablename__ = "notices"

    # The same in each try and each resending, so that a receiver knows what it has had.
    id: Mapped[uuid.UUID] = mapped_column(
        Uuid, primary_key=True, server_default=text("gen_random_uuid()")
    )
    generation_id: Mapped[uuid.UUID] = mapped_column(
        Uuid, ForeignKey("generations.id", ondelete="CASCADE")
    )
    target: Mapped[str] = mapped_column(Text)
    # Counts the notices of a generation; the two targets of one change share the number.
    sequence: Mapped[int] = mapped_column(Integer)
    type: Mapped[str] = mapped_column(Text)
    # What stands or falls together: a web server, or a queue.
    receiver: Mapped[str] = mapped_column(Text)
    # What the generation was by this change; what never changes is read from its row.
    data: Mapped[dict[str, Any]] = mapped_column(JSONB)
    created_at: Mapped[Instant] = mapped_column(server_default=func.now())

    # the schedule
    status: Mapped[str] = mapped_column(Text, server_default="pending")
    due_at: Mapped[Instant | None] = mapped_column(server_default=func.now())
    lease: Mapped[int] = mapped_column(BigInteger, server_default="0")
    # Handed out and not come back; counts against the room of its receiver until `due_at`.
    claimed: Mapped[bool] = mapped_column(server_default=text("false"))
    # Since when it is tried: its creation, or the last resending.
    since: Mapped[Instant] = mapped_column(server_default=func.now())
    tries: Mapped[int] = mapped_column(Integer, server_default="0")
    tried_at: Mapped[Instant | None]
    settled_at: Mapped[Instant | None]
    error: Mapped[str | None] = mapped_column(Text)

    __table_args__ = (
        CheckConstraint("target IN ('webhook', 'task')", name="target_known"),
        CheckConstraint("status IN ('pending', 'delivered', 'dead')", name="status_known"),
        CheckConstraint("(status = 'pending') = (due_at IS NOT NULL)", name="pending_is_due"),
        CheckConstraint("(status = 'pending') = (settled_at IS NULL)", name="settled_has_time"),
        CheckConstraint("NOT claimed OR status = 'pending'", name="claimed_is_pending"),
        Index("uq_notices_order", "generation_id", "target", "sequence", unique=True),
        # Receivers are found by leaps over it, so that what waits for one costs the others nothing.
        Index(
            "ix_notices_due",
            "receiver",
            "due_at",
            postgresql_where=text("status = 'pending'"),
        ),
        Index("ix_notices_claimed", "receiver", "due_at", postgresql_where=text("claimed")),
        Index(
            "ix_notices_settled",
            "settled_at",
            postgresql_where=text("status <> 'pending'"),
        ),
        Index("ix_notices_created", "created_at"),
        Index("ix_notices_dead", "settled_at", postgresql_where=text("status = 'dead'")),
    )


class NoticeReceiver(Base):
    """A receiver that fails. While it does, its notices wait; a healthy one has no row."""

    __tablename__ = "notice_receivers"

    receiver: Mapped[str] = mapped_column(Text, primary_key=True)
    # Failures in a row.
    failures: Mapped[int] = mapped_column(Integer)
    failing_since: Mapped[Instant] = mapped_column(server_default=func.now())
    # Until when nothing is sent to it; afterwards one at a time, until one is taken.
    retry_at: Mapped[Instant]
    error: Mapped[str | None] = mapped_column(Text)

    __table_args__ = (CheckConstraint("failures > 0", name="fails"),)
