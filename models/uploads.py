"""What was uploaded, by content: the same reference is sent once while it is valid."""

import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import (
    ColumnElement,
    Connection,
    Interval,
    func,
    literal_column,
    or_,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import insert

from models.base import among, table_of
from models.tables import Upload
from models.transitions import in_seconds

_uploads = table_of(Upload)
u = _uploads.c


@dataclass(frozen=True)
class Content:
    """Which bytes, and for which generation they are being uploaded."""

    sha256: str
    content_type: str
    generation_id: uuid.UUID
    lease: int

    def here(self) -> ColumnElement[bool]:
        """The row of these bytes."""
        return (u.sha256 == self.sha256) & (u.content_type == self.content_type)

    def mine(self) -> ColumnElement[bool]:
        """That row, while this generation holds the claim."""
        return self.here() & (u.claimed_by == self.generation_id) & (u.claimed_lease == self.lease)


@dataclass(frozen=True)
class Uploaded:
    """The provider has it, under this path."""

    file_path: str


@dataclass(frozen=True)
class Yours:
    """Nobody has uploaded it: the caller holds the claim to."""


@dataclass(frozen=True)
class SomebodyElse:
    """The same bytes are being uploaded now: look again soon.

    `same_message`: under this very lease, so this is a repeated message, and nothing is to do.
    """

    same_message: bool


def claim(
    conn: Connection, content: Content, *, size: int, lease_seconds: float
) -> Uploaded | Yours | SomebodyElse:
    """Find the upload of these bytes, or claim it."""
    # Used up to its last minute, a path could expire between here and the provider's reading it.
    margin = literal_column("(uploads.valid_until - uploads.uploaded_at) / 20", Interval)
    valid = u.valid_until > func.now() + margin
    new = insert(_uploads).values(
        sha256=content.sha256,
        content_type=content.content_type,
        size=size,
        claimed_by=content.generation_id,
        claimed_lease=content.lease,
        claimed_until=in_seconds(lease_seconds),
    )
    free = or_(u.claimed_until.is_(None), u.claimed_until <= func.now())
    # Under an older lease: whoever had it lost the generation, and so the claim.
    outdated = (u.claimed_by == content.generation_id) & (u.claimed_lease < content.lease)
    claimed = conn.execute(
        new.on_conflict_do_update(
            index_elements=[u.sha256, u.content_type],
            set_={
                "claimed_by": new.excluded.claimed_by,
                "claimed_lease": new.excluded.claimed_lease,
                "claimed_until": new.excluded.claimed_until,
                "file_path": None,
                "valid_until": None,
                "uploaded_at": None,
            },
            where=or_(u.file_path.is_(None), ~valid) & or_(free, outdated),
        ).returning(u.sha256)
    ).first()
    if claimed is not None:
        return Yours()
    row = conn.execute(
        select(u.file_path, content.mine().label("mine"), valid.label("valid")).where(
            content.here()
        )
    ).one()
    if row.file_path is not None and row.valid:
        return Uploaded(row.file_path)
    return SomebodyElse(same_message=bool(row.mine))


def renew(conn: Connection, content: Content, *, seconds: float) -> None:
    """Keep the claim while a large file is on its way."""
    conn.execute(update(_uploads).where(content.mine()).values(claimed_until=in_seconds(seconds)))


def done(conn: Connection, content: Content, *, file_path: str, valid_seconds: float) -> None:
    """The bytes are with the provider."""
    conn.execute(
        update(_uploads)
        .where(content.mine())
        .values(
            file_path=file_path,
            uploaded_at=func.now(),
            valid_until=in_seconds(valid_seconds),
            claimed_until=None,
        )
    )


def failed(conn: Connection, content: Content) -> None:
    """It did not work: whoever needs the bytes next may try at once."""
    conn.execute(
        update(_uploads).where(content.mine(), u.file_path.is_(None)).values(claimed_until=None)
    )


def valid_until(conn: Connection, file_paths: Iterable[str]) -> datetime | None:
    """When the first of these uploads ceases to be valid; None for none of ours."""
    soonest: datetime | None = conn.execute(
        select(func.min(u.valid_until)).where(among(u.file_path, file_paths))
    ).scalar_one()
    return soonest
