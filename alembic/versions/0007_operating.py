"""pauses, what operators did, and which generation is a retry of which"""

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

APPEND_ONLY = (
    """
    CREATE FUNCTION actions_are_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        RAISE EXCEPTION 'operator_actions is append-only: % refused', TG_OP
            USING ERRCODE = 'restrict_violation';
    END $$
    """,
    """
    CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON operator_actions
    FOR EACH STATEMENT EXECUTE FUNCTION actions_are_append_only()
    """,
)


def upgrade() -> None:
    op.create_table(
        "pauses",
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("paused_by", sa.Text(), nullable=False),
        sa.Column(
            "paused_at",
            postgresql.TIMESTAMP(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.CheckConstraint("reason <> ''", name=op.f("ck_pauses_says_why")),
        sa.PrimaryKeyConstraint("tenant", name=op.f("pk_pauses")),
    )
    op.create_table(
        "operator_actions",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column(
            "at",
            postgresql.TIMESTAMP(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("tenant", sa.Text(), nullable=True),
        sa.Column("generation_id", sa.Uuid(), nullable=True),
        sa.Column("detail", postgresql.JSONB(none_as_null=True), nullable=True),
        sa.CheckConstraint("actor <> ''", name=op.f("ck_operator_actions_says_who")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_operator_actions")),
    )
    op.create_index(
        "ix_operator_actions_generation",
        "operator_actions",
        ["generation_id", "id"],
        postgresql_where=sa.text("generation_id IS NOT NULL"),
    )
    for statement in APPEND_ONLY:
        op.execute(statement)
    # Each names the other, so that neither needs an index to be found.
    op.add_column("generations", sa.Column("retry_of", sa.Uuid()))
    op.add_column("generations", sa.Column("retried_as", sa.Uuid()))


def downgrade() -> None:
    op.drop_column("generations", "retried_as")
    op.drop_column("generations", "retry_of")
    op.drop_table("operator_actions")
    op.execute("DROP FUNCTION actions_are_append_only()")
    op.drop_table("pauses")
