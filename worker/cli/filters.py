"""The options that choose generations: of `list`, and of what is done in bulk."""

from collections.abc import Callable
from typing import Any, TypeVar

import click

from models.choosing import Choice
from models.error_classes import ErrorClass
from models.lifecycle import Status
from models.wait_reasons import WaitReason
from worker.cli.times import span

F = TypeVar("F", bound=Callable[..., Any])

_OPTIONS = (
    click.option(
        "-s",
        "--status",
        "statuses",
        multiple=True,
        type=click.Choice([str(s) for s in Status]),
        help="Of this status; may be repeated, as may the others.",
    ),
    click.option("--tenant", "tenants", multiple=True, help="Of this tenant."),
    click.option(
        "--error", "errors", multiple=True, metavar="CODE", help="Ended with this error_code."
    ),
    click.option(
        "--error-class",
        "error_classes",
        multiple=True,
        type=click.Choice([str(c) for c in ErrorClass]),
        help="Ended with an error of this class.",
    ),
    click.option(
        "--waits-for",
        "waits",
        multiple=True,
        type=click.Choice([str(w) for w in WaitReason]),
        help="Waits for this, now.",
    ),
    click.option("--attention", is_flag=True, help="Needs an operator."),
    click.option(
        "--since", metavar="WHEN", help="Accepted since: 2026-01-31, ISO 8601, or 90s, 12h, 7d ago."
    ),
    click.option("--until", metavar="WHEN", help="Accepted before; written as --since."),
)


def filters(command: F) -> F:
    """Add the options; `chosen` makes a Choice of what they hold."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def chosen(
    *,
    statuses: tuple[str, ...],
    tenants: tuple[str, ...],
    errors: tuple[str, ...],
    error_classes: tuple[str, ...],
    waits: tuple[str, ...],
    attention: bool,
    since: str | None,
    until: str | None,
) -> Choice:
    """What the options name. Raises BadInput."""
    first, last = span(("--since", since), ("--until", until))
    return Choice(
        statuses=frozenset(map(Status, statuses)),
        tenants=frozenset(tenants),
        error_codes=frozenset(code.upper() for code in errors),
        error_classes=frozenset(map(ErrorClass, error_classes)),
        waits=frozenset(map(WaitReason, waits)),
        attention=attention,
        since=first,
        until=last,
    )
