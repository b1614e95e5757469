"""`seedance balance` and `seedance cost`: what there is, and what it went to."""

import csv
import sys
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

import click

from models import credit
from models.ledger import reading
from models.ledger.drift import Drift, drift
from models.ledger.reading import CostLine
from worker.cli import output
from worker.cli.context import database, service
from worker.cli.errors import BadInput
from worker.cli.times import span
from worker.upkeep import balance as upkeep


@click.command()
@click.option("--json", "as_json", is_flag=True, help="total_, used_ and remain_credits as JSON.")
def balance(*, as_json: bool) -> None:
    """Ask the provider what the account holds, and record it.

    An answer closes the circuit breakers that it may close: after a top-up work continues at once.
    Shows the credits reserved for work under way, and how far the provider and the ledger differ.

    \b
    Example:
      seedance balance --json | jq -r .remain_credits
    """
    with service() as rt:
        asked_at = upkeep.now(rt)
        found = rt.client.balance()
        upkeep.record(rt, found, asked_at=asked_at)
        with rt.engine.connect() as conn:
            apart = drift(conn)
            known = credit.funds(conn)
    total, used = found.total_credits, found.used_credits
    if as_json:
        output.print_json(
            {
                "total_credits": total,
                "used_credits": used,
                "remain_credits": found.remain_credits,
                "under_way": known.under_way,
                "free": known.free,
                "drift": None if apart is None else _drift_json(apart),
            }
        )
        return
    left = output.credits_text(found.remain_credits)
    of = f"{output.credits_text(used)} of {output.credits_text(total)} used"
    click.echo(f"{left} credits left, {of}")
    if known.under_way:
        free, set_aside = output.credits_text(known.free), output.credits_text(known.under_way)
        click.echo(f"{set_aside} set aside for what is under way, {free} free")
    if apart is not None:
        click.echo(apart.explain())


def _drift_json(apart: Drift) -> dict[str, Any]:
    return {
        "since": apart.since,
        "until": apart.until,
        "provider": apart.provider,
        "ledger": apart.ledger,
        "credits": apart.credits,
        "unexplained": apart.unexplained,
        "causes": [vars(cause) for cause in apart.causes],
    }


@click.command()
@click.option(
    "--by",
    multiple=True,
    type=click.Choice(reading.GROUPS),
    help="Group by this; may be repeated. (tenant)",
)
@click.option("--since", metavar="WHEN", help="2026-01-31, a time in ISO 8601, or 12h, 7d, 4w ago.")
@click.option("--until", metavar="WHEN", help="Up to then, and without it; written as --since.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list.")
@click.option("--csv", "as_csv", is_flag=True, help="Print comma-separated values.")
def cost(
    *, by: tuple[str, ...], since: str | None, until: str | None, as_json: bool, as_csv: bool
) -> None:
    """Add up credits: estimated, charged, and pending for what has not ended.

    From the ledger, in which each entry counts when it was written: an estimate when the
    generation was accepted, a charge when its end was seen. Days are UTC's. Charged is what the
    provider said; only completed tasks are charged, second tasks of a generation among them.

    \b
    Examples:
      seedance cost --by tenant --by day --since 7d
      seedance cost --by model --by resolution --json
      seedance cost --by tenant --since 2026-01-01 --until 2026-02-01 --csv > january.csv
    """
    if as_json and as_csv:
        raise BadInput("--json and --csv are both given: choose one")
    groups = tuple(dict.fromkeys(by)) or ("tenant",)
    first, last = span(("--since", since), ("--until", until))
    with database() as engine, engine.connect() as conn:
        lines = reading.cost(conn, groups, since=first, until=last)
        apart = drift(conn)
    if apart is not None and apart.large:
        click.echo(f"note: {apart.explain()}", err=True)
    if as_json:
        output.print_json([_fields(groups, line) for line in lines])
        return
    if as_csv:
        _print_csv([*groups, *_AMOUNTS], [_fields(groups, line) for line in lines])
        return
    numbers = [name.upper() for name in _AMOUNTS]
    rows = [[*line.group, *_numbers(line)] for line in lines]
    if output.on_terminal() and len(lines) > 1:
        rows.append(["total", *[""] * (len(groups) - 1), *_numbers(_total(lines))])
    output.print_rows([*(group.upper() for group in groups), *numbers], rows, right=numbers)


_AMOUNTS = ("generations", "completed", "estimated", "charged", "second", "pending")


def _fields(groups: Sequence[str], line: CostLine) -> dict[str, Any]:
    amounts = {name: getattr(line, name) for name in _AMOUNTS}
    return {**dict(zip(groups, line.group, strict=True)), **amounts}


def _print_csv(names: Sequence[str], lines: Sequence[Mapping[str, Any]]) -> None:
    out = csv.writer(sys.stdout, lineterminator="\n")
    out.writerow(names)
    for line in lines:
        out.writerow([_cell(line[name]) for name in names])


def _cell(value: Any) -> str:
    """A value of the table; text that a spreadsheet would take for a formula is quoted for it."""
    if isinstance(value, Decimal):
        return output.credits_text(value)
    shown = str(value)
    return f"'{shown}" if shown.startswith(("=", "+", "-", "@")) else shown


def _numbers(line: CostLine) -> list[str]:
    values = (getattr(line, name) for name in _AMOUNTS)
    return [output.credits_text(v) if isinstance(v, Decimal) else str(v) for v in values]


def _total(lines: Sequence[CostLine]) -> CostLine:
    def added(name: str) -> Any:
        return sum((getattr(line, name) for line in lines), start=0)

    return CostLine((), **{name: added(name) for name in _AMOUNTS})
