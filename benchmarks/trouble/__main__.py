"""Measure the section "In trouble" alone.

    python -m benchmarks.trouble [--only CONDITION,…] [--contender service,celery] [--rounds N]

Prints one table with the goals and one with the figures of each condition. A condition that is
compared with calm measures calm as well.
"""

import argparse
import dataclasses
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks import plan
from benchmarks.arena import host
from benchmarks.entrants import ENTRANTS
from benchmarks.run import Run
from benchmarks.trouble import bars, runner
from benchmarks.trouble.conditions import CONDITIONS
from benchmarks.trouble.contenders import CONTENDERS, OVERRIDES
from worker import stack


def main(argv: Sequence[str] | None = None) -> int:
    """Return 0 if everything could be measured, whether or not goals are met; else 1."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog="conditions: " + ", ".join(condition.name for condition in CONDITIONS),
    )
    parser.add_argument("--only", metavar="CONDITIONS", help="names, separated by commas")
    parser.add_argument("--contender", metavar="NAMES", help="of " + ",".join(CONTENDERS))
    parser.add_argument("--rounds", type=int, default=1, help="medians of N rounds (%(default)s)")
    parser.add_argument(
        "--side-by-side", type=int, default=runner.SIDE_BY_SIDE, metavar="N",
        help="conditions that mostly wait at a time (%(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--setting",
        action="append",
        default=[],
        metavar="SEEDANCE_NAME=VALUE",
        help="a setting of this service for every condition",
    )
    parser.add_argument("--out", type=Path, help="write the figures to this JSON file")
    given = parser.parse_args(argv)
    contenders = given.contender.split(",") if given.contender else list(CONTENDERS)
    if unknown := set(contenders) - set(CONTENDERS):
        parser.error(f"--contender: no {', '.join(sorted(unknown))}; there are service, celery")
    try:
        conditions = runner.select(given.only.split(",")) if given.only else list(CONDITIONS)
    except ValueError as error:
        parser.error(f"--only: {error}")
    stack.forget_settings()
    OVERRIDES.update(setting.split("=", 1) for setting in given.setting)
    entrants = [entrant for entrant in ENTRANTS if entrant.name in CONTENDERS]
    with tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        run = Run(dataclasses.replace(plan.USUAL, form="trouble", minutes=1e9), entrants, folder)
        with host(folder / "shared") as servers:
            run.trouble(servers, conditions, contenders, given.rounds, given.side_by_side)
    if given.out is not None:
        run.results.write(given.out)
    print(bars.section(run.results))
    return int(run.failed)


if __name__ == "__main__":
    sys.exit(main())
