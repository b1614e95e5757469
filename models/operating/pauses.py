"""Pauses: an operator holds submission back, of all or of one tenant, until it is resumed.

Requests are accepted, running tasks followed, deadlines kept; only nothing new is let in, and
nothing that was let in is sent. Asked by every admission, every intent and every check before a
POST, so that it holds in all workers at once. Of the many that wait nothing is written.
"""

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import ColumnElement, Connection, delete, func, or_, select, update
from sqlalchemy.dialects.postgresql import insert

from models import storable
from models.base import table_of
from models.lifecycle import Status
from models.operating import actions
from models.operating.actions import Action, By
from models.operating.tables import Pause
from models.tables import Generation
from models.wait_reasons import NO_WAIT, Wait, WaitReason

_pauses = table_of(Pause)
p = _pauses.c
g = table_of(Generation).c

ALL = ""
"""As a tenant: everybody. No tenant has an empty name."""


_AT_ONCE = 10_000
"""Of so many at most who others wait for is looked at; the rest look again by themselves."""


@dataclass(frozen=True)
class PauseView:
    """A pause that holds now."""

    tenant: str | None
    """None: of all."""
    reason: str
    paused_by: str
    paused_at: datetime

    def __str__(self) -> str:
        of = "" if self.tenant is None else f" of tenant {self.tenant!r}"
        return f"a pause{of}: {self.reason} ({self.paused_by})"

    @property
    def wait(self) -> Wait:
        """Return what a generation that it holds waits for."""
        said = {"tenant": self.tenant, "why": self.reason, "by": self.paused_by}
        return Wait(WaitReason.PAUSE, said)


def holds(tenant: ColumnElement[str]) -> ColumnElement[bool]:
    """Whether a row's tenant is paused, by itself or with all."""
    return select(p.tenant).where(or_(p.tenant == ALL, p.tenant == tenant)).exists()


def paused_sql(tenant: str) -> str:
    """The same as text, for the name of a column."""
    return f"EXISTS (SELECT FROM pauses WHERE pauses.tenant IN ('{ALL}', {tenant}))"


def known(conn: Connection) -> tuple[PauseView, ...]:
    """Every pause, that of all first."""
    rows = conn.execute(
        select(func.nullif(p.tenant, ALL), p.reason, p.paused_by, p.paused_at).order_by(p.tenant)
    )
    return tuple(PauseView(*row) for row in rows)


def of(conn: Connection, tenant: str) -> PauseView | None:
    """The pause that holds this tenant, that of all first."""
    return next((pause for pause in known(conn) if pause.tenant in (None, tenant)), None)


def pause(conn: Connection, tenant: str | None, by: By) -> bool:
    """Hold a tenant's submissions back, or all with None. False: it was, and says this now.

    `by.why` is what all that wait will say.
    """
    assert by.why, "a pause says why"
    said = {"reason": storable.text(by.why), "paused_by": storable.text(by.who)}
    made = conn.execute(
        insert(_pauses)
        .values(tenant=tenant or ALL, **said)
        .on_conflict_do_nothing(index_elements=[p.tenant])
        .returning(p.tenant)
    )
    new = made.first() is not None
    if not new:
        conn.execute(update(_pauses).where(p.tenant == (tenant or ALL)).values(**said))
    actions.record(conn, Action.PAUSE, by, tenant=tenant)
    if tenant is not None:
        _unblock(conn, tenant)
    return new


def _unblock(conn: Connection, tenant: str) -> None:
    """Equal generations of others need not wait for what goes nowhere; they look again at once."""
    others = (g.status == Status.ACCEPTED, g.blocked_by.is_not(None), g.tenant != tenant)
    # In two queries: a plan of one, with old statistics, can be the product of all that wait.
    ahead = conn.execute(select(g.blocked_by).where(*others).distinct().limit(_AT_ONCE)).scalars()
    held = select(g.id).where(
        g.id.in_(ahead.all()), g.status == Status.ACCEPTED, g.tenant == tenant
    )
    conn.execute(
        update(Generation)
        .where(*others, g.blocked_by.in_(conn.execute(held).scalars().all()))
        .values(blocked_by=None, **NO_WAIT, due_at=func.now())
    )


def resume(conn: Connection, tenant: str | None, by: By) -> PauseView | None:
    """End a pause. Returns it; None if there is none."""
    ended = conn.execute(
        delete(_pauses)
        .where(p.tenant == (tenant or ALL))
        .returning(func.nullif(p.tenant, ALL), p.reason, p.paused_by, p.paused_at)
    ).one_or_none()
    if ended is None:
        return None
    view = PauseView(*ended)
    actions.record(
        conn,
        Action.RESUME,
        by,
        tenant=tenant,
        detail={"paused_by": view.paused_by, "paused_for": view.reason},
    )
    # What had been let in and was put back: a few, and due at once instead of in seconds.
    conn.execute(
        update(Generation)
        .where(g.status == Status.ACCEPTED, g.wait_reason == WaitReason.PAUSE, ~holds(g.tenant))
        .values(**NO_WAIT, due_at=func.now())
    )
    return view
