"""artifacts: what completed generations leave in an archive of one's own

Workers of before go on: they write none, and upkeep asks for what they have passed by.
"""

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

INSTANT = postgresql.TIMESTAMP(timezone=True)


def upgrade() -> None:
    op.create_table(
        "artifacts",
        sa.Column("generation_id", sa.Uuid(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("due_at", INSTANT),
        sa.Column("lease", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("tries", sa.Integer(), server_default="0", nullable=False),
        sa.Column("error", sa.Text()),
        sa.Column("attention_at", INSTANT),
        sa.Column("made_at", INSTANT, server_default=sa.text("now()"), nullable=False),
        sa.Column("available_until", INSTANT, nullable=False),
        sa.Column("stored_at", INSTANT),
        sa.Column("uri", sa.Text()),
        sa.Column("bytes", sa.BigInteger()),
        sa.Column("sha256", sa.Text()),
        sa.Column("content_type", sa.Text()),
        sa.Column("lost_at", INSTANT),
        sa.CheckConstraint("kind IN ('video', 'last_frame')", name=op.f("ck_artifacts_kind_known")),
        sa.CheckConstraint(
            "(due_at IS NULL) = (stored_at IS NOT NULL OR lost_at IS NOT NULL)",
            name=op.f("ck_artifacts_waits_is_due"),
        ),
        sa.CheckConstraint(
            "stored_at IS NULL OR lost_at IS NULL", name=op.f("ck_artifacts_stored_or_lost")
        ),
        sa.CheckConstraint(
            "lost_at IS NULL OR error IS NOT NULL", name=op.f("ck_artifacts_lost_says_why")
        ),
        sa.CheckConstraint(
            "num_nulls(stored_at, uri, bytes, sha256, content_type) IN (0, 5)",
            name=op.f("ck_artifacts_stored_is_complete"),
        ),
        sa.CheckConstraint("length(sha256) = 64", name=op.f("ck_artifacts_sha256_is_hex")),
        sa.PrimaryKeyConstraint("generation_id", "kind", name=op.f("pk_artifacts")),
    )
    op.create_index(
        "ix_artifacts_due",
        "artifacts",
        ["due_at"],
        postgresql_where=sa.text("due_at IS NOT NULL"),
    )
    op.create_index(
        "ix_artifacts_lost",
        "artifacts",
        ["lost_at"],
        postgresql_where=sa.text("lost_at IS NOT NULL"),
    )


def downgrade() -> None:
    op.drop_table("artifacts")
