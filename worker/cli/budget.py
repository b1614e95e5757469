"""`seedance budget`: how much each tenant may spend."""

from dataclasses import replace
from typing import Any

import click
from sqlalchemy import Connection

from models import budgets
from models.budgets import Period, Policy, Room
from models.operating import actions
from models.operating.actions import Action
from worker.author import author
from worker.cli import output
from worker.cli.acting import acting
from worker.cli.context import database
from worker.cli.errors import BadInput
from worker.requests import check_period, new_budget

_NUMBERS = ("AMOUNT", "CHARGED", "UNDER WAY", "LEFT")


@click.group()
def budget() -> None:
    """Set, list and remove what tenants may spend in a day, in a month, or at all.

    Days and months are UTC's. What a tenant has spent is what the ledger charged in the period;
    what is under way counts with its estimate.

    \b
    Examples:
      seedance budget set acme month 5000
      seedance budget set trial day 20 --policy wait
      seedance budget list
    """


@budget.command("list")
@click.option("--tenant", help="Only of this one.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list.")
def list_(*, tenant: str | None, as_json: bool) -> None:
    """List the budgets, with what is spent and left of each."""
    with database() as engine, engine.connect() as conn:
        rooms = budgets.rooms(conn)
    if tenant is not None:
        named = sorted({room.budget.tenant for room in rooms})
        if tenant not in named:
            raise BadInput(
                f"--tenant is {tenant!r}; allowed: one with a budget:"
                f" {', '.join(named) or 'there is none'}"
            )
        rooms = [room for room in rooms if room.budget.tenant == tenant]
    if as_json:
        output.print_json([room_json(room) for room in rooms])
        return
    output.print_rows(
        ["TENANT", "PERIOD", *_NUMBERS, "POLICY"],
        [
            [
                room.budget.tenant,
                room.budget.period,
                *map(
                    output.credits_text,
                    (room.budget.amount, room.charged, room.under_way, room.left),
                ),
                room.budget.policy,
            ]
            for room in rooms
        ],
        right=_NUMBERS,
    )


def room_json(room: Room) -> dict[str, Any]:
    """A budget and what is left of it."""
    return {
        "tenant": room.budget.tenant,
        "period": room.budget.period,
        "since": room.since,
        "amount": room.budget.amount,
        "policy": room.budget.policy,
        "charged": room.charged,
        "under_way": room.under_way,
        "left": room.left,
    }


@budget.command("set")
@click.argument("tenant")
@click.argument("period", metavar="day|month|total")
@click.argument("amount")
@click.option(
    "--policy",
    metavar="refuse|wait",
    help="What becomes of a request that is over it. (as it was; refuse, if it is new)",
)
@acting()
def set_(
    *, tenant: str, period: str, amount: str, policy: str | None, by: str | None, reason: str | None
) -> None:
    """Set a budget in credits, or change the one there is.

    `refuse`: enqueueing fails. `wait`: the generation is stored, and is sent when the period is
    over or the budget is raised.
    """
    new = new_budget(tenant, period, amount, policy or Policy.REFUSE)
    who = author(by, reason)
    with database() as engine, engine.begin() as conn:
        before = _as_set(conn, tenant, new.period)
        if policy is None and before:
            new = replace(new, policy=Policy(before["policy"]))
        budgets.put(conn, new)
        after = _as_set(conn, tenant, new.period)
        detail = {"period": str(new.period), **after, "before": before or None}
        actions.record(conn, Action.BUDGET_SET, who, tenant=tenant, detail=detail)
        [room] = [r for r in budgets.rooms(conn, [tenant]) if r.budget.period == new.period]
    click.echo(
        f"{tenant} may spend {output.credits_text(new.amount)} credits"
        f" ({new.period}, {new.policy}); {output.credits_text(room.left)} are left"
    )


@budget.command("remove")
@click.argument("tenant")
@click.argument("period", metavar="day|month|total")
@acting()
def remove(*, tenant: str, period: str, by: str | None, reason: str | None) -> None:
    """Take a budget away."""
    named, who = check_period(period), author(by, reason)
    with database() as engine, engine.begin() as conn:
        before = _as_set(conn, tenant, named)
        if not budgets.remove(conn, tenant, named):
            there = ", ".join(f"{b.tenant} {b.period}" for b in budgets.known(conn))
            raise BadInput(
                f"the budget is {f'{tenant} {period}'!r}; allowed: one that is set:"
                f" {there or 'there is none'}"
            )
        detail = {"period": str(named), "before": before}
        actions.record(conn, Action.BUDGET_REMOVE, who, tenant=tenant, detail=detail)
    click.echo(f"{tenant} has no budget for {period} any more")


def _as_set(conn: Connection, tenant: str, period: Period) -> dict[str, str]:
    """A budget's amount and policy; empty where there is none."""
    rooms = budgets.rooms(conn, [tenant])
    return next(
        (
            {"amount": output.credits_text(b.amount), "policy": str(b.policy)}
            for b in (room.budget for room in rooms)
            if b.period == period
        ),
        {},
    )
