"""`seedance doctor`: what is missing or wrong, and how to mend it."""

import click
from rich.text import Text

from worker.cli import output
from worker.cli.context import environment, found_by
from worker.doctor import Level, examine

_MARKS = {
    Level.OK: ("ok   ", "green"),
    Level.WARN: ("warn ", "yellow"),
    Level.WRONG: ("WRONG", "bold red"),
}


@click.command()
@click.option("--json", "as_json", is_flag=True, help="A JSON list: name, level, found, mend.")
@click.pass_context
def doctor(ctx: click.Context, /, *, as_json: bool) -> None:
    """Say what is missing or wrong, and how to mend it.

    Checks settings, database, migrations, broker, workers, schedule, circuit breakers, flow
    control, API key, balance and clocks, and changes nothing.
    Exit code 1 if something is wrong; warnings don't count.

    \b
    Example:
      seedance doctor --json | jq '.[] | select(.level != "ok")'
    """
    checks = examine(environment(), found_by=found_by())
    if as_json:
        output.print_json([vars(check) for check in checks])
    else:
        console = output.console()
        for check in checks:
            mark, style = _MARKS[check.level]
            line = Text(f"{mark} ", style=style).append(f"{check.name:<11}", style="bold")
            console.print(line.append(check.found, style="default not bold"), soft_wrap=True)
            if check.mend:
                console.print(Text(f"{'':>17}→ {check.mend}", style=style), soft_wrap=True)
    ctx.exit(1 if any(check.level is Level.WRONG for check in checks) else 0)
