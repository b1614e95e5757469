"""following many at once: the observer of the task list, and how long tasks usually take

Workers of before poll one by one, and raise the leases of what they claim: harmless.
"""

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

INSTANT = postgresql.TIMESTAMP(timezone=True)


def _number(name: str) -> sa.Column[int]:
    return sa.Column(name, sa.Integer(), server_default="0", nullable=False)


def _now(name: str) -> sa.Column[object]:
    return sa.Column(name, INSTANT, server_default=sa.text("now()"), nullable=False)


def _flag(name: str) -> sa.Column[bool]:
    return sa.Column(name, sa.Boolean(), server_default=sa.text("false"), nullable=False)


def upgrade() -> None:
    op.create_table(
        "observers",
        sa.Column("name", sa.Text(), nullable=False),
        _flag("engaged"),
        sa.Column("lease", sa.BigInteger(), server_default="0", nullable=False),
        _now("held_until"),
        _now("next_at"),
        _number("tries"),
        _number("failures"),
        _flag("backward"),
        _number("pages"),
        _number("sought"),
        _number("missed"),
        sa.Column("began_at", INSTANT),
        sa.Column("ended_at", INSTANT),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_observers")),
    )
    op.create_table(
        "usual_times",
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("resolution", sa.Text(), nullable=False),
        sa.Column("duration", sa.Integer(), nullable=False),
        sa.Column("recent", postgresql.ARRAY(sa.Double()), nullable=False),
        _now("updated_at"),
        sa.PrimaryKeyConstraint("model", "resolution", "duration", name=op.f("pk_usual_times")),
    )


def downgrade() -> None:
    op.drop_table("usual_times")
    op.drop_table("observers")
