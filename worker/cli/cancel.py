"""`seedance cancel`: ask for generations to be cancelled."""

import uuid
from typing import Any

import click
from sqlalchemy import Connection, Engine

from models import choosing, reads, schedule, transitions
from models.choosing import Choice
from models.lifecycle import LIVE, Status
from models.operating import actions
from models.operating.actions import Action, By
from models.reads import GenerationView
from worker.author import author
from worker.cli import output
from worker.cli.acting import acting
from worker.cli.bulk import bulk, check_named, confirm
from worker.cli.context import database
from worker.cli.errors import Failed
from worker.cli.filters import chosen
from worker.cli.lookup import find

_OPEN = LIVE | {Status.ACCEPTED}
_AT_ONCE = 500
"""So many are cancelled in one transaction."""


@click.command()
@click.argument("names", metavar="[ID]...", nargs=-1)
@bulk
@acting()
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list; fields as in `show`.")
@click.pass_context
def cancel(
    ctx: click.Context,
    /,
    *,
    names: tuple[str, ...],
    dry_run: bool,
    expect: int | None,
    by: str | None,
    reason: str | None,
    as_json: bool,
    **named: Any,
) -> None:
    """Cancel generations.

    One that was not submitted yet ends at once. Otherwise the provider is asked to stop it, which
    it may not do in time: then it completes, and is charged. Those that are meant are named, or
    chosen by filters, as in `list`: of what is chosen, all that has not ended. Exit code 1 if one
    that was named had ended.

    \b
    Examples:
      seedance cancel 0b0e7f1a 77c1d2e3 --reason "ordered twice"
      seedance cancel --tenant acme --status accepted --dry-run
      seedance cancel --tenant acme --status accepted --expect 2300
    """
    choice, who = chosen(**named), author(by, reason)
    check_named(names, choice, expect)
    with database() as engine:
        if names:
            code = _cancel_named(engine, names, who, dry_run=dry_run, as_json=as_json)
        else:
            code = _cancel_chosen(engine, choice, who, expect, dry_run=dry_run, as_json=as_json)
    ctx.exit(code)


def _cancel_named(
    engine: Engine, names: tuple[str, ...], who: By, *, dry_run: bool, as_json: bool
) -> int:
    found: list[GenerationView] = []
    missing = 0
    # All are found before any is cancelled: a name that may mean several stops it here.
    with engine.connect() as conn:
        for name in names:
            try:
                found.append(find(conn, name))
            except Failed as error:
                missing += 1
                click.echo(error.format_message(), err=True)
    views: list[GenerationView] = []
    over: set[uuid.UUID] = set()
    for one in found:
        with engine.begin() as conn:
            view = reads.get(conn, one.id) or one
            if view.ended:
                over.add(view.id)
            elif not dry_run:
                _cancel(conn, [view.id], who)
                view = reads.get(conn, view.id) or view
        views.append(view)
    if as_json:
        output.print_json([output.generation_json(view) for view in views])
    else:
        for view in views:
            click.echo(_told(view, too_late=view.id in over, dry_run=dry_run))
    return 1 if over or missing else 0


def _cancel_chosen(
    engine: Engine,
    choice: Choice,
    who: By,
    expect: int | None,
    *,
    dry_run: bool,
    as_json: bool,
) -> int:
    with engine.connect() as conn:
        ids = [row.id for row in choosing.rows(conn, choice, (), among=_OPEN, wished=False)]
    if not dry_run:
        confirm(len(ids), "cancelled", expect)
        for start in range(0, len(ids), _AT_ONCE):
            with engine.begin() as conn:
                _cancel(conn, ids[start : start + _AT_ONCE], who)
    with engine.connect() as conn:
        views = [
            view
            for start in range(0, len(ids), _AT_ONCE)
            for view in reads.get_many(conn, ids[start : start + _AT_ONCE]).values()
        ]
    if as_json:
        output.print_json([output.generation_json(view) for view in views])
    elif dry_run:
        click.echo(f"{len(ids)} would be cancelled; nothing was done")
    else:
        ended = sum(view.status is Status.CANCELLED for view in views)
        click.echo(f"{ended} are cancelled; {len(ids) - ended} will be as soon as they can be")
    return 0


def _cancel(conn: Connection, ids: list[uuid.UUID], who: By) -> None:
    """Cancel them, keep who did it and why, and wake who carries the wishes out."""
    transitions.cancel_many(conn, ids, detail={"by": who.told})
    actions.record_of(conn, Action.CANCEL, who, ids)
    schedule.wake(conn)


def _told(view: GenerationView, *, too_late: bool, dry_run: bool) -> str:
    if too_late:
        return f"{view.id} is {view.status} already"
    if dry_run:
        return f"{view.id} is {view.status}, and would be cancelled; nothing was done"
    if view.ended:
        return f"{view.id} is {view.status}"
    return f"{view.id} is {view.status}; it will be cancelled as soon as it can be"
