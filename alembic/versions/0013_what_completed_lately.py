"""an index by which what completed lately is found

The archive asks every few minutes whether it has been passed by. Built in one pass over the table,
while which it can be read, and writers wait.
"""

import sqlalchemy as sa

from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index(
        "ix_generations_completed",
        "generations",
        ["finished_at", "id"],
        postgresql_where=sa.text("status = 'completed'"),
        if_not_exists=True,
    )


def downgrade() -> None:
    op.drop_index("ix_generations_completed", table_name="generations")
