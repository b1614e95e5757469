"""The schedule of artifacts and what becomes of them. Every write is fenced by the row's lease."""

import uuid
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Self

from sqlalchemy import ColumnElement, Connection, case, func, insert, literal, select, text, update

from models import storable
from models.artifacts.table import Artifact, Kind
from models.base import table_of
from models.lifecycle import Note, Observation, Status
from models.metrics import pulses
from models.notices import delivery
from models.tables import Generation, GenerationEvent
from models.transitions import in_seconds

_artifacts = table_of(Artifact)
a = _artifacts.c
g = table_of(Generation).c
_events = table_of(GenerationEvent)

ALARM_AFTER = timedelta(days=1)
"""So long after its generation's end what still isn't stored asks for an operator: six days before
the provider lets go of it."""

CAUGHT_UP = "archive_catch_up"
"""The pulse that says up to when all that completed was asked for."""

MOST_ERROR = 500
"""Characters of an error that are kept."""

_DEADLY = 5
"""After so many tries a claim lasts longer and longer, up to an hour: should workers die of it,
then seldom."""


@dataclass(frozen=True)
class Key:
    """Which artifact; as text in messages."""

    generation_id: uuid.UUID
    kind: Kind

    def __str__(self) -> str:
        return f"{self.generation_id}.{self.kind}"

    @classmethod
    def parse(cls, text_: str) -> Self:
        """The other way round. Raises ValueError."""
        generation_id, _, kind = text_.partition(".")
        return cls(uuid.UUID(generation_id), Kind(kind))

    def held(self, lease: int) -> ColumnElement[bool]:
        """Its row, while this lease is its latest and it is neither stored nor lost."""
        return (
            (a.generation_id == self.generation_id)
            & (a.kind == str(self.kind))
            & (a.lease == lease)
            & a.due_at.is_not(None)
        )


def claim(conn: Connection, limit: int, lease_seconds: float) -> list[tuple[Key, int]]:
    """Claim up to `limit` artifacts that are due, the longest due first; each with its lease."""
    due = (
        select(a.generation_id, a.kind)
        .where(a.due_at <= func.now())
        .order_by(a.due_at)
        .limit(limit)
        .with_for_update(skip_locked=True)
        .cte("due")
    )
    doubled = lease_seconds * func.power(2, func.least(a.tries - _DEADLY, 16))
    lasts = case((a.tries <= _DEADLY, lease_seconds), else_=func.least(3600, doubled))
    rows = conn.execute(
        update(_artifacts)
        .where(a.generation_id == due.c.generation_id, a.kind == due.c.kind)
        .values(lease=a.lease + 1, due_at=func.now() + lasts * text("interval '1 second'"))
        .returning(a.generation_id, a.kind, a.lease)
    )
    return [(Key(row.generation_id, Kind(row.kind)), row.lease) for row in rows]


@dataclass(frozen=True)
class Work:
    """What there is to know before an artifact is fetched."""

    key: Key
    lease: int
    tries: int
    """This one counted."""
    error: str | None
    """Of the last try."""
    remote_task_id: str | None
    """None if the generation is gone."""
    url: str | None
    """Signed; None if there is none, or it has certainly expired."""

    def __repr__(self) -> str:
        return f"Work({self.key}, lease {self.lease}, try {self.tries})"


def begin(conn: Connection, key: Key, lease: int) -> Work | None:
    """Start on a claimed artifact: count the try and load it. None for a stale message."""
    row = conn.execute(
        update(_artifacts)
        .where(key.held(lease))
        .values(tries=a.tries + 1)
        .returning(a.tries, a.error, (a.available_until > func.now()).label("signed"))
    ).one_or_none()
    if row is None:
        return None
    column = g.video_url if key.kind is Kind.VIDEO else g.last_frame_url
    of = conn.execute(
        select(g.remote_task_id, column.label("url")).where(g.id == key.generation_id)
    ).one_or_none()
    return Work(
        key,
        lease,
        row.tries,
        row.error,
        None if of is None else of.remote_task_id,
        of.url if of is not None and row.signed else None,
    )


def put_off(conn: Connection, key: Key, lease: int, seconds: float) -> bool:
    """Due again in so many seconds; also renews the lease. False if the claim is lost."""
    done = conn.execute(
        update(_artifacts).where(key.held(lease)).values(due_at=in_seconds(seconds))
    )
    return done.rowcount == 1


def renewed(conn: Connection, seen: Observation) -> None:
    """Keep the fresh addresses that the provider gave for a completed task."""
    conn.execute(
        update(Generation)
        .where(g.remote_task_id == seen.task_id, g.status == Status.COMPLETED)
        .values(
            video_url=func.coalesce(seen.video_url, g.video_url),
            last_frame_url=func.coalesce(seen.last_frame_url, g.last_frame_url),
        )
    )


@dataclass(frozen=True)
class Stored:
    """A file in the archive."""

    uri: str
    bytes: int
    sha256: str
    content_type: str


def stored(conn: Connection, key: Key, lease: int, what: Stored) -> bool:
    """It is in the archive: final, and told in the history. False if the claim was lost."""
    done = conn.execute(
        update(_artifacts)
        .where(key.held(lease))
        .values(**vars(what), stored_at=func.now(), due_at=None, error=None, attention_at=None)
    )
    if done.rowcount:
        detail = {"kind": str(key.kind), **vars(what)}
        _tell(conn, key, Note.ARCHIVED, detail)
        delivery.results_settled(conn, key.generation_id)
    return done.rowcount == 1


class Failed(StrEnum):
    """What a failed try leads to."""

    STALE = "stale"
    AGAIN = "again"
    ALARM = "alarm"
    """Again, and an operator is asked for from now on."""
    LOST = "lost"


def failed(conn: Connection, key: Key, lease: int, error: str, *, seconds: float) -> Failed:
    """A try failed: due again in so many seconds, or lost, if the provider has let go of it."""
    said = (storable.text(error) or "")[:MOST_ERROR]
    over = a.available_until <= func.now()
    late = a.made_at + ALARM_AFTER <= func.now()
    before = select(a.attention_at).where(key.held(lease)).with_for_update()
    locked = conn.execute(before).one_or_none()
    if locked is None:
        return Failed.STALE
    row = conn.execute(
        update(_artifacts)
        .where(key.held(lease))
        .values(
            error=said,
            due_at=case((over, None), else_=in_seconds(seconds)),
            lost_at=case((over, func.now())),
            attention_at=case((over, None), (late, func.coalesce(a.attention_at, func.now()))),
        )
        .returning(a.lost_at, a.attention_at)
    ).one()
    if row.lost_at is not None:
        _tell(conn, key, Note.LOST, {"kind": str(key.kind), "why": said})
        delivery.results_settled(conn, key.generation_id)
        return Failed.LOST
    if row.attention_at is not None and locked.attention_at is None:
        why = f"its {key.kind} can't be stored: {said}"
        _tell(conn, key, Note.ATTENTION, {"why": why})
        return Failed.ALARM
    return Failed.AGAIN


def _tell(conn: Connection, key: Key, what: Note, detail: dict[str, Any]) -> None:
    """A line in the history, if the generation is still there."""
    conn.execute(
        insert(_events).from_select(
            ["generation_id", "event", "detail"],
            select(g.id, literal(str(what)), literal(detail, _events.c.detail.type)).where(
                g.id == key.generation_id
            ),
        )
    )


OVERLAP = timedelta(minutes=15)
"""So far a pass goes back behind the one before: far longer than a transaction may take."""

_SINCE = text(
    """
    SELECT greatest(now() - interval '7 days', max(at) - :overlap) FROM pulses WHERE name = :pulse
    """
)

_MISSING = text(
    """
    WITH next AS MATERIALIZED (
        SELECT id, finished_at, last_frame_url FROM generations
        WHERE status = 'completed' AND finished_at >= :since AND (finished_at, id) > (:since, :last)
        ORDER BY finished_at, id LIMIT :most
    ), asked AS (
        INSERT INTO artifacts (generation_id, kind, due_at, available_until)
        SELECT n.id, k.kind, now(), n.finished_at + interval '7 days'
        FROM next n CROSS JOIN (VALUES ('video'), ('last_frame')) k (kind)
        WHERE (k.kind = 'video' OR n.last_frame_url IS NOT NULL)
          AND NOT EXISTS (
              SELECT FROM artifacts a WHERE a.generation_id = n.id AND a.kind = k.kind)
        ORDER BY n.id, k.kind
        ON CONFLICT DO NOTHING
        RETURNING 1
    )
    SELECT n.finished_at AS since, n.id AS last, (SELECT count(*) FROM asked) AS asked,
           (SELECT count(*) FROM next) AS looked_at
    FROM next n ORDER BY n.finished_at DESC, n.id DESC LIMIT 1
    """
)


_FIRST = uuid.UUID(int=0)


@dataclass(frozen=True)
class Place:
    """How far a pass has come: by the time of completion, which has an index."""

    since: datetime
    last: uuid.UUID = _FIRST


def behind(conn: Connection) -> Place:
    """Where a pass begins: a little before the last one ended, a week ago if there was none.

    So what a pass costs grows with what has completed since, not with what there is.
    """
    values = {"overlap": OVERLAP, "pulse": CAUGHT_UP}
    return Place(conn.execute(_SINCE, values).scalar_one())


def catch_up(conn: Connection, place: Place, *, most: int) -> tuple[int, Place | None]:
    """Ask for what completed while no archive was configured, looking at up to so many.

    Returns how many files that were, and where to go on; None at the end, which is kept for the
    next pass.
    """
    row = conn.execute(_MISSING, {**vars(place), "most": most}).one_or_none()
    if row is not None and row.looked_at == most:
        return row.asked, Place(row.since, row.last)
    pulses.tell(conn, CAUGHT_UP)
    return (0 if row is None else row.asked), None
