"""Where totals are kept, how far the history is counted, and when things last succeeded."""

from decimal import Decimal

from sqlalchemy import BigInteger, Numeric, SmallInteger, Text, func
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Mapped, mapped_column

from models.base import Base, Instant


class MetricTotal(Base):
    """One series of a total, or one bucket of a histogram's (not cumulative)."""

    __tablename__ = "metric_totals"

    name: Mapped[str] = mapped_column(Text, primary_key=True)
    labels: Mapped[list[str]] = mapped_column(ARRAY(Text), primary_key=True)
    bucket: Mapped[int] = mapped_column(SmallInteger, primary_key=True)
    value: Mapped[Decimal] = mapped_column(Numeric)


class MetricCursor(Base):
    """Up to where the rows of a table are in the totals: all that were written before `txid`.

    Rows with an id up to `passed` are of another server (the database was restored from a dump):
    their `txid` says nothing here.
    """

    __tablename__ = "metric_cursors"

    source: Mapped[str] = mapped_column(Text, primary_key=True)
    txid: Mapped[int] = mapped_column(BigInteger)
    passed: Mapped[int] = mapped_column(BigInteger, server_default="0")


class Pulse(Base):
    """When something last succeeded: an upkeep task, or the dispatcher of a process."""

    __tablename__ = "pulses"

    name: Mapped[str] = mapped_column(Text, primary_key=True)
    process: Mapped[str] = mapped_column(Text, primary_key=True, server_default="")
    at: Mapped[Instant] = mapped_column(server_default=func.now())
