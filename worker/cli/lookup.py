"""Finding the generation that somebody means: by id, by the id's beginning, by remote task."""

import re
import uuid

from sqlalchemy import Connection, select

from models import reads
from models.base import table_of
from models.reads import GenerationView
from models.tables import Generation
from worker.cli.errors import BadInput, Failed

g = table_of(Generation).c

_SHORTEST = 8
_BEGINNING = re.compile(rf"[0-9a-f]{{{_SHORTEST},31}}")


def find(conn: Connection, name: str) -> GenerationView:
    """The generation of that name. Raises BadInput or Failed, which say what was tried."""
    generation_id = _uuid(name)
    found = None if generation_id is None else reads.get(conn, generation_id)
    # Ids of remote tasks may look like ours.
    found = found or reads.by_remote_task(conn, name) or _by_beginning(conn, name)
    if found is None:
        raise Failed(f"there is no generation {name}, and none follows a remote task of that id")
    return found


def id_of(conn: Connection, name: str) -> uuid.UUID:
    """The id of that name; a whole id need not be of a generation that is still kept."""
    return _uuid(name) or find(conn, name).id


def _uuid(name: str) -> uuid.UUID | None:
    try:
        return uuid.UUID(name)
    except ValueError:
        return None


def _by_beginning(conn: Connection, name: str) -> GenerationView | None:
    digits = name.lower().replace("-", "")
    if not _BEGINNING.fullmatch(digits):
        return None
    first, last = (uuid.UUID(digits.ljust(32, fill)) for fill in "0f")
    ids = conn.execute(select(g.id).where(g.id.between(first, last)).limit(2)).scalars().all()
    if len(ids) > 1:
        raise BadInput(f"more than one generation begins with {name}: give more of its id")
    return reads.get(conn, ids[0]) if ids else None
