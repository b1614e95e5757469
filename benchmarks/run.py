"""Measures this service and what a user would take instead: same work, same machine, same run.

    python -m benchmarks.run [--quick | --full] [--only service,celery] [--rounds 3] [--out FOLDER]

Prints tables of medians, with each figure's ratio to this service's, and what became of the goals;
writes them with all figures (JSON) and charts (SVG) to FOLDER. Everything is over loopback. The
usual form takes half an hour; `--full` also sends the others with 10,000 in flight; `--quick`
takes three minutes and only shows that all of it works.
"""

import argparse
import os
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks import goals, plan, telling
from benchmarks.arena import Host, host
from benchmarks.cells import Figures, enqueueing, in_flight, instant, killing
from benchmarks.entrants import ENTRANTS, VARIANTS, Entrant
from benchmarks.results import Cell, Results, machine, rounded
from benchmarks.trouble import runner
from benchmarks.trouble.conditions import CONDITIONS, Condition
from worker import stack

OUT = Path("benchmark-results")


class Run:
    """One run: takes cell after cell, until all are done or the time is up."""

    def __init__(self, what: plan.Plan, entrants: Sequence[Entrant], folder: Path) -> None:
        self.plan = what
        self.entrants = entrants
        about = {one.name: one.about for one in entrants}
        self.results = Results(about, machine(), what.form)
        self.failed = False
        self._folder = folder
        self._began = time.monotonic()
        self._lock = threading.Lock()

    def all(self) -> None:
        """Every cell of the plan."""
        with host(self._folder / "shared") as servers:
            for number in range(1, self.plan.rounds + 1):
                self._round(servers, number)
            self._beside()
            for entrant in self.entrants:
                sizes = self.plan.alone
                if entrant.name == "service":
                    sizes = tuple(sorted({*sizes, *self.plan.alone_for_service}))
                for size in sizes:
                    self._alone(servers, entrant, size)
            names = [entrant.name for entrant in self.entrants]
            self.trouble(servers, CONDITIONS, names, self.plan.trouble)

    def trouble(
        self,
        servers: Host,
        conditions: Sequence[Condition],
        contenders: Sequence[str],
        rounds: int,
        side_by_side: int = runner.SIDE_BY_SIDE,
    ) -> None:
        """Measure the section "In trouble"."""

        def record(job: runner.Job, measure: Callable[[], Figures]) -> None:
            condition = job.condition
            self._cell(
                job.contender, condition.kind, condition.generations, job.round, condition.needs,
                measure,
            )  # fmt: skip

        runner.run(conditions, contenders, rounds, servers, record, side_by_side)

    def _round(self, servers: Host, number: int) -> None:
        p = self.plan
        # Whoever comes first finds the machine as it is left by another one each time.
        shift = (number - 1) % len(self.entrants)
        for entrant in (*self.entrants[shift:], *self.entrants[:shift]):
            self._cell(
                entrant.name, "enqueue", p.bulk, number, 15,
                lambda e=entrant: enqueueing.measure(e, servers, singles=p.singles, bulk=p.bulk),
            )  # fmt: skip
            self._cell(
                entrant.name, "instant", p.instant, number, 25,
                lambda e=entrant: instant.measure(
                    e, servers, generations=p.instant, singles=p.idle
                ),
            )  # fmt: skip

    def _beside(self) -> None:
        """Blows first: when they have fallen, most of what is left of them is waiting."""
        p = self.plan
        if not p.beside:
            return
        blows = [*self.entrants, *_variants(self.entrants)] if p.killed else []
        fallen = [threading.Event() for _ in blows]
        with ThreadPoolExecutor(len(blows) + len(self.entrants)) as pool:
            for entrant, one in zip(blows, fallen, strict=True):
                pool.submit(self._kill, entrant, one)
            for one in fallen:
                one.wait()
            for entrant in self.entrants:
                pool.submit(self._few, entrant)

    def _kill(self, entrant: Entrant, fallen: threading.Event) -> None:
        p = self.plan

        def measure() -> Figures:
            with host(self._folder / f"kill-{entrant.name}") as own:
                return killing.measure(
                    entrant, own, generations=p.killed, seconds=p.killed_seconds,
                    within=p.killed_within, struck=fallen.set,
                )  # fmt: skip

        try:
            self._cell(entrant.name, "kill", p.killed, 1, p.killed_within, measure)
        finally:
            fallen.set()

    def _few(self, entrant: Entrant) -> None:
        p = self.plan

        def measure() -> Figures:
            with host(self._folder / f"few-{entrant.name}") as own:
                return in_flight.measure(
                    entrant, own, generations=p.beside, seconds=p.seconds, within=p.within
                )

        self._cell(entrant.name, "in_flight", p.beside, 1, p.seconds[1] + 30, measure)

    def _alone(self, servers: Host, entrant: Entrant, size: int) -> None:
        p = self.plan
        self._cell(
            entrant.name, "in_flight", size, 1, p.seconds[1] + 15 + size / 100,
            lambda: in_flight.measure(
                entrant, servers, generations=size, seconds=p.seconds, within=p.within
            ),
        )  # fmt: skip

    def _cell(
        self, contender: str, kind: str, size: int, number: int, needs: float,
        measure: Callable[[], Figures],
    ) -> None:  # fmt: skip
        passed = time.monotonic() - self._began
        load = os.getloadavg()[0]
        if passed + needs > 60 * self.plan.minutes:
            figures: Figures = {"note": "left out: no time"}
        else:
            figures = self._tried(measure)
        with self._lock:
            self.results.cells.append(
                Cell(contender, kind, size, number, round(load, 1), rounded(figures))
            )
            told = ", ".join(f"{name} {value}" for name, value in rounded(figures).items())
            now = time.monotonic() - self._began
            print(f"[{now:5.0f} s] {kind} {size} {contender}: {told}", file=sys.stderr)

    def _tried(self, measure: Callable[[], Figures]) -> Figures:
        try:
            return measure()
        except Exception as error:  # noqa: BLE001 - the others are measured all the same
            self.failed = True
            traceback.print_exc()
            return {"note": " ".join(f"failed: {type(error).__name__}: {error}".split())[:200]}


def _variants(entrants: Sequence[Entrant]) -> list[Entrant]:
    names = {entrant.name for entrant in entrants}
    return [variant for variant in VARIANTS if variant.variant_of in names]


def main(argv: Sequence[str] | None = None) -> int:
    """One run. 0: all could be measured, whatever came of the goals; 1: something failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--quick", action="store_const", const=plan.QUICK, dest="form")
    form.add_argument("--full", action="store_const", const=plan.FULL, dest="form")
    parser.add_argument("--only", metavar="NAMES", help="of " + ",".join(e.name for e in ENTRANTS))
    parser.add_argument("--out", type=Path, default=OUT)
    for name in ("rounds", "minutes"):
        parser.add_argument(
            f"--{name}", action="append", dest="set", type=lambda text, n=name: f"{n}={text}"
        )
    parser.add_argument(
        "--set", action="append", metavar="NAME=VALUE", help="another number for the plan"
    )
    given = parser.parse_args(argv)
    names = given.only.split(",") if given.only else [entrant.name for entrant in ENTRANTS]
    if unknown := set(names) - {entrant.name for entrant in ENTRANTS}:
        parser.error(f"--only: there is no {', '.join(sorted(unknown))}")
    try:
        what = plan.changed(given.form or plan.USUAL, given.set or [])
    except ValueError as error:
        parser.error(str(error))
    stack.forget_settings()
    with tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as folder:
        run = Run(what, [e for e in ENTRANTS if e.name in names], Path(folder))
        run.all()
    given.out.mkdir(parents=True, exist_ok=True)
    run.results.write(given.out / "results.json")
    told = telling.tables(run.results) + goals.table(run.results)
    (given.out / "tables.md").write_text(told)
    telling.draw(run.results, given.out)
    print(told)
    return int(run.failed)


if __name__ == "__main__":
    sys.exit(main())
