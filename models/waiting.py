"""Why a generation waits, told from the state of this moment. Nothing here writes."""

from sqlalchemy import Connection, and_, func, or_, select

from models import gates, reads, schedule
from models.base import table_of
from models.credit import SHORT
from models.lifecycle import AWAITS_DECISION, Status
from models.reads import GenerationView
from models.tables import Generation

g = table_of(Generation).c


def why(conn: Connection, view: GenerationView) -> str | None:
    """What an accepted generation waits for; for any other what its row says, if anything.

    The row keeps only what held it back itself. Of the many that wait behind a gate, or for a
    slot, nothing is written, so that it is told here.
    """
    if view.status is not Status.ACCEPTED or view.waits_for == AWAITS_DECISION:
        return view.waits_for
    if view.blocked_by is not None:
        return f"generation {view.blocked_by}: equal, with the same seed, and goes first"
    gate = gates.sending(conn).obstacle(view.estimated_cost)
    if gate is not None:
        return f"gate {gate.name}, closed by {gate.reason}"
    put_off = conn.execute(
        select(g.due_at > func.now()).where(g.id == view.id)
    ).scalar_one_or_none()
    short = (view.waits_for or "").startswith(SHORT)
    if view.waits_for is not None and (put_off or short):
        return view.waits_for
    return ", ".join((_turn(conn, view), *reads.slowed(conn)))


def _turn(conn: Connection, view: GenerationView) -> str:
    ahead = conn.execute(
        select(func.count())
        .select_from(Generation)
        .where(
            g.status == Status.ACCEPTED,
            g.due_at <= func.now(),
            or_(
                g.priority > view.priority,
                and_(g.priority == view.priority, g.created_at < view.created_at),
            ),
        )
    ).scalar_one()
    return f"a free slot: {schedule.in_flight(conn)} in flight, {ahead} waiting before it"
