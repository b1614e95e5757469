"""The table of budgets."""

from sqlalchemy import CheckConstraint, Text, func
from sqlalchemy.orm import Mapped, mapped_column

from models.base import Base, Credits, Instant


class Budget(Base):
    """How many credits a tenant may spend in each day, in each month, or at all; days are UTC's."""

    __tablename__ = "budgets"

    tenant: Mapped[str] = mapped_column(Text, primary_key=True)
    period: Mapped[str] = mapped_column(Text, primary_key=True)
    amount: Mapped[Credits]
    policy: Mapped[str] = mapped_column(Text)
    changed_at: Mapped[Instant] = mapped_column(server_default=func.now())

    __table_args__ = (
        CheckConstraint("period IN ('day', 'month', 'total')", name="period_known"),
        CheckConstraint("policy IN ('refuse', 'wait')", name="policy_known"),
        CheckConstraint("amount >= 0", name="amount_positive"),
    )
