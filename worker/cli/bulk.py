"""What is done to many generations at once: told first, and done only to as many as were meant."""

import sys
from collections.abc import Callable
from typing import Any, TypeVar

import click

from models.choosing import Choice
from worker.cli.errors import BadInput, Failed
from worker.cli.filters import filters

F = TypeVar("F", bound=Callable[..., Any])


def bulk(command: F) -> F:
    """Add the filters, `--dry-run` and `--expect`."""
    dry_run = click.option("--dry-run", is_flag=True, help="Tell what would be done; do nothing.")
    expect = click.option(
        "--expect",
        type=click.IntRange(min=0),
        metavar="N",
        help="How many the filters shall mean; refused if they mean more or fewer.",
    )
    return filters(dry_run(expect(command)))


def check_named(names: tuple[str, ...], choice: Choice, expect: int | None) -> None:
    """Raise BadInput unless generations are either named or chosen."""
    if names and not choice.everything:
        raise BadInput("generations are named and chosen by filters: do one of both")
    if not names and choice.everything:
        raise BadInput("say which: ID…, or filters such as --tenant or --status (see --help)")
    if names and expect is not None:
        raise BadInput("--expect is for filters; generations that are named are counted already")


def confirm(count: int, what: str, expect: int | None) -> None:
    """Let the caller say how many are meant. Raises BadInput or Failed where it is not so many."""
    if expect is None and count:
        if not sys.stdin.isatty():
            raise BadInput(f"{count} would be {what}: say --expect {count} if that is meant")
        expect = click.prompt(f"{count} would be {what}; type the number to do so", type=int)
    if expect is not None and expect != count:
        raise Failed(f"{count} would be {what}, not {expect}: nothing was done")
