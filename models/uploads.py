"""What was uploaded, by content: the same reference is sent once while it is valid."""

import uuid
from dataclasses import dataclass

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

from models.base import table_of
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

    def here(self) -> ColumnElement[bool]:
        """The row of these bytes."""
        return (u.sha256 == self.sha256) & (u.content_type == self.content_type)

    def mine(self) -> ColumnElement[bool]:
        """That row, while this generation holds the claim."""
        return self.here() & (u.claimed_by == self.generation_id)


@dataclass(frozen=True)
class Uploaded:
    """The provider has it, under this path."""

    file_path: str


@dataclass(frozen=True)
class Yours:
    """Nobody has uploaded it: the caller holds the claim to."""


@dataclass(frozen=True)
class SomebodyElse:
    """Another generation is uploading the same bytes now: look again soon."""


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
        claimed_until=in_seconds(lease_seconds),
    )
    free = or_(u.claimed_until.is_(None), u.claimed_until <= func.now())
    mine = u.claimed_by == content.generation_id
    claimed = conn.execute(
        new.on_conflict_do_update(
            index_elements=[u.sha256, u.content_type],
            set_={
                "claimed_by": new.excluded.claimed_by,
                "claimed_until": new.excluded.claimed_until,
                "file_path": None,
                "valid_until": None,
                "uploaded_at": None,
            },
            where=or_(u.file_path.is_(None), ~valid) & or_(free, mine),
        ).returning(u.sha256)
    ).first()
    if claimed is not None:
        return Yours()
    path = conn.execute(select(u.file_path).where(content.here(), valid)).scalar_one_or_none()
    return SomebodyElse() if path is None else Uploaded(path)


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
