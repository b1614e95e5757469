"""indexes by which new history and ledger entries are counted

In a revision of their own: the columns came under a lock that shuts everybody out, for a moment.
These are built over what has the column set, which is nothing yet: one pass over each table, while
which it can be read, and writers wait.
"""

import sqlalchemy as sa

from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

COUNTED = ("generation_events", "ledger_entries")


def upgrade() -> None:
    for table in COUNTED:
        op.create_index(
            f"ix_{table}_txid",
            table,
            ["txid"],
            postgresql_where=sa.text("txid IS NOT NULL"),
            if_not_exists=True,
        )


def downgrade() -> None:
    for table in COUNTED:
        op.drop_index(f"ix_{table}_txid", table_name=table)
