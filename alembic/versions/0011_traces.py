"""the trace that a generation was enqueued in"""

import sqlalchemy as sa

from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("generations", sa.Column("trace", sa.Text()))


def downgrade() -> None:
    op.drop_column("generations", "trace")
