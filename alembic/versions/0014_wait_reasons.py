"""what delays a generation as a code and its figures, in place of a sentence

The sentences of before are converted by how they begin; those of unknown wording become `retry`
with the sentence as the reason. Stop the workers first: those of before write the dropped column.
"""

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None

REASONS = (
    *("breaker", "budget", "concurrency", "credits", "equal_generation", "operator", "pause"),
    *("rate", "reference", "retry"),
)

CONVERT = r"""
    UPDATE generations g SET wait_reason = c.reason, wait_detail = c.detail
    FROM (
        SELECT id,
            CASE
                WHEN waits_for = 'a decision' THEN 'operator'
                WHEN waits_for LIKE 'a pause%' THEN 'pause'
                WHEN waits_for LIKE 'an equal generation%' THEN 'equal_generation'
                WHEN waits_for LIKE 'gate backoff%' THEN 'rate'
                WHEN waits_for LIKE 'gate%' THEN 'breaker'
                WHEN waits_for = 'the request rate' THEN 'rate'
                WHEN waits_for LIKE 'a free slot%' THEN 'concurrency'
                WHEN waits_for LIKE 'credits:%' THEN 'credits'
                WHEN waits_for LIKE 'budget:%' THEN 'budget'
                WHEN waits_for IN ('its reference', 'the provider''s storage') THEN 'reference'
                ELSE 'retry'
            END AS reason,
            CASE
                WHEN waits_for LIKE 'an equal generation%' AND blocked_by IS NOT NULL
                    THEN jsonb_build_object('generation', blocked_by)
                WHEN waits_for LIKE 'gate backoff%' THEN '{"cause": "backoff"}'
                WHEN waits_for LIKE 'gate%'
                    THEN jsonb_build_object('breaker', substring(waits_for FROM '^gate (\w+)'))
                WHEN waits_for = 'the request rate' THEN '{"cause": "request_rate"}'
                WHEN waits_for LIKE 'a pause%' OR waits_for LIKE 'an equal generation%'
                    OR waits_for LIKE 'a free slot%' OR waits_for LIKE 'credits:%'
                    OR waits_for LIKE 'budget:%'
                    OR waits_for IN ('a decision', 'its reference', 'the provider''s storage')
                    THEN NULL
                ELSE jsonb_build_object('why', waits_for)
            END AS detail
        FROM generations WHERE waits_for IS NOT NULL
    ) c
    WHERE g.id = c.id
"""

REVERT = """
    UPDATE generations SET waits_for = CASE wait_reason
        WHEN 'operator' THEN 'a decision'
        WHEN 'pause' THEN 'a pause'
        WHEN 'equal_generation' THEN 'an equal generation with the same seed'
        WHEN 'breaker' THEN concat('gate ', wait_detail ->> 'breaker')
        WHEN 'rate' THEN CASE wait_detail ->> 'cause'
            WHEN 'backoff' THEN 'gate backoff' ELSE 'the request rate' END
        WHEN 'concurrency' THEN 'a free slot'
        WHEN 'credits' THEN concat('credits: ', wait_detail ->> 'needed', ' needed')
        WHEN 'budget' THEN concat('budget: ', wait_detail ->> 'needed', ' needed')
        WHEN 'reference' THEN 'its reference'
        ELSE coalesce(wait_detail ->> 'why', wait_detail ->> 'code', 'a retry')
    END
    WHERE wait_reason IS NOT NULL
"""


def upgrade() -> None:
    op.add_column("generations", sa.Column("wait_reason", sa.Text()))
    op.add_column("generations", sa.Column("wait_detail", postgresql.JSONB()))
    op.execute(CONVERT)
    op.drop_column("generations", "waits_for")
    op.create_check_constraint(
        op.f("ck_generations_wait_reason_known"),
        "generations",
        f"wait_reason IN ({', '.join(repr(reason) for reason in REASONS)})",
    )
    op.create_check_constraint(
        op.f("ck_generations_wait_detail_of_reason"),
        "generations",
        "wait_detail IS NULL OR (wait_reason IS NOT NULL AND jsonb_typeof(wait_detail) = 'object')",
    )


def downgrade() -> None:
    op.add_column("generations", sa.Column("waits_for", sa.Text()))
    op.execute(REVERT)
    # The constraints go with their columns.
    op.drop_column("generations", "wait_detail")
    op.drop_column("generations", "wait_reason")
