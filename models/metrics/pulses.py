"""When things last succeeded: told by whoever did them, seldom; read for alerts."""

from datetime import datetime, timedelta

from sqlalchemy import Connection, delete, func, select
from sqlalchemy.dialects.postgresql import insert

from models.base import table_of
from models.metrics.tables import Pulse

_p = table_of(Pulse)


def tell(conn: Connection, name: str, process: str = "") -> None:
    """It has just succeeded."""
    told = insert(_p).values(name=name, process=process, at=func.now())
    conn.execute(
        told.on_conflict_do_update(index_elements=["name", "process"], set_={"at": func.now()})
    )


def last(conn: Connection) -> dict[str, datetime]:
    """When each thing last succeeded, in whatever process."""
    rows = conn.execute(select(_p.c.name, func.max(_p.c.at)).group_by(_p.c.name))
    return {name: at for name, at in rows}  # noqa: C416  (mypy: a Row is no pair)


def forget(conn: Connection, *, after: float) -> int:
    """Forget processes that have not told for so many seconds; their last one, of each, stays."""
    newest = select(_p.c.name, func.max(_p.c.at).label("at")).group_by(_p.c.name).subquery()
    old = delete(_p).where(
        _p.c.at < func.now() - timedelta(seconds=after),
        _p.c.name == newest.c.name,
        _p.c.at < newest.c.at,
    )
    return conn.execute(old).rowcount
