"""the ledger and the budgets"""

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

APPEND_ONLY = (
    """
    CREATE FUNCTION ledger_is_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        RAISE EXCEPTION 'ledger_entries is append-only: % refused', TG_OP
            USING ERRCODE = 'restrict_violation';
    END $$
    """,
    """
    CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON ledger_entries
    FOR EACH STATEMENT EXECUTE FUNCTION ledger_is_append_only()
    """,
)

# What was booked had there been a ledger: it follows from the history alone.
BACKFILL = (
    """
    INSERT INTO ledger_entries (at, kind, amount, assumed, generation_id, attempt, remote_task_id,
        event, event_id, tenant, model, resolution)
    SELECT e.at, k.kind,
           CASE WHEN k.kind = 'charged' THEN coalesce(g.credit_cost, g.estimated_cost)
                ELSE g.estimated_cost END,
           k.kind = 'charged' AND g.credit_cost IS NULL,
           g.id,
           CASE WHEN k.kind = 'estimated' THEN 0 ELSE coalesce(e.attempt, 0) END,
           CASE WHEN k.kind = 'charged' THEN g.remote_task_id END,
           e.event, e.id, g.tenant, g.request ->> 'model', g.request ->> 'resolution'
    FROM generation_events e
    JOIN generations g ON g.id = e.generation_id
    CROSS JOIN LATERAL (
        VALUES
            ('estimated', e.event = 'accept'),
            ('reserved', e.to_status IN ('submitting', 'uncertain', 'running')
                AND e.from_status NOT IN ('submitting', 'uncertain', 'running')),
            ('released', e.to_status NOT IN ('submitting', 'uncertain', 'running')
                AND e.from_status IN ('submitting', 'uncertain', 'running')),
            ('charged', e.event = 'complete')
    ) AS k (kind, holds)
    WHERE k.holds AND e.to_status IS NOT NULL
    ORDER BY e.id
    ON CONFLICT DO NOTHING
    """,
    """
    INSERT INTO ledger_entries (at, kind, amount, assumed, generation_id, attempt, remote_task_id,
        event, tenant, model, resolution)
    SELECT s.last_seen_at, 'charged', coalesce(s.credit_cost, g.estimated_cost),
           s.credit_cost IS NULL, g.id, coalesce(s.attempt, 0), s.task_id, 'charged', g.tenant,
           g.request ->> 'model', g.request ->> 'resolution'
    FROM stray_tasks s JOIN generations g ON g.id = s.generation_id
    WHERE s.kind = 'second' AND s.status = 'completed'
    ON CONFLICT DO NOTHING
    """,
)


def upgrade() -> None:
    op.create_table(
        "ledger_entries",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column(
            "at",
            postgresql.TIMESTAMP(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("amount", sa.Numeric(precision=14, scale=4), nullable=False),
        sa.Column("assumed", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("generation_id", sa.Uuid(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("remote_task_id", sa.Text(), nullable=True),
        sa.Column("event", sa.Text(), nullable=False),
        sa.Column("event_id", sa.BigInteger(), nullable=True),
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=True),
        sa.Column("resolution", sa.Text(), nullable=True),
        sa.CheckConstraint(
            "kind IN ('estimated', 'reserved', 'released', 'charged')",
            name=op.f("ck_ledger_entries_kind_known"),
        ),
        sa.CheckConstraint("amount >= 0", name=op.f("ck_ledger_entries_amount_positive")),
        sa.CheckConstraint(
            "(kind = 'charged') = (remote_task_id IS NOT NULL)",
            name=op.f("ck_ledger_entries_charged_names_task"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_ledger_entries")),
    )
    op.create_index(
        "uq_ledger_entries_once",
        "ledger_entries",
        ["generation_id", "attempt", "kind", "event", sa.text("coalesce(remote_task_id, '')")],
        unique=True,
    )
    charges = {"postgresql_where": sa.text("kind = 'charged'")}
    op.create_index(
        "uq_ledger_entries_charged", "ledger_entries", ["remote_task_id"], unique=True, **charges
    )
    op.create_index(
        "ix_ledger_entries_charges",
        "ledger_entries",
        ["at"],
        postgresql_include=["amount"],
        **charges,
    )
    op.create_index(
        "ix_ledger_entries_tenant",
        "ledger_entries",
        ["tenant", "at"],
        postgresql_include=["amount"],
        **charges,
    )
    op.create_index("ix_ledger_entries_at", "ledger_entries", ["at"], postgresql_using="brin")
    for statement in (*BACKFILL, *APPEND_ONLY):
        op.execute(statement)
    op.create_table(
        "budgets",
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("period", sa.Text(), nullable=False),
        sa.Column("amount", sa.Numeric(precision=14, scale=4), nullable=False),
        sa.Column("policy", sa.Text(), nullable=False),
        sa.Column(
            "changed_at",
            postgresql.TIMESTAMP(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.CheckConstraint(
            "period IN ('day', 'month', 'total')", name=op.f("ck_budgets_period_known")
        ),
        sa.CheckConstraint("policy IN ('refuse', 'wait')", name=op.f("ck_budgets_policy_known")),
        sa.CheckConstraint("amount >= 0", name=op.f("ck_budgets_amount_positive")),
        sa.PrimaryKeyConstraint("tenant", "period", name=op.f("pk_budgets")),
    )


def downgrade() -> None:
    op.drop_table("budgets")
    op.drop_table("ledger_entries")
    op.execute("DROP FUNCTION ledger_is_append_only()")
