"""`python -m tests.protections [NAME…]`: that each protection's tests fail once it is taken out."""

import argparse
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from tests.protections import inventory, runner
from tests.protections.protection import Protection
from tests.protections.removals import PROTECTIONS


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0 if all were noticed, 1 if one was not, 2 for a wrong name."""
    parser = argparse.ArgumentParser(prog="python -m tests.protections", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="part of a name; default: all")
    parser.add_argument("-j", type=int, default=2, metavar="N", help="so many at a time (2)")
    parser.add_argument("--list", action="store_true", help="what is tested where, and stop")
    parser.add_argument("--no-baseline", action="store_true", help="trust that the tests pass")
    given = parser.parse_args(argv)
    if given.list:
        print(inventory.table())  # noqa: T201
        return 0
    chosen = [p for p in PROTECTIONS if not given.names or any(n in p.name for n in given.names)]
    if not chosen:
        print(f"no protection is called {' or '.join(given.names)}", file=sys.stderr)  # noqa: T201
        return 2
    return 0 if _prove(chosen, jobs=given.j, baseline=not given.no_baseline) else 1


def _prove(chosen: Sequence[Protection], *, jobs: int, baseline: bool) -> bool:
    started = time.monotonic()
    if baseline:
        wrong = runner.baseline(chosen)
        if wrong:
            _say("with everything in place these do not pass:", *wrong)
            return False
        _say(f"with everything in place all pass ({time.monotonic() - started:.0f} s)")
    missed = 0
    with ThreadPoolExecutor(jobs) as pool:
        for verdict in pool.map(runner.without, chosen):
            mark = "noticed" if verdict.noticed else "MISSED "
            one = verdict.protection
            count = f"{len(one.tests)} test{'s' if len(one.tests) > 1 else ' '}"
            _say(f"{mark}  {one.name:<34} {count:>8} {verdict.seconds:5.0f} s  {verdict.says[:90]}")
            missed += not verdict.noticed
            for line in verdict.unnoticed:
                _say(f"         {line}")
    total = time.monotonic() - started
    _say(f"{len(chosen) - missed} of {len(chosen)} removals noticed, in {total:.0f} s")
    return not missed


def _say(*lines: str) -> None:
    print(*lines, sep="\n", flush=True)  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())
