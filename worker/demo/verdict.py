"""Whether the demo ended as it should: what it promises is checked, not only shown."""

import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any

from sqlalchemy import Connection

from models.ledger import reading
from models.ledger.reading import Imbalance
from models.reads import EventView
from worker.cli.output import credits_text
from worker.demo.jobs import total
from worker.demo.listener import Heard
from worker.demo.screen import Line


@dataclass(frozen=True)
class Account:
    """What the ledger says at the end, of the demo's generations and of all."""

    charged: Decimal
    outstanding: Decimal
    imbalances: Sequence[Imbalance]


def account(conn: Connection, since: datetime) -> Account:
    """Read the ledger; `since` the demo began, by the database's clock."""
    return Account(
        reading.charged(conn, after=since),
        reading.outstanding(conn),
        reading.imbalances(conn, since=since),
    )


def problems(
    lines: Sequence[Line],
    histories: Mapping[uuid.UUID, Sequence[EventView]],
    tasks: Sequence[Mapping[str, Any]],
    account_used: Decimal,
    account: Account,
) -> list[str]:
    """All that is not as it should be; nothing, if all is well.

    `tasks` and `account_used` are what the provider itself says was made and charged, `account`
    is what the ledger says.
    """
    found = [problem for line in lines for problem in _of_line(line, histories)]
    wanted = sum(1 for line in lines if line.job.charged)
    if len(tasks) != wanted:
        found.append(f"the provider has {len(tasks)} tasks, {wanted} were to be made")
    charged = total([line.view.credit_cost for line in lines if line.view])
    for where, amount in (("with the generations", charged), ("in the ledger", account.charged)):
        if amount != account_used:
            found.append(
                f"{credits_text(amount)} credits are recorded as charged {where},"
                f" {credits_text(account_used)} went off the provider's account"
            )
    if account.outstanding:
        found.append(f"{credits_text(account.outstanding)} credits are still reserved")
    found += [
        f"generation {one.generation_id} and its entries in the ledger differ"
        for one in account.imbalances
    ]
    return found


def _of_line(line: Line, histories: Mapping[uuid.UUID, Sequence[EventView]]) -> Iterator[str]:
    name, view, job = line.job.name, line.view, line.job
    if view is None:
        yield f"{name}: no worker took it"
        return
    if view.status != job.ends:
        reason = view.error_code or view.attention or view.waits_for or "no reason known"
        yield f"{name}: is {view.status} instead of {job.ends} ({reason})"
        return
    if view.error_code != job.error_code:
        yield f"{name}: has error code {view.error_code} instead of {job.error_code}"
    if job.charged and view.credit_cost != view.estimated_cost:
        yield (
            f"{name}: {credits_text(view.credit_cost)} credits charged,"
            f" {credits_text(view.estimated_cost)} estimated"
        )
    happened = {event.event for event in histories[line.id]}
    if missing := set(job.events) - happened:
        yield f"{name}: its history lacks {', '.join(sorted(missing))}"
    if view.metadata != job.options.get("metadata"):
        yield f"{name}: its metadata came back as {view.metadata}"


def notice_problems(lines: Sequence[Line], heard: Heard) -> list[str]:
    """What is wrong with the webhooks that came, of those that have to."""
    found = [
        f"{line.job.name}: the verified webhook said {heard.statuses.get(str(line.id))}"
        for line in lines
        if heard.statuses.get(str(line.id)) != line.job.ends
    ]
    if heard.unverified:
        found.append(f"{heard.unverified} webhooks could not be verified")
    return found
