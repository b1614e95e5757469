"""`seedance balance` and `seedance cost`: what there is, and what it went to."""

import re
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import click

from models import reads
from worker.cli import output
from worker.cli.context import database, service
from worker.cli.errors import BadInput
from worker.upkeep import balance as upkeep

_UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


@click.command()
@click.option("--json", "as_json", is_flag=True, help="total_, used_ and remain_credits as JSON.")
def balance(*, as_json: bool) -> None:
    """Ask the provider what the account holds, and record it.

    An answer opens the gates that it may open: after paying in, work goes on at once.

    \b
    Example:
      seedance balance --json | jq -r .remain_credits
    """
    with service() as rt:
        found = rt.client.balance()
        upkeep.record(rt, found)
    total, used = found.total_credits, found.used_credits
    if as_json:
        output.print_json(
            {
                "total_credits": total,
                "used_credits": used,
                "remain_credits": found.remain_credits,
            }
        )
        return
    left = output.credits_text(found.remain_credits)
    of = f"{output.credits_text(used)} of {output.credits_text(total)} used"
    click.echo(f"{left} credits left, {of}")


@click.command()
@click.option(
    "--by",
    multiple=True,
    type=click.Choice([*reads.COST_GROUPS]),
    help="Group by this; may be repeated. (tenant)",
)
@click.option("--since", metavar="WHEN", help="2026-01-31, a time in ISO 8601, or 12h, 7d, 4w ago.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list.")
def cost(*, by: tuple[str, ...], since: str | None, as_json: bool) -> None:
    """Add up credits: estimated, charged, and pending for what has not ended.

    Counts generations by when they were accepted. Charged is what the provider said; only
    completed ones are charged.

    \b
    Examples:
      seedance cost --by tenant --by day --since 7d
      seedance cost --by model --by resolution --json
    """
    groups = by or ("tenant",)
    with database() as engine, engine.connect() as conn:
        lines = reads.cost(conn, groups, since=None if since is None else _since(since))
    if as_json:
        output.print_json(
            [
                {
                    **dict(zip(groups, line.group, strict=True)),
                    "generations": line.generations,
                    "completed": line.completed,
                    "estimated": line.estimated,
                    "charged": line.charged,
                    "pending": line.pending,
                }
                for line in lines
            ]
        )
        return
    numbers = ["GENERATIONS", "COMPLETED", "ESTIMATED", "CHARGED", "PENDING"]
    rows = [[*line.group, *_numbers(line)] for line in lines]
    if output.on_terminal() and len(lines) > 1:
        rows.append(["total", *[""] * (len(groups) - 1), *_numbers(_total(lines))])
    output.print_rows([*(group.upper() for group in groups), *numbers], rows, right=numbers)


def _numbers(line: reads.CostLine) -> list[str]:
    amounts = (line.estimated, line.charged, line.pending)
    return [str(line.generations), str(line.completed), *map(output.credits_text, amounts)]


def _total(lines: list[reads.CostLine]) -> reads.CostLine:
    return reads.CostLine(
        (),
        sum(line.generations for line in lines),
        sum(line.completed for line in lines),
        sum((line.estimated for line in lines), Decimal(0)),
        sum((line.charged for line in lines), Decimal(0)),
        sum((line.pending for line in lines), Decimal(0)),
    )


def _since(text: str) -> datetime:
    if ago := re.fullmatch(r"(\d{1,5})([mhdw])", text):
        return datetime.now(UTC) - timedelta(**{_UNITS[ago[2]]: int(ago[1])})
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise BadInput(
            f"--since is {text!r}; allowed: a date, a time in ISO 8601, or such as 12h, 7d, 4w"
        ) from None
    return at if at.tzinfo else at.replace(tzinfo=UTC)
