"""`seedance watch`: the state of everything, live."""

import time
from dataclasses import dataclass

import click
from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from models import choosing, reads
from models.choosing import Choice
from models.lifecycle import Status
from models.reads import GenerationView, Summary
from worker.cli import output
from worker.cli.context import database
from worker.cli.errors import database_problem
from worker.cli.listing import row_of, table_headings

_OTHER_LINES = 8
_LATE = 10.0


@dataclass(frozen=True)
class Snapshot:
    """What is shown at one moment."""

    summary: Summary
    newest: list[GenerationView]


@click.command()
@click.option("--every", type=click.FloatRange(0.2, 3600), default=1.0, show_default=True)
@click.option("--for", "seconds", type=float, metavar="SECONDS", help="Stop after so long.")
@click.option("--once", is_flag=True, help="Show the state once and stop.")
@click.option("-n", "--limit", type=click.IntRange(0, 200), default=15, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, as with --once.")
def watch(*, every: float, seconds: float | None, once: bool, limit: int, as_json: bool) -> None:
    """Watch counts, gates and the newest generations until Ctrl-C.

    On a terminal the screen is kept up to date; in a pipe a line is printed for each change.

    \b
    Examples:
      seedance watch
      seedance watch --for 60 | tee states.log
      seedance watch --json | jq .by_status
    """
    with database() as engine:
        if as_json:
            _print_json(read(engine, limit))
        elif once:
            _print_once(read(engine, limit))
        elif output.on_terminal():
            _live(engine, every, seconds, limit)
        else:
            _lines(engine, every, seconds)


def read(engine: Engine, limit: int) -> Snapshot:
    """Read the state of this moment."""
    with engine.connect() as conn:
        newest = choosing.newest(conn, Choice(), limit=limit) if limit else []
        return Snapshot(reads.summary(conn), newest)


def _print_json(snapshot: Snapshot) -> None:
    summary = snapshot.summary
    output.print_json(
        {
            "by_status": {str(s): summary.by_status.get(s, 0) for s in Status},
            "in_flight": summary.in_flight,
            "attention": summary.attention,
            "blocked": summary.blocked,
            "oldest_due_seconds": round(summary.oldest_due_seconds, 1),
            "gates": summary.gates,
            "slowed": summary.slowed,
            "pauses": summary.pauses,
            "newest": [output.generation_json(view) for view in snapshot.newest],
        }
    )


def _print_once(snapshot: Snapshot) -> None:
    if output.on_terminal():
        output.console().print(screen(snapshot))
    else:
        click.echo(line(snapshot.summary))


def _live(engine: Engine, every: float, seconds: float | None, limit: int) -> None:
    console = output.console()
    ends = None if seconds is None else time.monotonic() + seconds
    with Live(console=console, screen=False, auto_refresh=False, vertical_overflow="crop") as live:
        shown: RenderableType = Text()
        while True:
            room = max(3, console.size.height - _OTHER_LINES)
            try:
                shown = screen(read(engine, min(limit, room)))
                live.update(shown, refresh=True)
            except DBAPIError as error:
                told = Text(f"! {database_problem(error)}", style="red")
                live.update(Group(shown, told), refresh=True)
            if ends is not None and time.monotonic() >= ends:
                return
            time.sleep(every)


def _lines(engine: Engine, every: float, seconds: float | None) -> None:
    ends = None if seconds is None else time.monotonic() + seconds
    said = ""
    while True:
        try:
            now = line(read(engine, 0).summary)
        except DBAPIError as error:
            now = database_problem(error)
        if now != said:
            click.echo(f"{time.strftime('%H:%M:%S', time.gmtime())}Z {now}")
            said = now
        if ends is not None and time.monotonic() >= ends:
            return
        time.sleep(every)


def line(summary: Summary) -> str:
    """The state in one line."""
    counts = [f"{s} {summary.by_status[s]}" for s in Status if summary.by_status.get(s)]
    parts = [" ".join(counts) or "no generations", f"in flight {summary.in_flight}"]
    if summary.attention:
        parts.append(f"attention {summary.attention}")
    if summary.blocked:
        parts.append(f"blocked {summary.blocked}")
    if summary.oldest_due_seconds > _LATE:
        # In steps, so that a pipe doesn't get a line for each second.
        parts.append(f"late by over {int(summary.oldest_due_seconds // _LATE * _LATE)}s")
    parts += [str(pause) for pause in summary.pauses]
    parts += [f"gate {name} closed: {why}" for name, why in sorted(summary.gates.items())]
    parts += summary.slowed
    return ", ".join(parts)


def screen(snapshot: Snapshot) -> Group:
    """The state as a screen."""
    summary = snapshot.summary
    counts = Text()
    for status in Status:
        number = summary.by_status.get(status, 0)
        style = output.STYLES[status] if number else "dim"
        counts.append(f"{status} ", style="dim").append(f"{number}  ", style=style)
    facts = Text(f"in flight {summary.in_flight}")
    late = summary.oldest_due_seconds
    facts.append(f"   oldest due {output.span_text(late)} ago" if late >= 1 else "   nothing late")
    if late > _LATE:
        facts.stylize("yellow", len(facts.plain) - len(f"oldest due {output.span_text(late)} ago"))
    for name, number in (("attention", summary.attention), ("blocked", summary.blocked)):
        facts.append(f"   {name} {number}", style="yellow" if number else "dim")
    gates = [Text(str(pause), style="yellow") for pause in summary.pauses]
    gates += [
        Text(f"gate {name} is closed: {why}", style="yellow")
        for name, why in sorted(summary.gates.items())
    ]
    slowed = [Text(said, style="yellow") for said in summary.slowed]
    parts: list[RenderableType] = [counts, facts, *gates, *slowed]
    if snapshot.newest:
        rows = [row_of(view) for view in snapshot.newest]
        headings, right, shrink = table_headings()
        parts += [Text(), output.table_of_rows(headings, rows, right=right, shrink=shrink)]
    return Group(*parts)
