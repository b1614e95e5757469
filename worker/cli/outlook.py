"""`seedance generate --dry-run`: what it would cost, and whether that is there."""

import click

from models import budgets, credit
from models.budgets import Policy, Room
from models.credit import Funds
from models.intake_rows import NewGeneration
from worker.cli import output
from worker.cli.budget import room_json
from worker.cli.context import database


def tell_outlook(new: NewGeneration, *, as_json: bool) -> int:
    """Print the estimate, the account and the budgets; 1 if enqueueing would be refused."""
    cost = new.estimated_cost
    with database() as engine, engine.connect() as conn:
        known = credit.funds(conn)
        rooms = budgets.rooms(conn, [new.tenant])
    refused = [r for r in rooms if r.budget.policy is Policy.REFUSE and cost > r.left]
    if as_json:
        output.print_json(
            {
                "estimated_cost": cost,
                "tenant": new.tenant,
                "balance": {
                    "remain_credits": known.remain,
                    "asked_seconds_ago": known.age,
                    "charged_since": known.charged,
                    "under_way": known.under_way,
                    "free": known.free,
                    "covers": None if known.free is None else cost <= known.free,
                },
                "budgets": [{**room_json(room), "covers": cost <= room.left} for room in rooms],
                "would": "be refused" if refused else "be accepted",
            }
        )
    else:
        click.echo(f"{output.credits_text(cost)} credits, estimated; nothing was stored")
        click.echo(_balance(known, new))
        for room in rooms:
            click.echo(_budget(room, new))
    return 1 if refused else 0


def _balance(known: Funds, new: NewGeneration) -> str:
    if known.remain is None or known.free is None:
        return "balance: not known yet (seedance balance asks for it)"
    there = known.remain - known.charged
    figures = (
        f"{output.credits_text(known.free)} free: {output.credits_text(there)} on the account,"
        f" {output.credits_text(known.under_way)} set aside for what is under way"
    )
    covered = new.estimated_cost <= known.free
    return f"balance: {'covers it' if covered else 'does not cover it now, so it waits'}; {figures}"


def _budget(room: Room, new: NewGeneration) -> str:
    b = room.budget
    over = "refused" if b.policy is Policy.REFUSE else "made to wait"
    verdict = "covers it" if new.estimated_cost <= room.left else f"exceeded, so it is {over}"
    return (
        f"budget ({b.period}) of {b.tenant}: {verdict}; {output.credits_text(room.left)} left of"
        f" {output.credits_text(b.amount)}"
    )
