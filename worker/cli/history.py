"""`seedance history`: what operators changed, when and why."""

import click

from models.operating import actions
from models.operating.actions import Action, ActionView
from worker.cli import output
from worker.cli.context import database
from worker.cli.lookup import id_of
from worker.cli.times import moment


@click.command()
@click.argument("name", metavar="[ID]", required=False)
@click.option("--action", type=click.Choice([str(action) for action in Action]))
@click.option("--by", metavar="NAME", help="By this operator only.")
@click.option("--tenant", help="On this tenant only.")
@click.option("--since", metavar="WHEN", help="2026-01-31, a time in ISO 8601, or 12h, 7d, 4w ago.")
@click.option(
    "-n", "--limit", type=click.IntRange(1, 10_000), default=50, show_default=True, metavar="N"
)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list.")
def history(
    *,
    name: str | None,
    action: str | None,
    by: str | None,
    tenant: str | None,
    since: str | None,
    limit: int,
    as_json: bool,
) -> None:
    """Show what operators changed, the latest first: who, what, on which generation, and why.

    With ID only what was done to that generation; it is told even when the generation is not
    kept any more.

    \b
    Examples:
      seedance history --since 7d
      seedance history --action pause --json
      seedance history 0b0e7f1a
    """
    first = moment("--since", since)
    with database() as engine, engine.connect() as conn:
        found = actions.newest(
            conn,
            action=None if action is None else Action(action),
            actor=by,
            tenant=tenant,
            generation_id=None if name is None else id_of(conn, name),
            since=first,
            limit=limit,
        )
    if as_json:
        output.print_json(found)
        return
    if not found and output.on_terminal():
        click.echo("nothing was changed" + (" like that" if name or action or by else ""))
        return
    output.print_rows(
        ["AT", "WHO", "ACTION", "TENANT", "GENERATION", "WHY", "DETAIL"],
        [_row(one) for one in found],
        shrink="DETAIL",
    )


def _row(one: ActionView) -> list[str]:
    short = output.on_terminal()
    generation = str(one.generation_id or "")
    return [
        output.time_text(one.at),
        one.actor,
        one.action,
        one.tenant or "",
        generation[:8] if short else generation,
        one.reason or "",
        detail_text(one),
    ]


def detail_text(one: ActionView) -> str:
    """What else is kept of a change, in a line."""
    return ", ".join(f"{name} {value}" for name, value in (one.detail or {}).items())
