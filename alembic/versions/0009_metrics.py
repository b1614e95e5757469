"""totals for metrics, how far history and ledger are counted, and when things last succeeded"""

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

COUNTED = ("generation_events", "ledger_entries")


def upgrade() -> None:
    op.create_table(
        "metric_totals",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("labels", postgresql.ARRAY(sa.Text()), nullable=False),
        sa.Column("bucket", sa.SmallInteger(), nullable=False),
        sa.Column("value", sa.Numeric(), nullable=False),
        sa.PrimaryKeyConstraint("name", "labels", "bucket", name="pk_metric_totals"),
    )
    op.create_table(
        "metric_cursors",
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("txid", sa.BigInteger(), nullable=False),
        sa.Column("passed", sa.BigInteger(), server_default="0", nullable=False),
        sa.PrimaryKeyConstraint("source", name="pk_metric_cursors"),
    )
    op.create_table(
        "pulses",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("process", sa.Text(), server_default="", nullable=False),
        sa.Column(
            "at",
            postgresql.TIMESTAMP(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.PrimaryKeyConstraint("name", "process", name="pk_pulses"),
    )
    for table in COUNTED:
        # First the column, then its default: rows that are there stay as they are, without one,
        # and are not counted. What old workers write is.
        op.add_column(table, sa.Column("txid", sa.BigInteger()))
        op.alter_column(
            table, "txid", server_default=sa.text("((pg_current_xact_id())::text)::bigint")
        )


def downgrade() -> None:
    for table in COUNTED:
        op.drop_column(table, "txid")
    for table in ("pulses", "metric_cursors", "metric_totals"):
        op.drop_table(table)
