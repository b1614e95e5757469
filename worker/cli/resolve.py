"""`seedance resolve`: an operator's decision on a generation in doubt."""

import click

from worker import operator
from worker.author import author
from worker.cli import output
from worker.cli.acting import acting
from worker.cli.context import database, service
from worker.cli.errors import BadInput, Failed
from worker.cli.lookup import find
from worker.cli.progress import describe


@click.command()
@click.argument("name", metavar="ID")
@click.option("--adopt", "task_id", metavar="TASK", help="This remote task is its own: follow it.")
@click.option("--resubmit", is_flag=True, help="No remote task is its own: send it again.")
@click.option("--fail", is_flag=True, help="End it as failed.")
@click.option(
    "--attempt",
    type=click.IntRange(min=1),
    metavar="N",
    help="The attempt you saw in `show`; refused if there is a later one. (the latest)",
)
@acting()
@click.option("--json", "as_json", is_flag=True, help="Print the generation as JSON.")
def resolve(
    *,
    name: str,
    task_id: str | None,
    resubmit: bool,
    fail: bool,
    attempt: int | None,
    by: str | None,
    reason: str | None,
    as_json: bool,
) -> None:
    """Decide on a generation whose submission stayed unclear.

    `seedance list --attention` has those that wait for you, `seedance show ID` why. A task is
    adopted only if the provider shows it and nobody else's mark is on it; sending again is
    refused while the provider may still be working on the last attempt. The history keeps who
    decided.

    \b
    Examples:
      seedance resolve 0b0e7f1a --adopt task_abc123
      seedance resolve 0b0e7f1a --resubmit --attempt 1
      seedance resolve 0b0e7f1a --fail
    """
    if [task_id is not None, resubmit, fail].count(True) != 1:
        raise BadInput("give one of --adopt TASK, --resubmit and --fail")
    who = author(by, reason)
    with database() as engine:
        with engine.connect() as conn:
            generation_id = find(conn, name).id
        try:
            number = attempt or operator.latest_attempt(engine, generation_id)
            if attempt is None:
                click.echo(f"deciding on attempt {number}", err=True)
            if task_id is not None:
                with service() as rt:
                    view = operator.adopt(rt, generation_id, task_id, attempt=number, by=who)
            elif resubmit:
                view = operator.resubmit(engine, generation_id, attempt=number, by=who)
            else:
                view = operator.fail(engine, generation_id, attempt=number, by=who)
        except operator.DecisionRefused as refused:
            raise Failed(f"refused: {refused}") from None
    if as_json:
        output.print_json(output.generation_json(view))
    else:
        click.echo(f"{view.id} is {describe(view)}")
