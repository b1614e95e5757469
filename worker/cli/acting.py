"""The options of every command that changes something: who does it, and why."""

from collections.abc import Callable
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])


def acting(*, reason_required: bool = False) -> Callable[[F], F]:
    """Add `--by` and `--reason`, which `worker.author.author` checks; `history` shows both."""

    def add(command: F) -> F:
        by = click.option(
            "--by", metavar="NAME", help="Who does it. (SEEDANCE_OPERATOR, or the system's user)"
        )
        reason = click.option(
            "--reason", metavar="TEXT", required=reason_required, help="Why; kept in the history."
        )
        return by(reason(command))

    return add
