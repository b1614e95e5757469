"""The tables. The lifecycle that they keep is in `models.lifecycle`.

Times come from the database's clock, amounts are exact, and what must not be is refused by a
constraint rather than trusted to the code.
"""

import uuid
from typing import Any

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    ForeignKey,
    ForeignKeyConstraint,
    Identity,
    Index,
    Integer,
    SmallInteger,
    Text,
    Uuid,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from models.base import Base, Credits, Instant, Json, Txid
from models.lifecycle import IN_DOUBT, LIVE, OPEN_OUTCOMES, TERMINAL, Status
from models.wait_reasons import WaitReason

DEFAULT_TENANT = "default"
"""The tenant of a request that names none."""


def _in(column: str, values: frozenset[Status] | frozenset[WaitReason]) -> str:
    return f"{column} IN ({', '.join(repr(str(v)) for v in sorted(values))})"


_ALL = frozenset(Status)
LIVE_SQL = _in("status", LIVE)
IN_DOUBT_SQL = _in("status", IN_DOUBT)
TERMINAL_SQL = _in("status", TERMINAL)


class Generation(Base):
    """One request of a producer, from acceptance to its end."""

    __tablename__ = "generations"

    id: Mapped[uuid.UUID] = mapped_column(Uuid, primary_key=True)
    status: Mapped[str] = mapped_column(Text)

    # what was asked
    request: Mapped[Json]
    producer_metadata: Mapped[dict[str, Any] | None] = mapped_column(
        "metadata", JSONB(none_as_null=True)
    )
    idempotency_key: Mapped[str | None] = mapped_column(Text)
    tenant: Mapped[str] = mapped_column(Text, server_default=DEFAULT_TENANT)
    priority: Mapped[int] = mapped_column(SmallInteger, server_default="0")
    deadline_at: Mapped[Instant | None]
    has_sources: Mapped[bool] = mapped_column(server_default=text("false"))
    # The request's content with each source replaced by its uploaded file_path; null until then.
    content: Mapped[list[dict[str, Any]] | None] = mapped_column(JSONB(none_as_null=True))
    content_until: Mapped[Instant | None]

    # the remote task
    attempt: Mapped[int] = mapped_column(Integer, server_default="0")
    fingerprint: Mapped[str | None] = mapped_column(Text)
    remote_task_id: Mapped[str | None] = mapped_column(Text, unique=True)
    remote_status: Mapped[str | None] = mapped_column(Text)
    video_url: Mapped[str | None] = mapped_column(Text)
    last_frame_url: Mapped[str | None] = mapped_column(Text)
    error_code: Mapped[str | None] = mapped_column(Text)
    error_message: Mapped[str | None] = mapped_column(Text)
    estimated_cost: Mapped[Credits]
    credit_cost: Mapped[Credits | None]

    # The trace in which it was enqueued (W3C traceparent), where there was one.
    trace: Mapped[str | None] = mapped_column(Text)

    # the schedule
    due_at: Mapped[Instant | None]
    # A claim's end, which is when the row is due as long as nothing else has decided that; and
    # the worker that has begun to work on it (models.workers).
    leased_until: Mapped[Instant | None]
    claimed_by: Mapped[int | None] = mapped_column(BigInteger)
    lease: Mapped[int] = mapped_column(BigInteger, server_default="0")
    tries: Mapped[int] = mapped_column(Integer, server_default="0")
    failures: Mapped[int] = mapped_column(Integer, server_default="0")
    polls: Mapped[int] = mapped_column(server_default="0")

    # wishes and obstacles
    cancel_requested_at: Mapped[Instant | None]
    cancel_sent_at: Mapped[Instant | None]
    blocked_by: Mapped[uuid.UUID | None] = mapped_column(Uuid)
    # Why it is delayed, and the figures (models.wait_reasons).
    wait_reason: Mapped[str | None] = mapped_column(Text)
    wait_detail: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))
    attention: Mapped[str | None] = mapped_column(Text)
    attention_at: Mapped[Instant | None]
    # Until when somebody wants to be told of its transitions (models.telling).
    waited_until: Mapped[Instant | None]
    # Where its producer wants to be told, and of how many changes notices were written
    # (models.notices).
    notify: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))
    notified: Mapped[int] = mapped_column(Integer, server_default="0")
    # By an operator: the generation that this one repeats, and the one that repeats this.
    retry_of: Mapped[uuid.UUID | None] = mapped_column(Uuid)
    retried_as: Mapped[uuid.UUID | None] = mapped_column(Uuid)

    created_at: Mapped[Instant] = mapped_column(server_default=func.now())
    submitted_at: Mapped[Instant | None]
    observed_at: Mapped[Instant | None]
    finished_at: Mapped[Instant | None]

    __table_args__ = (
        CheckConstraint(_in("status", _ALL), name="status_known"),
        CheckConstraint(f"({TERMINAL_SQL}) = (finished_at IS NOT NULL)", name="ended_has_time"),
        CheckConstraint(f"({TERMINAL_SQL}) = (due_at IS NULL)", name="unended_is_due"),
        CheckConstraint(
            "status NOT IN ('running', 'completed') OR remote_task_id IS NOT NULL",
            name="running_has_task",
        ),
        CheckConstraint(
            "status NOT IN ('accepted', 'uploading', 'submitting', 'uncertain')"
            " OR remote_task_id IS NULL",
            name="unsubmitted_has_no_task",
        ),
        CheckConstraint(
            f"NOT ({IN_DOUBT_SQL}) OR (fingerprint IS NOT NULL AND attempt > 0)",
            name="in_doubt_has_attempt",
        ),
        CheckConstraint("status <> 'failed' OR error_code IS NOT NULL", name="failed_has_code"),
        CheckConstraint("(attention IS NULL) = (attention_at IS NULL)", name="attention_has_time"),
        CheckConstraint(_in("wait_reason", frozenset(WaitReason)), name="wait_reason_known"),
        CheckConstraint(
            "wait_detail IS NULL"
            " OR (wait_reason IS NOT NULL AND jsonb_typeof(wait_detail) = 'object')",
            name="wait_detail_of_reason",
        ),
        CheckConstraint("credit_cost >= 0", name="credit_cost_positive"),
        CheckConstraint("estimated_cost >= 0", name="estimated_cost_positive"),
        Index(
            "uq_generations_idempotency_key",
            "tenant",
            "idempotency_key",
            unique=True,
            postgresql_where=text("idempotency_key IS NOT NULL"),
        ),
        # The due query and the slots: neither grows with what has ended.
        Index("ix_generations_due", "due_at", postgresql_where=text(LIVE_SQL)),
        Index("ix_generations_live", "tenant", "status", postgresql_where=text(LIVE_SQL)),
        Index(
            "ix_generations_waiting",
            "tenant",
            text("priority DESC"),
            "created_at",
            postgresql_where=text("status = 'accepted'"),
        ),
        # When the next retry after a refusal is due.
        Index(
            "ix_generations_retry",
            "due_at",
            postgresql_where=text("status = 'accepted' AND wait_reason = 'retry'"),
        ),
        Index(
            "ix_generations_deadline",
            "deadline_at",
            postgresql_where=text("status = 'accepted' AND deadline_at IS NOT NULL"),
        ),
        # Rows that could be mistaken for each other are never in doubt at the same time.
        Index(
            "uq_generations_in_doubt",
            "fingerprint",
            unique=True,
            postgresql_where=text(IN_DOUBT_SQL),
        ),
        # Who has the same fingerprint: the waiters to wake, and whom a new one must wait for.
        Index(
            "ix_generations_fingerprint",
            "fingerprint",
            "created_at",
            postgresql_where=text("finished_at IS NULL AND fingerprint IS NOT NULL"),
        ),
        Index("ix_generations_created", "created_at", "id"),
        Index("ix_generations_submitted", "submitted_at"),
        # What completed lately: the archive asks whether it has been passed by.
        Index(
            "ix_generations_completed",
            "finished_at",
            "id",
            postgresql_where=text("status = 'completed'"),
        ),
        Index(
            "ix_generations_attention",
            "attention_at",
            postgresql_where=text("attention IS NOT NULL"),
        ),
    )


class GenerationEvent(Base):
    """One line of a generation's history; written in the transaction of what it tells."""

    __tablename__ = "generation_events"

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    generation_id: Mapped[uuid.UUID] = mapped_column(
        ForeignKey("generations.id", ondelete="CASCADE")
    )
    at: Mapped[Instant] = mapped_column(server_default=func.clock_timestamp())
    event: Mapped[str] = mapped_column(Text)
    from_status: Mapped[str | None] = mapped_column(Text)
    to_status: Mapped[str | None] = mapped_column(Text)
    attempt: Mapped[int | None] = mapped_column(Integer)
    detail: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))

    txid: Mapped[Txid]

    __table_args__ = (
        Index("ix_generation_events_generation", "generation_id", "id"),
        Index("ix_generation_events_txid", "txid", postgresql_where=text("txid IS NOT NULL")),
    )


OPEN_ATTEMPT_SQL = f"(outcome IS NULL OR outcome IN {OPEN_OUTCOMES})"
"""No definite answer: a remote task of such an attempt may exist, or still appear."""


class SubmitAttempt(Base):
    """One POST of one generation: intended, and what became of it (protocol.md, "Attempts")."""

    __tablename__ = "submit_attempts"

    generation_id: Mapped[uuid.UUID] = mapped_column(
        ForeignKey("generations.id", ondelete="CASCADE"), primary_key=True
    )
    number: Mapped[int] = mapped_column(Integer, primary_key=True)
    seed: Mapped[int] = mapped_column(BigInteger)
    seed_drawn: Mapped[bool]
    fingerprint: Mapped[str] = mapped_column(Text)
    started_at: Mapped[Instant] = mapped_column(server_default=func.now())
    settle_at: Mapped[Instant]
    outcome: Mapped[str | None] = mapped_column(Text)
    code: Mapped[str | None] = mapped_column(Text)
    decided_at: Mapped[Instant | None]
    # When the POST was answered, and whether that showed the provider well: true for a task or a
    # refusal of the work itself, false for a failure of the provider, null for neither.
    answered_at: Mapped[Instant | None]
    provider_ok: Mapped[bool | None]
    remote_task_id: Mapped[str | None] = mapped_column(Text)
    # Where callbacks are on: the SHA-256 of the secret in the attempt's address, when a callback
    # was last heeded (null: none came), and the remote task that it spoke of, if any: a hint.
    callback_digest: Mapped[bytes | None]
    callback_at: Mapped[Instant | None]
    callback_task_id: Mapped[str | None] = mapped_column(Text)

    __table_args__ = (
        CheckConstraint(
            "outcome IN ('submitted', 'refused', 'not_sent', 'unknown', 'adopted', 'absent',"
            " 'given_up')",
            name="outcome_known",
        ),
        CheckConstraint(
            "(outcome IN ('submitted', 'adopted')) IS TRUE = (remote_task_id IS NOT NULL)",
            name="task_iff_created",
        ),
        # The mark: no two attempts ever share a drawn seed.
        Index("uq_submit_attempts_seed", "seed", unique=True, postgresql_where=text("seed_drawn")),
        Index("ix_submit_attempts_seed", "seed"),
        Index(
            "ix_submit_attempts_open",
            "fingerprint",
            postgresql_where=text(OPEN_ATTEMPT_SQL),
        ),
        # Flow control reads the outcomes of the last seconds.
        Index(
            "ix_submit_attempts_answered",
            "answered_at",
            "provider_ok",
            postgresql_where=text("provider_ok IS NOT NULL"),
        ),
        Index("ix_submit_attempts_started", "started_at"),
    )


class StrayTask(Base):
    """A remote task that no generation follows: somebody else's, or a second one of ours."""

    __tablename__ = "stray_tasks"

    task_id: Mapped[str] = mapped_column(Text, primary_key=True)
    kind: Mapped[str] = mapped_column(Text)
    generation_id: Mapped[uuid.UUID | None] = mapped_column(Uuid)
    attempt: Mapped[int | None] = mapped_column(Integer)
    seed: Mapped[int | None] = mapped_column(BigInteger)
    model: Mapped[str | None] = mapped_column(Text)
    resolution: Mapped[str | None] = mapped_column(Text)
    ratio: Mapped[str | None] = mapped_column(Text)
    duration: Mapped[int | None]
    generate_audio: Mapped[bool | None]
    status: Mapped[str] = mapped_column(Text)
    credit_cost: Mapped[Credits | None]
    remote_created_at: Mapped[Instant | None]
    first_seen_at: Mapped[Instant] = mapped_column(server_default=func.now())
    last_seen_at: Mapped[Instant] = mapped_column(server_default=func.now())

    __table_args__ = (
        CheckConstraint("kind IN ('foreign', 'second', 'possible')", name="kind_known"),
        CheckConstraint(
            "kind = 'foreign' OR generation_id IS NOT NULL", name="ours_names_generation"
        ),
        Index("ix_stray_tasks_seed", "seed"),
        Index(
            "ix_stray_tasks_generation",
            "generation_id",
            postgresql_where=text("generation_id IS NOT NULL"),
        ),
    )


class Upload(Base):
    """What was uploaded, by content, so that the same reference is sent once while it is valid.

    `file_path` is null while somebody is at it; `claimed_until` bounds how long that may take.
    """

    __tablename__ = "uploads"

    sha256: Mapped[str] = mapped_column(Text, primary_key=True)
    content_type: Mapped[str] = mapped_column(Text, primary_key=True)
    size: Mapped[int] = mapped_column(BigInteger)
    file_path: Mapped[str | None] = mapped_column(Text)
    claimed_by: Mapped[uuid.UUID | None] = mapped_column(Uuid)
    claimed_lease: Mapped[int | None] = mapped_column(BigInteger)
    claimed_until: Mapped[Instant | None]
    uploaded_at: Mapped[Instant | None]
    valid_until: Mapped[Instant | None]

    __table_args__ = (
        ForeignKeyConstraint(["claimed_by"], ["generations.id"], ondelete="SET NULL"),
        CheckConstraint(
            "(file_path IS NULL) = (valid_until IS NULL)", name="uploaded_has_validity"
        ),
        CheckConstraint("length(sha256) = 64", name="sha256_is_hex"),
        # Pruning a generation looks for its claims.
        Index(
            "ix_uploads_claimed_by",
            "claimed_by",
            postgresql_where=text("claimed_by IS NOT NULL"),
        ),
    )


class BalanceSnapshot(Base):
    """The account as the provider told it."""

    __tablename__ = "balance_snapshots"

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    at: Mapped[Instant] = mapped_column(server_default=func.now())
    total_credits: Mapped[Credits]
    used_credits: Mapped[Credits]
    remain_credits: Mapped[Credits]

    __table_args__ = (Index("ix_balance_snapshots_at", "at"),)


class RejectedMessage(Base):
    """A message from the broker that is no request at all, set aside with its reason."""

    __tablename__ = "rejected_messages"

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    at: Mapped[Instant] = mapped_column(server_default=func.now())
    reason: Mapped[str] = mapped_column(Text)
    headers: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))
    body: Mapped[bytes]


__all__ = [
    "DEFAULT_TENANT",
    "BalanceSnapshot",
    "Generation",
    "GenerationEvent",
    "RejectedMessage",
    "StrayTask",
    "SubmitAttempt",
    "Upload",
]
