"""`seedance notices`: what producers were told, what could not be told, and telling it again."""

import uuid
from typing import Any

import click
from rich.text import Text
from sqlalchemy import Connection

from api_client import redact
from models.notices import State, reading
from models.notices.reading import NoticeView, ReceiverView
from worker.author import author
from worker.cli import output
from worker.cli.acting import acting
from worker.cli.context import database
from worker.cli.errors import BadInput, Failed
from worker.cli.lookup import find

_STYLES = {State.PENDING: "yellow", State.DELIVERED: "green", State.DEAD: "red"}
_COLUMNS = (
    "id",
    "status",
    "type",
    "generation_id",
    "sequence",
    "target",
    "to",
    "tries",
    "created_at",
    "due_at",
    "settled_at",
    "error",
    "receiver",
)
"""Of the lines in a pipe; new ones are added at the end."""
_MOST_AT_ONCE = 10_000


@click.group()
def notices() -> None:
    """List, show and resend what producers are told of their generations.

    A notice is pending until its receiver has taken it, and dead where that did not happen in
    SEEDANCE_NOTICE_PATIENCE, or the receiver answered that it is gone (HTTP 410).

    \b
    Examples:
      seedance notices list --status dead
      seedance notices show 5b2c9f0e-…
      seedance notices resend --dead --receiver https://shop.example
    """


@notices.command("list")
@click.option("-s", "--status", "states", multiple=True, type=click.Choice([str(s) for s in State]))
@click.option("--generation", metavar="ID", help="Of this generation only.")
@click.option("--receiver", metavar="NAME", help="For this one only: https://host, queue:name.")
@click.option("--tenant", help="Of this tenant's generations only.")
@click.option("-n", "--limit", type=click.IntRange(1, _MOST_AT_ONCE), default=20, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list.")
def list_(
    *,
    states: tuple[str, ...],
    generation: str | None,
    receiver: str | None,
    tenant: str | None,
    limit: int,
    as_json: bool,
) -> None:
    """List notices, the newest first, and the receivers that fail just now."""
    with database() as engine, engine.connect() as conn:
        views = reading.listing(
            conn,
            states=[State(state) for state in states],
            generation_id=None if generation is None else find(conn, generation).id,
            receiver=receiver,
            tenant=tenant,
            limit=limit,
        )
        failing = reading.receivers(conn)
    if as_json:
        output.print_json([notice_json(view) for view in views])
    elif output.on_terminal():
        _table(views)
        for one in failing:
            click.echo(_failing(one))
    else:
        output.print_rows(_COLUMNS, [_whole(view) for view in views])


@notices.command("show")
@click.argument("name", metavar="ID")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show(*, name: str, as_json: bool) -> None:
    """Show one notice. Its address is shown without the query, which may be a key."""
    with database() as engine, engine.connect() as conn:
        view = _find(conn, name)
    shown = notice_json(view)
    if as_json:
        output.print_json(shown)
        return
    for field, value in shown.items():
        if value is not None:
            click.echo(f"{field.replace('_', ' '):<14} {value}")


@notices.command("resend")
@click.argument("names", metavar="[ID]…", nargs=-1)
@click.option("--dead", is_flag=True, help="All that were set aside, the oldest first.")
@click.option("--receiver", metavar="NAME", help="With --dead: only those for this one.")
@click.option(
    "-n", "--limit", type=click.IntRange(1, _MOST_AT_ONCE), default=1_000, show_default=True
)
@acting()
def resend(
    *,
    names: tuple[str, ...],
    dead: bool,
    receiver: str | None,
    limit: int,
    by: str | None,
    reason: str | None,
) -> None:
    """Deliver notices again, delivered ones too, under the ids that they have.

    A receiver that keeps the ids knows what it has had. `seedance history` keeps who did it.
    """
    if bool(names) == dead:
        raise BadInput("name notices, or give --dead")
    if receiver is not None and not dead:
        raise BadInput("--receiver goes with --dead")
    who = author(by, reason)
    with database() as engine, engine.begin() as conn:
        if dead:
            ids = reading.dead_ids(conn, receiver=receiver, limit=limit)
            if receiver is not None and not ids:
                known = ", ".join(reading.dead_receivers(conn)) or "there is none"
                raise BadInput(
                    f"--receiver is {receiver!r}; allowed: one with dead notices: {known}"
                )
        else:
            ids = [_find(conn, name).id for name in names]
        done = reading.resend(conn, ids, by=who)
    click.echo(f"{len(done)} notices are due again")


def notice_json(view: NoticeView) -> dict[str, Any]:
    """A notice under its documented names; its address without the query."""
    fields = {name: getattr(view, name) for name in NoticeView.__dataclass_fields__}
    return {**fields, "to": None if view.to is None else redact(view.to)}


def _find(conn: Connection, name: str) -> NoticeView:
    try:
        view = reading.get(conn, uuid.UUID(name))
    except ValueError:
        raise BadInput(f"ID is {name!r}; allowed: the id of a notice, as listed") from None
    if view is None:
        raise Failed(f"there is no notice {name}")
    return view


def _table(views: list[NoticeView]) -> None:
    if not views:
        click.echo("no notices like that")
        return
    output.print_rows(
        ["ID", "STATUS", "WHAT", "GENERATION", "AGE", "TRIES", "TO"],
        [
            [
                str(view.id),
                Text(view.status, style=_STYLES[view.status]),
                view.type.removeprefix("generation."),
                str(view.generation_id)[:8],
                output.age(view.created_at),
                str(view.tries),
                _to(view),
            ]
            for view in views
        ],
        right=["TRIES"],
        shrink="TO",
    )


def _to(view: NoticeView) -> Text:
    to = Text(redact(view.to or ""))
    if view.error:
        to.append(f"  {view.error}", style="red")
    return to


def _failing(one: ReceiverView) -> str:
    return (
        f"{one.receiver} fails since {output.time_text(one.failing_since)} ({one.error}):"
        f" {one.waiting} notices wait, tried again at {output.time_text(one.retry_at)}"
    )


def _whole(view: NoticeView) -> list[str]:
    shown = notice_json(view)
    values = [shown[name] for name in _COLUMNS]
    return [
        "" if value is None else value.isoformat() if hasattr(value, "isoformat") else str(value)
        for value in values
    ]
