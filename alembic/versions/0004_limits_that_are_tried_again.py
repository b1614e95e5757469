"""what is known of a learned limit, so that it is tried again with care

Workers of before go on: they don't know the columns, and the defaults mean what they did.
"""

import sqlalchemy as sa

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "learned_limits", sa.Column("refused", sa.Integer(), server_default="1", nullable=False)
    )
    op.add_column(
        "learned_limits", sa.Column("pause", sa.Float(), server_default="30", nullable=False)
    )


def downgrade() -> None:
    op.drop_column("learned_limits", "pause")
    op.drop_column("learned_limits", "refused")
