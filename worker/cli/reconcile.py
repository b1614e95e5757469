"""`seedance reconcile`: hold the provider's task list against our rows, now."""

import click
from rich.text import Text

from worker.cli import output
from worker.cli.context import service
from worker.upkeep import reconcile as upkeep

_MEANS = {
    "adopted": "answers that were lost: now followed",
    "corrected": "ends that were missed: now ended here",
    "second": "further tasks of one generation: may be paid twice",
    "possible": "could be ours: decide with seedance resolve",
    "foreign": "not ours: left alone",
    "unseen": "running here, not in the list: each is looked at",
}
_LISTED = 10


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.pass_context
def reconcile(ctx: click.Context, /, *, as_json: bool) -> None:
    """Read the provider's whole task list, and mend what differs.

    Beat does this every SEEDANCE_RECONCILE_EVERY seconds. Nothing is submitted or cancelled.
    Exit code 1 if the list kept changing and could not be read completely: try again.

    \b
    Example:
      seedance reconcile --json | jq .foreign
    """
    with service() as rt:
        report = upkeep.run(rt)
    if as_json:
        output.print_json(report)
        ctx.exit(0 if report.complete else 1)
    click.echo(f"{report.remote_tasks} remote tasks on {report.pages} pages")
    rows: list[list[str | Text]] = []
    for name, means in _MEANS.items():
        found = [str(one) for one in getattr(report, name)]
        style = "yellow" if found and name in ("second", "possible") else ""
        rows.append([Text(name, style=style), str(len(found)), means])
    output.print_rows(["KIND", "COUNT", "MEANING"], rows, right=["COUNT"])
    for name in ("adopted", "corrected", "second", "possible", "unseen"):
        found = [str(one) for one in getattr(report, name)]
        for one in found[:_LISTED]:
            click.echo(f"{name}: {one}")
        if len(found) > _LISTED:
            click.echo(f"{name}: and {len(found) - _LISTED} more (--json has all)")
    if not report.complete:
        click.echo("the list changed while it was read: this is not all of it, try again", err=True)
    ctx.exit(0 if report.complete else 1)
