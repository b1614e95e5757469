"""`seedance pause` and `resume`: hold submission back, of all or of one tenant."""

import click
from sqlalchemy import Connection, func, select

from models import schedule
from models.base import table_of
from models.lifecycle import Status
from models.operating import pauses
from models.tables import Generation
from worker.author import author
from worker.cli.acting import acting
from worker.cli.context import database
from worker.cli.errors import Failed
from worker.requests import check_tenant

g = table_of(Generation).c


@click.command()
@click.option("--tenant", help="Only of this one. (all)")
@acting(reason_required=True)
def pause(*, tenant: str | None, by: str | None, reason: str) -> None:
    """Hold submission back until `seedance resume`; who waits says for what.

    Requests are accepted, running tasks followed, and deadlines pass, as always; only nothing new
    is sent. It holds in all workers at once, and outlives every restart. What is on the wire goes
    on. Paused again, the new reason counts.

    \b
    Examples:
      seedance pause --reason "the provider announced maintenance until 14:00"
      seedance pause --tenant acme --reason "runaway script, ticket 4711"
    """
    named, who = check_tenant(tenant), author(by, reason)
    with database() as engine, engine.begin() as conn:
        new = pauses.pause(conn, named, who)
        waiting, going = _counts(conn, named)
    of = "of all tenants" if named is None else f"of tenant {named!r}"
    click.echo(
        f"submission {of} {'is paused' if new else 'was paused already, now for this reason'};"
        f" {waiting} wait, {going} are under way and followed"
    )


@click.command()
@click.option("--tenant", help="Only of this one. (the pause of all)")
@acting()
def resume(*, tenant: str | None, by: str | None, reason: str | None) -> None:
    """End a pause: what waited goes on at once, within the limits there are.

    Without --tenant the pause of all ends; tenants that were paused by name stay so.

    \b
    Examples:
      seedance resume
      seedance resume --tenant acme --reason "script fixed"
    """
    named, who = check_tenant(tenant), author(by, reason)
    with database() as engine, engine.begin() as conn:
        ended = pauses.resume(conn, named, who)
        others = [str(pause) for pause in pauses.known(conn)]
        schedule.wake(conn)
    if ended is None:
        of = "submission of all tenants" if named is None else f"tenant {named!r}"
        raise Failed(f"{of} is not paused; paused: {'; '.join(others) or 'nothing'}")
    click.echo(f"ended: {ended}, since {ended.paused_at:%Y-%m-%d %H:%M:%S}Z")
    for other in others:
        click.echo(f"still there: {other}")


def _counts(conn: Connection, tenant: str | None) -> tuple[int, int]:
    """How many wait, and how many were let in and have not ended."""
    of = [] if tenant is None else [g.tenant == tenant]
    waiting = g.status == Status.ACCEPTED
    counts = conn.execute(
        select(func.count().filter(waiting), func.count().filter(~waiting)).where(
            g.finished_at.is_(None), *of
        )
    ).one()
    return counts[0], counts[1]
