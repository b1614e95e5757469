"""`seedance list`: generations, the newest first."""

from dataclasses import replace
from typing import Any

import click
from rich.text import Text

from models import choosing
from models.reads import GenerationView
from worker.cli import output
from worker.cli.context import database
from worker.cli.filters import chosen, filters

UNSTORED = "a result of it can't be stored: see seedance show"

_COLUMNS = (
    "id",
    "status",
    "remote_status",
    "remote_task_id",
    "tenant",
    "created_at",
    "finished_at",
    "estimated_cost",
    "credit_cost",
    "error_code",
    "attention",
    "waits_for",
    "retry_of",
    "retried_as",
    "wait_reason",
)
"""Of the lines in a pipe; new ones are added at the end."""


@click.command("list")
@filters
@click.option(
    "-n", "--limit", type=click.IntRange(1, 10_000), default=20, show_default=True, metavar="N"
)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list; fields as in `show`.")
def list_(*, limit: int, as_json: bool, **named: Any) -> None:
    """List generations, the newest first: a table on a terminal, tab-separated in a pipe.

    What is chosen meets every kind of condition that is named; of one kind any value will do.

    \b
    Examples:
      seedance list --status running --status uncertain
      seedance list --attention --json | jq '.[].id'
      seedance list --tenant acme --error-class provider --since 12h
      seedance list --waits-for breaker --until 1h
    """
    choice = chosen(**named)
    with database() as engine, engine.connect() as conn:
        views = choosing.newest(conn, choice, limit=limit + 1)
    if len(views) > limit:
        del views[limit:]
        click.echo(f"these are the newest {limit}, there are more: --limit", err=True)
    if as_json:
        output.print_json([output.generation_json(view) for view in views])
        return
    if choice.attention:
        # Chosen for a result of theirs, which has an attention of its own.
        views = [v if v.attention else replace(v, attention=UNSTORED) for v in views]
    if not views and output.on_terminal():
        click.echo("no generations" + ("" if choice.everything else " like that"))
        return
    if output.on_terminal():
        headings, right, shrink = table_headings()
        output.print_rows(headings, [row_of(view) for view in views], right=right, shrink=shrink)
    else:
        output.print_rows(
            list(_COLUMNS),
            [_whole(view) for view in views],
        )


def table_headings() -> tuple[list[str], list[str], str]:
    """Of `row_of`: all, those of numbers, and the one that gives way."""
    return (
        ["ID", "STATUS", "REMOTE", "AGE", "TOOK", "CREDITS", "WHAT"],
        ["AGE", "TOOK", "CREDITS"],
        "WHAT",
    )


def row_of(view: GenerationView) -> list[str | Text]:
    """A generation as a row on a screen."""
    took = output.age(view.created_at, view.finished_at) if view.finished_at else ""
    cost = view.credit_cost if view.ended else view.estimated_cost
    return [
        str(view.id)[:8],  # enough for `show`, which says so if it is not
        output.status_text(view.status),
        view.remote_status or "",
        output.age(view.created_at),
        took,
        output.credits_text(cost) if view.ended else f"~{output.credits_text(cost)}",
        _what(view),
    ]


def _what(view: GenerationView) -> Text:
    """What is to be known of it first: a trouble, or else its prompt."""
    if view.attention:
        return Text(f"! {view.attention}", style="yellow")
    if view.error_code:
        return Text(f"{view.error_code} {view.error_message or ''}".strip(), style="red")
    if view.waits_for and not view.ended:
        return Text(f"waits for {view.waits_for}", style="yellow")
    return Text(prompt(view.request), style="dim")


def prompt(request: dict[str, object]) -> str:
    """The prompt of a request, in one line."""
    content = request.get("content")
    texts = [
        item["text"]
        for item in (content if isinstance(content, list) else [])
        if isinstance(item, dict) and isinstance(item.get("text"), str)
    ]
    return " ".join(" ".join(texts).split())


def _whole(view: GenerationView) -> list[str]:
    moments = ["" if at is None else at.isoformat() for at in (view.created_at, view.finished_at)]
    return [
        str(view.id),
        view.status,
        view.remote_status or "",
        view.remote_task_id or "",
        view.tenant,
        *moments,
        output.credits_text(view.estimated_cost),
        "" if view.credit_cost is None else output.credits_text(view.credit_cost),
        view.error_code or "",
        view.attention or "",
        view.waits_for or "",
        str(view.retry_of or ""),
        str(view.retried_as or ""),
        view.wait_reason or "",
    ]
