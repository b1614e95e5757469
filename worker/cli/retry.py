"""`seedance retry`: new generations from those that ended without a video."""

import uuid
from collections import Counter
from typing import Any

import click
from sqlalchemy import Engine

from models import choosing
from models.budgets import BudgetExceeded
from models.choosing import Choice
from models.operating import retries
from models.operating.actions import By
from models.operating.retries import MEANS, RETRYABLE, Refusal
from worker.author import author
from worker.cli import output
from worker.cli.acting import acting
from worker.cli.bulk import bulk, check_named, confirm
from worker.cli.context import database
from worker.cli.errors import Failed
from worker.cli.filters import chosen
from worker.cli.lookup import find
from worker.retrying import RetryRefused
from worker.retrying import retry as retry_one


@click.command()
@click.argument("names", metavar="[ID]...", nargs=-1)
@bulk
@click.option("--again", is_flag=True, help="Also what was retried, or is a retry, before.")
@acting()
@click.option("--json", "as_json", is_flag=True, help="Print what was done as a JSON object.")
@click.pass_context
def retry(
    ctx: click.Context,
    /,
    *,
    names: tuple[str, ...],
    dry_run: bool,
    expect: int | None,
    again: bool,
    by: str | None,
    reason: str | None,
    as_json: bool,
    **named: Any,
) -> None:
    """Accept the requests of generations that failed, expired or were cancelled once more.

    Each becomes a new generation of its own, charged if it completes; both name each other. Those
    that are meant are named, or chosen by filters, as in `list`. What the provider refused for
    moderation, copyright or privacy is never retried. Exit code 1 if one could not be retried.

    \b
    Examples:
      seedance retry 0b0e7f1a --reason "provider's outage"
      seedance retry --error-class provider --since 2h --dry-run
      seedance retry --error-class provider --since 2h --expect 117
    """
    choice, who = chosen(**named), author(by, reason)
    check_named(names, choice, expect)
    with database() as engine:
        meant, refused = _named(engine, names) if names else _chosen(engine, choice, again=again)
        if not names and not dry_run:
            confirm(len(meant), "retried", expect)
        made: dict[uuid.UUID, uuid.UUID] = {}
        if names or not dry_run:
            made = _retry(engine, meant, refused, who, again=again, undo=dry_run)
        if dry_run and names:
            meant, made = list(made), {}
    if as_json:
        output.print_json(
            {
                "dry_run": dry_run,
                "meant": meant,
                "retried": [{"id": of, "retried_as": new} for of, new in made.items()],
                "refused": refused,
            }
        )
    else:
        _tell(meant, made, refused, dry_run=dry_run)
    ctx.exit(1 if refused and (names or (not dry_run and len(made) < len(meant))) else 0)


def _named(engine: Engine, names: tuple[str, ...]) -> tuple[list[uuid.UUID], Counter[str]]:
    """The ids of those that there are; what was said of the others."""
    meant, refused = [], Counter[str]()
    with engine.connect() as conn:
        for name in names:
            try:
                meant.append(find(conn, name).id)
            except Failed as error:
                refused[error.format_message()] += 1
    return list(dict.fromkeys(meant)), refused


def _chosen(engine: Engine, choice: Choice, *, again: bool) -> tuple[list[uuid.UUID], Counter[str]]:
    """The ids of those that may be retried, the oldest first; why the others may not."""
    with engine.connect() as conn:
        rows = choosing.rows(conn, choice, retries.DECIDING, among=RETRYABLE)
    refused, meant = Counter[str](), []
    for row in rows:
        refusal = retries.refuse(retries.end_of(row), again=again)
        if refusal is None and row.retried_as is not None:
            # Of a chain the last is meant, if it is chosen itself.
            refusal = Refusal.RETRIED
        if refusal is None:
            meant.append(row.id)
        else:
            refused[MEANS[refusal]] += 1
    return meant, refused


def _retry(
    engine: Engine,
    meant: list[uuid.UUID],
    refused: Counter[str],
    who: By,
    *,
    again: bool,
    undo: bool,
) -> dict[uuid.UUID, uuid.UUID]:
    """Retry each in a transaction of its own, which `undo` takes back; `refused` gets what was said
    of the others.
    """
    made, one = {}, len(meant) == 1
    for generation_id in meant:
        try:
            with engine.connect() as conn:
                new = retry_one(conn, generation_id, by=who, again=again)
                if not undo:
                    conn.commit()
                made[generation_id] = new
        except RetryRefused as error:
            refused[error.told if one or error.refusal is None else MEANS[error.refusal]] += 1
        except BudgetExceeded as error:
            tenant = error.room.budget.tenant
            refused[str(error) if one else f"tenant {tenant!r} has no budget left for it"] += 1
    return made


def _tell(
    meant: list[uuid.UUID],
    made: dict[uuid.UUID, uuid.UUID],
    refused: Counter[str],
    *,
    dry_run: bool,
) -> None:
    for why, count in refused.most_common():
        click.echo(f"{count} not retried: {why}" if count > 1 else f"not retried: {why}", err=True)
    for of, new in made.items():
        click.echo(f"{of} is retried as {new}")
    if dry_run:
        click.echo(f"{len(meant)} would be retried; nothing was done")
    elif len(meant) > 1 or not (meant or refused):
        click.echo(f"{len(made)} of {len(meant)} retried")
