"""The table of the ledger. Nothing but INSERT is possible in it, by a trigger of its own."""

import uuid
from enum import StrEnum

from sqlalchemy import (
    DDL,
    BigInteger,
    CheckConstraint,
    Identity,
    Index,
    Integer,
    Text,
    Uuid,
    event,
    func,
    text,
)
from sqlalchemy.orm import Mapped, mapped_column

from models.base import Base, Credits, Instant, Txid, table_of


class Kind(StrEnum):
    """What an entry says of its amount."""

    ESTIMATED = "estimated"
    """Expected at acceptance."""
    RESERVED = "reserved"
    """Set aside at the intent: from here on the provider may charge."""
    RELEASED = "released"
    """No longer set aside: not sent, refused, absent, or ended."""
    CHARGED = "charged"
    """Taken by the provider for a task that completed."""


class LedgerEntry(Base):
    """One entry. It has no foreign key: it outlives the generation that it tells of."""

    __tablename__ = "ledger_entries"

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    at: Mapped[Instant] = mapped_column(server_default=func.now())
    kind: Mapped[str] = mapped_column(Text)
    amount: Mapped[Credits]
    # The provider named no charge: the estimate stands for it.
    assumed: Mapped[bool] = mapped_column(server_default=text("false"))
    generation_id: Mapped[uuid.UUID] = mapped_column(Uuid)
    attempt: Mapped[int] = mapped_column(Integer)
    remote_task_id: Mapped[str | None] = mapped_column(Text)
    # The line of the history that was written with it; no id where the history was pruned.
    event: Mapped[str] = mapped_column(Text)
    event_id: Mapped[int | None] = mapped_column(BigInteger)
    tenant: Mapped[str] = mapped_column(Text)
    model: Mapped[str | None] = mapped_column(Text)
    resolution: Mapped[str | None] = mapped_column(Text)
    txid: Mapped[Txid]

    __table_args__ = (
        CheckConstraint(
            "kind IN ('estimated', 'reserved', 'released', 'charged')", name="kind_known"
        ),
        CheckConstraint("amount >= 0", name="amount_positive"),
        CheckConstraint(
            "(kind = 'charged') = (remote_task_id IS NOT NULL)", name="charged_names_task"
        ),
        Index(
            "uq_ledger_entries_once",
            "generation_id",
            "attempt",
            "kind",
            "event",
            text("coalesce(remote_task_id, '')"),
            unique=True,
        ),
        # A remote task is charged once, whatever it was taken for in the meantime.
        Index(
            "uq_ledger_entries_charged",
            "remote_task_id",
            unique=True,
            postgresql_where=text("kind = 'charged'"),
        ),
        # Read without the table: what was charged since then, of all and of one tenant.
        Index(
            "ix_ledger_entries_charges",
            "at",
            postgresql_include=["amount"],
            postgresql_where=text("kind = 'charged'"),
        ),
        Index(
            "ix_ledger_entries_tenant",
            "tenant",
            "at",
            postgresql_include=["amount"],
            postgresql_where=text("kind = 'charged'"),
        ),
        Index("ix_ledger_entries_txid", "txid", postgresql_where=text("txid IS NOT NULL")),
        Index("ix_ledger_entries_at", "at", postgresql_using="brin"),
    )


APPEND_ONLY = (
    """
    CREATE FUNCTION ledger_is_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        RAISE EXCEPTION 'ledger_entries is append-only: % refused', TG_OP
            USING ERRCODE = 'restrict_violation';
    END $$
    """,
    """
    CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON ledger_entries
    FOR EACH STATEMENT EXECUTE FUNCTION ledger_is_append_only()
    """,
)
"""Refuses everything but INSERT, a wrong statement as well as a hasty operator's."""

for _statement in APPEND_ONLY:
    event.listen(table_of(LedgerEntry), "after_create", DDL(_statement.replace("%", "%%")))  # type: ignore[no-untyped-call]
