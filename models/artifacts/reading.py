"""Reading artifacts: for producers, operators and reports. Nothing here writes."""

import uuid
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import Connection, func, select

from models.artifacts.table import Artifact, Kind
from models.base import table_of

a = table_of(Artifact).c

_SHOWN = 3


@dataclass(frozen=True)
class ArtifactView:
    """A file that a generation leaves: stored, lost, or still to be stored."""

    kind: Kind
    uri: str | None
    bytes: int | None
    sha256: str | None
    content_type: str | None
    stored_at: datetime | None
    lost_at: datetime | None
    tries: int
    error: str | None
    attention_at: datetime | None
    due_at: datetime | None
    available_until: datetime


def of(conn: Connection, generation_id: uuid.UUID, *, hold: bool = False) -> list[ArtifactView]:
    """The artifacts of a generation, the video first. `hold`: none changes in this transaction."""
    columns = [a[name] for name in ArtifactView.__dataclass_fields__]
    asked = select(*columns).where(a.generation_id == generation_id).order_by(a.kind.desc())
    rows = conn.execute(asked.with_for_update(read=True) if hold else asked)
    return [ArtifactView(**{**row._asdict(), "kind": Kind(row.kind)}) for row in rows]


@dataclass(frozen=True)
class Unstored:
    """What is not in the archive, in numbers."""

    failing: int
    """Tried and not stored yet."""
    alarming: int
    """Of these, since over a day."""
    lost: int
    """In the last seven days."""
    lost_of: tuple[uuid.UUID, ...]
    """Some generations of these, the latest first."""
    error: str | None
    """Of the one that waits longest."""


def unstored(conn: Connection) -> Unstored:
    """What could not be stored so far, or at all."""
    waits = a.due_at.is_not(None) & a.error.is_not(None)
    failing, alarming = conn.execute(
        select(func.count(), func.count(a.attention_at)).where(waits)
    ).one()
    lately = a.lost_at > func.now() - timedelta(days=7)
    lost = conn.execute(select(func.count()).where(lately)).scalar_one()
    latest = func.max(a.lost_at)
    lost_of = conn.execute(
        select(a.generation_id)
        .where(lately)
        .group_by(a.generation_id)
        .order_by(latest.desc())
        .limit(_SHOWN)
    ).scalars()
    error = conn.execute(
        select(a.error).where(waits).order_by(a.made_at).limit(1)
    ).scalar_one_or_none()
    return Unstored(failing, alarming, lost, tuple(lost_of), error)
