"""What a completed generation's transition asks to be stored, in the statement that makes it."""

from sqlalchemy import CTE, ColumnElement, Connection, func, literal, select, text, union_all
from sqlalchemy.dialects.postgresql import insert

from models.artifacts.table import Artifact, Kind
from models.base import table_of
from models.lifecycle import Event

WANTED = "seedance_archive"
"""An engine's execution option: completed generations leave artifacts to be stored. Set where an
archive is configured, so that a service without one pays nothing and piles nothing up."""

AVAILABLE = text("interval '7 days'")
"""How long the provider's signed addresses live (its document, "Response Fields")."""

_artifacts = table_of(Artifact)


def wanted(conn: Connection, event: Event) -> bool:
    """Whether a move by `event` over this connection leaves artifacts."""
    return event is Event.COMPLETE and bool(conn.get_execution_options().get(WANTED))


def on_move(moved: CTE) -> CTE:
    """The artifacts of generations that have just completed.

    `moved` has the rows after it, with `id` and `last_frame_url`.
    """
    return (
        insert(_artifacts)
        .from_select(
            ["generation_id", "kind", "due_at", "available_until"],
            union_all(
                select(moved.c.id, literal(str(Kind.VIDEO)), func.now(), _until()),
                select(moved.c.id, literal(str(Kind.LAST_FRAME)), func.now(), _until()).where(
                    moved.c.last_frame_url.is_not(None)
                ),
            ),
        )
        .on_conflict_do_nothing()
        .cte("to_store")
    )


def _until() -> ColumnElement[object]:
    return func.now().op("+")(AVAILABLE)
