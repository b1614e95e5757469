"""`seedance cancel`: ask for generations to be cancelled."""

import click

from models.reads import GenerationView
from worker import producer
from worker.cli import output
from worker.cli.context import database
from worker.cli.errors import Failed
from worker.cli.lookup import find


@click.command()
@click.argument("names", metavar="ID...", nargs=-1, required=True)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list; fields as in `show`.")
@click.pass_context
def cancel(ctx: click.Context, /, *, names: tuple[str, ...], as_json: bool) -> None:
    """Cancel generations.

    One that was not submitted yet ends at once. Otherwise the provider is asked to stop it, which
    it may not do in time: then it completes, and is charged. Exit code 1 if one had ended.

    \b
    Example:
      seedance cancel 0b0e7f1a 77c1d2e3
    """
    views: list[GenerationView] = []
    over: list[GenerationView] = []
    missing = 0
    with database() as engine:
        for name in names:
            try:
                with engine.begin() as conn:
                    before = find(conn, name)
                    after = producer.cancel(before.id, session=conn)
            except Failed as error:
                missing += 1
                click.echo(error.format_message(), err=True)
                continue
            views.append(after)
            if before.ended:
                over.append(after)
    if as_json:
        output.print_json([output.generation_json(view) for view in views])
    else:
        for view in views:
            click.echo(_told(view, too_late=view in over))
    ctx.exit(1 if over or missing else 0)


def _told(view: GenerationView, *, too_late: bool) -> str:
    if too_late:
        return f"{view.id} is {view.status} already"
    if view.ended:
        return f"{view.id} is {view.status}"
    return f"{view.id} is {view.status}; it will be cancelled as soon as it can be"
