"""callbacks of the provider, on the attempt that they are of"""

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Nullable and without default: no rewrite, and old workers insert without them.
    op.add_column("submit_attempts", sa.Column("callback_digest", sa.LargeBinary()))
    op.add_column("submit_attempts", sa.Column("callback_at", postgresql.TIMESTAMP(timezone=True)))
    op.add_column("submit_attempts", sa.Column("callback_task_id", sa.Text()))


def downgrade() -> None:
    op.drop_column("submit_attempts", "callback_task_id")
    op.drop_column("submit_attempts", "callback_at")
    op.drop_column("submit_attempts", "callback_digest")
