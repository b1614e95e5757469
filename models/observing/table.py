"""The tables of following many at once."""

from sqlalchemy import BigInteger, Double, Integer, Text, false, func
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Mapped, mapped_column

from models.base import Base, Instant


class Observer(Base):
    """Who reads the task list to follow what runs, and how that went. One row for a key."""

    __tablename__ = "observers"

    name: Mapped[str] = mapped_column(Text, primary_key=True)
    # Whether running generations are followed by the list: then they are not polled one by one.
    engaged: Mapped[bool] = mapped_column(server_default=false())
    lease: Mapped[int] = mapped_column(BigInteger, server_default="0")
    # Until then the list counts as being read; afterwards everybody is polled again.
    held_until: Mapped[Instant] = mapped_column(server_default=func.now())
    next_at: Mapped[Instant] = mapped_column(server_default=func.now())
    tries: Mapped[int] = mapped_column(Integer, server_default="0")
    # Passes in a row that were not worth their requests, or failed.
    failures: Mapped[int] = mapped_column(Integer, server_default="0")
    # From the last page to the first: where running tasks stand at the list's end.
    backward: Mapped[bool] = mapped_column(server_default=false())
    # The last pass: its requests, how many tasks it sought, and did not find.
    pages: Mapped[int] = mapped_column(Integer, server_default="0")
    sought: Mapped[int] = mapped_column(Integer, server_default="0")
    missed: Mapped[int] = mapped_column(Integer, server_default="0")
    began_at: Mapped[Instant | None]
    # Null while a pass is under way, or its message waits.
    ended_at: Mapped[Instant | None]


class UsualTime(Base):
    """How long the latest completed tasks of a kind took, in seconds, as they were seen."""

    __tablename__ = "usual_times"

    model: Mapped[str] = mapped_column(Text, primary_key=True)
    resolution: Mapped[str] = mapped_column(Text, primary_key=True)
    duration: Mapped[int] = mapped_column(Integer, primary_key=True)
    recent: Mapped[list[float]] = mapped_column(ARRAY(Double))
    updated_at: Mapped[Instant] = mapped_column(server_default=func.now())
