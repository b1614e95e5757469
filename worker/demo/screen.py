"""What the demo shows: a live table on a terminal, a line for each change elsewhere."""

import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import click
from rich.live import Live
from rich.table import Table
from rich.text import Text

from models.reads import EventView, GenerationView
from worker.cli import output
from worker.cli.progress import describe
from worker.demo.jobs import Job

_WIDE = 100


@dataclass(frozen=True)
class Line:
    """A job and what became of it so far; no view means that no worker has taken it yet."""

    job: Job
    id: uuid.UUID
    view: GenerationView | None


class Screen:
    """Shows steps, then the jobs' progress."""

    def __init__(self, *, plain: bool) -> None:
        self._began = time.monotonic()
        self.plain = plain or not sys.stdout.isatty()
        self.console = output.console()
        self._live: Live | None = None
        self._said: dict[str, str] = {}

    def __enter__(self) -> Self:
        if not self.plain:
            self._live = Live(console=self.console, auto_refresh=False)
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def step(self, text: str) -> None:
        """Tell what is done, with the seconds since the start."""
        click.echo(f"{time.monotonic() - self._began:5.1f}s  {text}")
        sys.stdout.flush()

    def update(self, lines: Sequence[Line]) -> None:
        """Show the jobs as they are now."""
        if self._live is not None:
            self._live.update(_table(lines, self.console.width), refresh=True)
            return
        for line in lines:
            state = _state(line)
            if self._said.get(line.job.name) != state:
                self._said[line.job.name] = state
                self.step(f"{line.job.name:<18} {state}")


def _state(line: Line) -> str:
    if line.view is None:
        return "sent, not taken yet"
    state = describe(line.view)
    return f"{state}: {_result(line.view)}" if line.view.ended else state


def _result(view: GenerationView) -> str:
    if view.status == "completed":
        return f"{output.credits_text(view.credit_cost)} credits, video ready"
    return view.error_code or "no result"


def _table(lines: Sequence[Line], width: int) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("what", no_wrap=True)
    if width >= _WIDE:
        table.add_column("enqueued by", no_wrap=True, style="dim")
    table.add_column("status", no_wrap=True, min_width=10)
    table.add_column("remote", no_wrap=True, min_width=10)
    table.add_column("age", no_wrap=True, justify="right", min_width=4)
    table.add_column("credits", no_wrap=True, justify="right")
    table.add_column("result", no_wrap=True, overflow="ellipsis")
    for line in lines:
        by = [line.job.by] if width >= _WIDE else []
        table.add_row(line.job.name, *by, *_cells(line.view))
    return table


def _cells(view: GenerationView | None) -> list[Text | str]:
    if view is None:
        return ["sent", "", "", "", ""]
    if view.ended:
        style = "green" if view.status == "completed" else "red"
        done = "video ready" if view.status == "completed" else view.error_code or ""
        result = Text(done, style=style)
        cost = output.credits_text(view.credit_cost)
    else:
        result = Text(view.waits_for or "", style="yellow")
        cost = f"~{output.credits_text(view.estimated_cost)}"
    return [
        output.status_text(view.status),
        view.remote_status or "",
        output.age(view.created_at, view.finished_at),
        cost,
        result,
    ]


def summary(
    screen: Screen, lines: Sequence[Line], histories: Mapping[uuid.UUID, Sequence[EventView]]
) -> None:
    """The history of each, and what it cost."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("generation", no_wrap=True)
    table.add_column("estimated", justify="right", no_wrap=True)
    table.add_column("charged", justify="right", no_wrap=True)
    table.add_column("history, in seconds", overflow="fold")
    for line in lines:
        if line.view is None:
            table.add_row(line.job.name, "–", "–", "never taken by a worker")
            continue
        table.add_row(
            line.job.name,
            output.credits_text(line.view.estimated_cost),
            output.credits_text(line.view.credit_cost),
            _history(histories[line.id]),
        )
    screen.console.print()
    screen.console.print(table)


def _history(events: Sequence[EventView]) -> str:
    if not events:
        return ""
    first = events[0].at
    return " ".join(f"{e.event} {max(0.0, (e.at - first).total_seconds()):.1f}" for e in events)
