"""flow control for each account; workers as witnesses of their claims

`flow_control` and `breakers` replace `gates` and `learned_limits`. What was closed is opened: the
next answer of the provider closes it again where that is right.
"""

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import TIMESTAMP

from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None


def _time(name: str) -> sa.Column[object]:
    return sa.Column(name, TIMESTAMP(timezone=True))


def upgrade() -> None:
    op.create_table(
        "flow_control",
        sa.Column("account", sa.Text(), nullable=False),
        sa.Column("rate", sa.Float()),
        sa.Column("rate_refused", sa.Float()),
        _time("rate_changed_at"),
        _time("resume_at"),
        sa.Column("concurrency", sa.Integer()),
        sa.Column("concurrency_refused", sa.Integer()),
        _time("concurrency_changed_at"),
        _time("failed_at"),
        _time("outage_since"),
        _time("probe_at"),
        _time("ramp_since"),
        sa.Column("reason", sa.Text()),
        sa.PrimaryKeyConstraint("account", name=op.f("pk_flow_control")),
        sa.CheckConstraint("rate > 0", name=op.f("ck_flow_control_rate_positive")),
        sa.CheckConstraint("concurrency >= 1", name=op.f("ck_flow_control_concurrency_positive")),
        sa.CheckConstraint(
            "(outage_since IS NULL) = (probe_at IS NULL)",
            name=op.f("ck_flow_control_outage_has_probe"),
        ),
        sa.CheckConstraint(
            "(rate IS NULL) = (rate_refused IS NULL) AND"
            " (rate IS NULL) = (rate_changed_at IS NULL)",
            name=op.f("ck_flow_control_rate_complete"),
        ),
        sa.CheckConstraint(
            "(concurrency IS NULL) = (concurrency_refused IS NULL) AND"
            " (concurrency IS NULL) = (concurrency_changed_at IS NULL)",
            name=op.f("ck_flow_control_concurrency_complete"),
        ),
    )
    # Nothing is known of the account yet: submission is ramped up.
    op.execute("INSERT INTO flow_control (account, ramp_since) VALUES ('default', now())")
    op.create_table(
        "breakers",
        sa.Column("account", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        _time("opened_at"),
        sa.Column("reason", sa.Text()),
        _time("probe_at"),
        sa.Column("refused_estimate", sa.Numeric(14, 4)),
        sa.Column("trips", sa.Integer(), server_default="0", nullable=False),
        _time("closed_at"),
        sa.PrimaryKeyConstraint("account", "name", name=op.f("pk_breakers")),
        sa.CheckConstraint("name IN ('api_key', 'credit')", name=op.f("ck_breakers_name_known")),
        sa.CheckConstraint(
            "(opened_at IS NULL) = (reason IS NULL)", name=op.f("ck_breakers_open_has_reason")
        ),
    )
    op.create_table(
        "workers",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("locked", sa.Boolean(), nullable=False),
        sa.Column(
            "started_at", TIMESTAMP(timezone=True), server_default=sa.func.now(), nullable=False
        ),
        sa.Column(
            "seen_at", TIMESTAMP(timezone=True), server_default=sa.func.now(), nullable=False
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_workers")),
    )
    op.add_column("generations", _time("leased_until"))
    op.add_column("generations", sa.Column("claimed_by", sa.BigInteger()))
    op.create_index(
        "ix_generations_retry",
        "generations",
        ["due_at"],
        postgresql_where=sa.text("status = 'accepted' AND wait_reason = 'retry'"),
    )
    op.add_column("submit_attempts", _time("answered_at"))
    op.add_column("submit_attempts", sa.Column("provider_ok", sa.Boolean()))
    op.create_index(
        "ix_submit_attempts_answered",
        "submit_attempts",
        ["answered_at", "provider_ok"],
        postgresql_where=sa.text("provider_ok IS NOT NULL"),
    )
    # The latest attempts are read in their order, which a BRIN index cannot return.
    op.drop_index("ix_submit_attempts_started", table_name="submit_attempts")
    op.create_index("ix_submit_attempts_started", "submit_attempts", ["started_at"])
    op.execute("DELETE FROM pulses WHERE name = 'dispatcher'")
    op.drop_table("gates")
    op.drop_table("learned_limits")


def downgrade() -> None:
    op.create_table(
        "gates",
        sa.Column("name", sa.Text(), nullable=False),
        _time("closed_at"),
        sa.Column("reason", sa.Text()),
        _time("opens_at"),
        _time("probe_at"),
        sa.Column("refused_estimate", sa.Numeric(14, 4)),
        sa.Column("failures", sa.Integer(), server_default="0", nullable=False),
        _time("opened_at"),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_gates")),
        sa.CheckConstraint(
            "name IN ('api_key', 'credit', 'backoff')", name=op.f("ck_gates_name_known")
        ),
        sa.CheckConstraint(
            "(closed_at IS NULL) = (reason IS NULL)", name=op.f("ck_gates_closed_says_why")
        ),
    )
    op.create_table(
        "learned_limits",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("value", sa.Integer(), nullable=False),
        sa.Column(
            "changed_at", TIMESTAMP(timezone=True), server_default=sa.func.now(), nullable=False
        ),
        sa.Column("refused", sa.Integer(), server_default="1", nullable=False),
        sa.Column("pause", sa.Float(), server_default="30", nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_learned_limits")),
        sa.CheckConstraint("value >= 1", name=op.f("ck_learned_limits_floor")),
    )
    op.drop_index("ix_submit_attempts_started", table_name="submit_attempts")
    op.create_index(
        "ix_submit_attempts_started", "submit_attempts", ["started_at"], postgresql_using="brin"
    )
    op.drop_index("ix_submit_attempts_answered", table_name="submit_attempts")
    op.drop_column("submit_attempts", "provider_ok")
    op.drop_column("submit_attempts", "answered_at")
    op.drop_index("ix_generations_retry", table_name="generations")
    op.drop_column("generations", "claimed_by")
    op.drop_column("generations", "leased_until")
    op.drop_table("workers")
    op.drop_table("breakers")
    op.drop_table("flow_control")
