"""the outbox: notices to producers, and receivers that fail"""

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def instant(name: str, *, now: bool = False, nullable: bool = True) -> sa.Column:
    default = sa.text("now()") if now else None
    kind = postgresql.TIMESTAMP(timezone=True)
    return sa.Column(name, kind, server_default=default, nullable=nullable)


def upgrade() -> None:
    # Old workers move generations without telling anybody: only what they end in the moment of a
    # deployment, and only of producers that already ask for notices, is not told.
    op.add_column("generations", sa.Column("notify", postgresql.JSONB()))
    op.add_column(
        "generations", sa.Column("notified", sa.Integer(), server_default="0", nullable=False)
    )
    op.create_table(
        "notices",
        sa.Column("id", sa.Uuid(), server_default=sa.text("gen_random_uuid()"), nullable=False),
        sa.Column("generation_id", sa.Uuid(), nullable=False),
        sa.Column("target", sa.Text(), nullable=False),
        sa.Column("sequence", sa.Integer(), nullable=False),
        sa.Column("type", sa.Text(), nullable=False),
        sa.Column("receiver", sa.Text(), nullable=False),
        sa.Column("data", postgresql.JSONB(), nullable=False),
        instant("created_at", now=True, nullable=False),
        sa.Column("status", sa.Text(), server_default="pending", nullable=False),
        instant("due_at", now=True),
        sa.Column("lease", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("claimed", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        instant("since", now=True, nullable=False),
        sa.Column("tries", sa.Integer(), server_default="0", nullable=False),
        instant("tried_at"),
        instant("settled_at"),
        sa.Column("error", sa.Text()),
        sa.PrimaryKeyConstraint("id", name="pk_notices"),
        sa.ForeignKeyConstraint(
            ["generation_id"],
            ["generations.id"],
            name="fk_notices_generation_id",
            ondelete="CASCADE",
        ),
        sa.CheckConstraint("target IN ('webhook', 'task')", name="target_known"),
        sa.CheckConstraint("status IN ('pending', 'delivered', 'dead')", name="status_known"),
        sa.CheckConstraint("(status = 'pending') = (due_at IS NOT NULL)", name="pending_is_due"),
        sa.CheckConstraint("(status = 'pending') = (settled_at IS NULL)", name="settled_has_time"),
        sa.CheckConstraint("NOT claimed OR status = 'pending'", name="claimed_is_pending"),
    )
    op.create_index(
        "uq_notices_order", "notices", ["generation_id", "target", "sequence"], unique=True
    )
    op.create_index(
        "ix_notices_due",
        "notices",
        ["receiver", "due_at"],
        postgresql_where=sa.text("status = 'pending'"),
    )
    op.create_index(
        "ix_notices_claimed",
        "notices",
        ["receiver", "due_at"],
        postgresql_where=sa.text("claimed"),
    )
    op.create_index(
        "ix_notices_settled",
        "notices",
        ["settled_at"],
        postgresql_where=sa.text("status <> 'pending'"),
    )
    op.create_index("ix_notices_created", "notices", ["created_at"])
    op.create_index(
        "ix_notices_dead",
        "notices",
        ["settled_at"],
        postgresql_where=sa.text("status = 'dead'"),
    )
    op.create_table(
        "notice_receivers",
        sa.Column("receiver", sa.Text(), nullable=False),
        sa.Column("failures", sa.Integer(), nullable=False),
        instant("failing_since", now=True, nullable=False),
        instant("retry_at", nullable=False),
        sa.Column("error", sa.Text()),
        sa.PrimaryKeyConstraint("receiver", name="pk_notice_receivers"),
        sa.CheckConstraint("failures > 0", name="fails"),
    )


def downgrade() -> None:
    op.drop_table("notice_receivers")
    op.drop_table("notices")
    op.drop_column("generations", "notified")
    op.drop_column("generations", "notify")
