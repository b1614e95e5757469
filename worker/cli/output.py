"""How commands print: tables for people, tab-separated lines for pipes, JSON for programs."""

import dataclasses
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import click
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from api_client.redaction import redact_all
from models.reads import GenerationView

STYLES = {
    "accepted": "dim",
    "uploading": "cyan",
    "submitting": "cyan",
    "uncertain": "yellow",
    "running": "blue",
    "completed": "green",
    "failed": "red",
    "cancelled": "magenta",
    "expired": "magenta",
}
"""Colours of statuses."""

_PIPE_WIDTH = 240
_NARROWEST = 8
_GAP = 2

_SECRET = ("video_url", "last_frame_url")


def on_terminal() -> bool:
    """Whether somebody is looking."""
    return sys.stdout.isatty()


def console(*, stderr: bool = False) -> Console:
    """A console on the standard output of this moment."""
    there = sys.stderr.isatty() if stderr else on_terminal()
    return Console(stderr=stderr, highlight=False, width=None if there else _PIPE_WIDTH)


def credits_text(amount: Decimal | None) -> str:
    """Credits without needless zeros; "–" where they are not known."""
    if amount is None:
        return "–"
    return f"{amount.normalize():f}" if amount else "0"


def time_text(at: datetime | None) -> str:
    """A time for people: UTC, to the second."""
    return "–" if at is None else f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S}Z"


def span_text(seconds: float) -> str:
    """A length of time in two units at most."""
    whole = max(0, int(seconds))
    for size, unit, smaller_size, smaller in (
        (86_400, "d", 3_600, "h"),
        (3_600, "h", 60, "m"),
        (60, "m", 1, "s"),
    ):
        if whole >= size:
            rest = whole % size // smaller_size
            return f"{whole // size}{unit}{f' {rest}{smaller}' if rest else ''}"
    return f"{whole}s"


def age(since: datetime, until: datetime | None = None) -> str:
    """How long ago, or how long it took."""
    return span_text(((until or datetime.now(UTC)) - since).total_seconds())


def status_text(status: str) -> Text:
    """A status in its colour."""
    return Text(status, style=STYLES.get(status, ""))


def generation_json(view: GenerationView, *, urls: bool = False) -> dict[str, Any]:
    """A generation under its documented names.

    Signed addresses are keys while they live: without `urls` they are left out, and the queries
    of references' and webhooks' addresses are cut.
    """
    fields = {name: getattr(view, name) for name in GenerationView.__dataclass_fields__}
    fields["waits_for"] = view.waits_for
    for name in _SECRET:
        fields[f"has_{name.removesuffix('_url')}"] = fields[name] is not None
        if not urls:
            del fields[name]
    if not urls:
        fields["request"] = redact_all(fields["request"])
        fields["notify"] = redact_all(fields["notify"])
    return fields


def print_json(value: Any) -> None:
    """One JSON value. Credits as text, times as ISO 8601 in UTC."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False, default=_plain))


def _plain(value: Any) -> Any:
    match value:
        case Decimal():
            return credits_text(value)
        case datetime():
            return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
        case _ if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        case Mapping():
            return dict(value)
        case set() | frozenset():
            return sorted(value)
        case _:
            return str(value)


def print_rows(
    headings: Sequence[str],
    rows: Iterable[Sequence[str | Text]],
    *,
    right: Iterable[str] = (),
    shrink: str = "",
) -> None:
    """A table on a terminal; in a pipe tab-separated lines, nothing cut.

    Columns in `right` are numbers; the column `shrink` gets the room that is left.
    """
    listed = list(rows)
    if not on_terminal():
        click.echo("\t".join(heading.lower() for heading in headings))
        for row in listed:
            click.echo("\t".join(" ".join(str(cell).split()) for cell in row))
        return
    console().print(table_of_rows(headings, listed, right=right, shrink=shrink))


def table_of_rows(
    headings: Sequence[str],
    rows: Iterable[Sequence[str | Text]],
    *,
    right: Iterable[str] = (),
    shrink: str = "",
) -> Table:
    """A plain table whose column `shrink` alone gives way on a narrow screen."""
    listed = list(rows)
    widths = {
        heading: max(cell_len(str(cell)) for cell in [heading, *(row[place] for row in listed)])
        for place, heading in enumerate(headings)
    }
    others = sum(width + _GAP for heading, width in widths.items() if heading != shrink)
    room = max(_NARROWEST, console().width - others)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in headings:
        table.add_column(
            heading,
            justify="right" if heading in right else "left",
            no_wrap=True,
            overflow="ellipsis",
            max_width=room if heading == shrink else None,
        )
    for row in listed:
        # Text, not markup: names, reasons and prompts may have brackets.
        table.add_row(*(cell if isinstance(cell, Text) else Text(cell) for cell in row))
    return table


def ending(view: GenerationView) -> str:
    """How a generation ended, in a line."""
    took = age(view.created_at, view.finished_at)
    if view.status == "completed":
        cost = credits_text(view.credit_cost)
        return f"completed in {took}, {cost} credits; the video: seedance show {view.id} --url"
    reason = " ".join(part for part in (view.error_code, view.error_message) if part)
    return f"{view.status} after {took}{f': {reason}' if reason else ''}"
