"""The tables of pauses and of what operators did; in the latter only INSERT is possible."""

import uuid
from typing import Any

from sqlalchemy import (
    DDL,
    BigInteger,
    CheckConstraint,
    Identity,
    Index,
    Text,
    Uuid,
    event,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from models.base import Base, Instant, table_of


class Pause(Base):
    """Submission is held back by an operator, of one tenant or, with the tenant '', of all."""

    __tablename__ = "pauses"

    tenant: Mapped[str] = mapped_column(Text, primary_key=True)
    reason: Mapped[str] = mapped_column(Text)
    paused_by: Mapped[str] = mapped_column(Text)
    paused_at: Mapped[Instant] = mapped_column(server_default=func.now())

    __table_args__ = (CheckConstraint("reason <> ''", name="says_why"),)


class OperatorAction(Base):
    """One change by an operator. It has no foreign key: it outlives what it tells of."""

    __tablename__ = "operator_actions"

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    at: Mapped[Instant] = mapped_column(server_default=func.clock_timestamp())
    action: Mapped[str] = mapped_column(Text)
    actor: Mapped[str] = mapped_column(Text)
    reason: Mapped[str | None] = mapped_column(Text)
    tenant: Mapped[str | None] = mapped_column(Text)
    generation_id: Mapped[uuid.UUID | None] = mapped_column(Uuid)
    detail: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))

    __table_args__ = (
        CheckConstraint("actor <> ''", name="says_who"),
        Index(
            "ix_operator_actions_generation",
            "generation_id",
            "id",
            postgresql_where=text("generation_id IS NOT NULL"),
        ),
    )


APPEND_ONLY = (
    """
    CREATE FUNCTION actions_are_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        RAISE EXCEPTION 'operator_actions is append-only: % refused', TG_OP
            USING ERRCODE = 'restrict_violation';
    END $$
    """,
    """
    CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON operator_actions
    FOR EACH STATEMENT EXECUTE FUNCTION actions_are_append_only()
    """,
)
"""Who did what stays as it was written."""

for _statement in APPEND_ONLY:
    event.listen(table_of(OperatorAction), "after_create", DDL(_statement.replace("%", "%%")))  # type: ignore[no-untyped-call]
