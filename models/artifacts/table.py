"""The table of artifacts: one row for each file that a completed generation leaves."""

import uuid
from enum import StrEnum

from sqlalchemy import BigInteger, CheckConstraint, Index, Integer, Text, Uuid, func, text
from sqlalchemy.orm import Mapped, mapped_column

from models.base import Base, Instant


class Kind(StrEnum):
    """What a generation may leave."""

    VIDEO = "video"
    LAST_FRAME = "last_frame"


class Artifact(Base):
    """One file: still to be fetched, stored under its URI, or lost, which is final as well.

    It has no foreign key: like the ledger it outlives its generation, since the stored file does.
    """

    __tablename__ = "artifacts"

    generation_id: Mapped[uuid.UUID] = mapped_column(Uuid, primary_key=True)
    kind: Mapped[str] = mapped_column(Text, primary_key=True)

    # its own schedule, as generations have theirs
    due_at: Mapped[Instant | None]
    lease: Mapped[int] = mapped_column(BigInteger, server_default="0")
    tries: Mapped[int] = mapped_column(Integer, server_default="0")
    error: Mapped[str | None] = mapped_column(Text)
    attention_at: Mapped[Instant | None]
    made_at: Mapped[Instant] = mapped_column(server_default=func.now())
    # The provider keeps it until about then: the first try that fails later is the last.
    available_until: Mapped[Instant]

    stored_at: Mapped[Instant | None]
    uri: Mapped[str | None] = mapped_column(Text)
    bytes: Mapped[int | None] = mapped_column(BigInteger)
    sha256: Mapped[str | None] = mapped_column(Text)
    content_type: Mapped[str | None] = mapped_column(Text)
    lost_at: Mapped[Instant | None]

    __table_args__ = (
        CheckConstraint("kind IN ('video', 'last_frame')", name="kind_known"),
        CheckConstraint(
            "(due_at IS NULL) = (stored_at IS NOT NULL OR lost_at IS NOT NULL)", name="waits_is_due"
        ),
        CheckConstraint("stored_at IS NULL OR lost_at IS NULL", name="stored_or_lost"),
        CheckConstraint("lost_at IS NULL OR error IS NOT NULL", name="lost_says_why"),
        CheckConstraint(
            "num_nulls(stored_at, uri, bytes, sha256, content_type) IN (0, 5)",
            name="stored_is_complete",
        ),
        CheckConstraint("length(sha256) = 64", name="sha256_is_hex"),
        Index("ix_artifacts_due", "due_at", postgresql_where=text("due_at IS NOT NULL")),
        Index("ix_artifacts_lost", "lost_at", postgresql_where=text("lost_at IS NOT NULL")),
    )
