"""until when somebody waits for a generation; whose upload, found when the generation is pruned"""

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("generations", sa.Column("waited_until", postgresql.TIMESTAMP(timezone=True)))
    # One row for each distinct reference of late: built in a moment.
    op.create_index(
        "ix_uploads_claimed_by",
        "uploads",
        ["claimed_by"],
        postgresql_where=sa.text("claimed_by IS NOT NULL"),
    )


def downgrade() -> None:
    op.drop_index("ix_uploads_claimed_by", table_name="uploads")
    op.drop_column("generations", "waited_until")
