"""`seedance watch`: the state of everything, live."""

import time

import click
from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text
from sqlalchemy.exc import DBAPIError

from models.lifecycle import Status
from models.reads import Summary
from worker.cli import output
from worker.cli.context import database
from worker.cli.errors import database_problem
from worker.cli.watch_screen import LATE, screen
from worker.cli.watching import Watcher, snapshot_json

_AT_MOST = 2.0
"""Looking takes at most about a third of the time: it waits so many times as long as it took."""


@click.command()
@click.option("--every", type=click.FloatRange(0.2, 3600), default=1.0, show_default=True)
@click.option("--for", "seconds", type=float, metavar="SECONDS", help="Stop after so long.")
@click.option("--once", is_flag=True, help="Show the state once and stop.")
@click.option("-n", "--limit", type=click.IntRange(0, 200), default=15, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, as with --once.")
def watch(*, every: float, seconds: float | None, once: bool, limit: int, as_json: bool) -> None:
    """Watch flow, pauses, breakers, limits, who waits and why, errors, credits, until Ctrl-C.

    On a terminal the screen is kept up to date; in a pipe a line is printed for each change.

    \b
    Examples:
      seedance watch
      seedance watch --for 60 | tee states.log
      seedance watch --json | jq '.flow.last_minute, .waiting.by_reason'
    """
    with database() as engine:
        watcher = Watcher(engine)
        if as_json:
            output.print_json(snapshot_json(watcher.read(limit)))
        elif once and output.on_terminal():
            output.console().print(screen(watcher.read(limit)))
        elif once:
            click.echo(line(watcher.summary()))
        elif output.on_terminal():
            _live(watcher, every, seconds, limit)
        else:
            _lines(watcher, every, seconds)


def _live(watcher: Watcher, every: float, seconds: float | None, limit: int) -> None:
    console = output.console()
    ends = None if seconds is None else time.monotonic() + seconds
    with Live(console=console, screen=False, auto_refresh=False, vertical_overflow="crop") as live:
        shown: RenderableType = Text()
        while True:
            began = time.monotonic()
            try:
                shown = screen(watcher.read(limit), height=console.size.height)
                live.update(shown, refresh=True)
            except DBAPIError as error:
                told = Text(f"! {database_problem(error)}", style="red")
                live.update(Group(told, shown), refresh=True)
            took = time.monotonic() - began
            if ends is not None and time.monotonic() >= ends:
                return
            time.sleep(max(every - took, _AT_MOST * took))


def _lines(watcher: Watcher, every: float, seconds: float | None) -> None:
    ends = None if seconds is None else time.monotonic() + seconds
    said = ""
    while True:
        try:
            now = line(watcher.summary())
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
    if summary.oldest_due_seconds > LATE:
        # In steps, so that a pipe doesn't get a line for each second.
        parts.append(f"late by over {int(summary.oldest_due_seconds // LATE * LATE)}s")
    parts += [str(pause) for pause in summary.pauses]
    parts += [f"breaker {name} open: {why}" for name, why in sorted(summary.breakers.items())]
    # Their names: the figures change each second, and a pipe gets a line for each change.
    parts += [limit.name for limit in summary.limits]
    return ", ".join(parts)
