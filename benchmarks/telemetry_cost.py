"""What being observed costs: CPU for the same load with everything on, and with everything off.

    .venv/bin/python -m benchmarks.telemetry_cost --rate 50 --seconds 300

On: Celery's events, JSON lines at `info`, counts written and `/metrics` scraped every 15 s. Off: no
events, warnings alone, no counts, nobody scrapes. CPU is read from the processes themselves:
workers, PostgreSQL, Valkey and whoever serves the figures, of a steady load and by what was offered
in that time. Both run at the same time, each with servers, workers and a simulator of its own: a
machine whose speed changes by a fifth within minutes tells nothing about one that runs after the
other. So it has to carry twice the rate; where it does not, that is told.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import tempfile
import threading
import time
import urllib.request
from collections.abc import Collection, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

from sqlalchemy import Engine, func, select

from benchmarks.arena import Arena, arena, host, running
from models.database import make_engine
from models.lifecycle import TERMINAL
from models.tables import Generation
from worker import migrate, stack
from worker.producer import enqueue_many
from worker.supervisor import ProcessSpec

REQUEST = {"content": [{"type": "text", "text": "a cat"}]}
PARTS = ("events", "metrics", "logs")

WARM_UP = 15.0
"""Seconds of the load before it is measured."""

EVERY = 15.0
"""Seconds between two scrapes, as `ops/prometheus.yml` has it."""

READY = 120.0
"""Seconds that one side waits until the other is up as well."""

SLACK = 10.0
"""As many seconds of the load more may be on their way at the end than at the beginning: if there
are more, the machine had no room for it."""


def settings(here: Arena, args: argparse.Namespace, *, on: bool) -> dict[str, str]:
    """The environment of all processes of the service."""
    figures, lines = (on and part in args.parts for part in ("metrics", "logs"))
    return {
        **here.environment(),
        "SEEDANCE_RATE_LIMIT": "5000/second",
        "SEEDANCE_MAX_IN_FLIGHT": "5000",
        "SEEDANCE_CHECK_BALANCE": "false",
        "SEEDANCE_METRICS_EVERY": "15" if figures else "0",
        "SEEDANCE_LOG_FORMAT": "json" if lines else "console",
        "SEEDANCE_LOG_LEVEL": "info" if lines else "warning",
    }


def processes(
    here: Arena, env: dict[str, str], port: int, workers: int, parts: Collection[str]
) -> list[ProcessSpec]:
    """Workers and, where figures are wanted, who serves them."""
    options = () if "events" in parts else ("--no-events",)
    specs = [stack.worker(n, env, here.folder, *options) for n in range(1, workers + 1)]
    if "metrics" in parts:
        serving = stack.seedance("metrics", "--port", str(port), "--log-level", "warning")
        ready = stack.answers(f"{stack.local_url(port)}/healthz")
        specs.append(ProcessSpec("metrics", serving, env=env, ready=ready))
    return specs


def side(folder: Path, args: argparse.Namespace, together: Barrier, *, on: bool) -> dict[str, Any]:
    """One load; CPU milliseconds per generation, by kind of process."""
    stack.forget_settings()
    speed = ("--speed", str(args.speed))
    with contextlib.ExitStack() as defer:
        servers = defer.enter_context(host(folder))
        here = defer.enter_context(arena(servers, *speed))
        env = settings(here, args, on=on)
        engine = make_engine(here.database_url)
        defer.callback(engine.dispose)
        migrate.upgrade(engine)
        port = stack.free_port()
        parts = args.parts if on else ()
        specs = processes(here, env, port, args.workers, parts)
        defer.enter_context(running(here, "contender", specs))
        os.environ.update(env)
        if "metrics" in parts:
            defer.enter_context(scraping(f"{stack.local_url(port)}/metrics"))
        together.wait(READY)
        loading = threading.Thread(
            target=load, args=(args.rate, WARM_UP + args.seconds), daemon=True
        )
        loading.start()
        # Of a steady load: what ticks by itself costs the same each second, on or off.
        time.sleep(WARM_UP)
        before, first, began = used(here), ended(engine), time.monotonic()
        time.sleep(args.seconds)
        after, last, passed = used(here), ended(engine), time.monotonic() - began
        loading.join()
        lines = (here.folder / "contender.log").read_bytes().count(b"\n")
    # By what was offered, the same for both: what ends in a given time comes in bursts.
    each = {name: 1000 * (after[name] - before[name]) / (args.rate * passed) for name in after}
    return {
        "on": on,
        "offered_per_second": args.rate,
        "ended_per_second": round((last - first) / passed, 1),
        "carried": last - first > args.rate * (passed - SLACK),
        "ms_per_generation": {name: round(ms, 3) for name, ms in each.items()},
        "together_ms": round(sum(each.values()), 3),
        "log_lines": lines,
    }


def both(folder: Path, args: argparse.Namespace) -> list[dict[str, Any]]:
    """One side with everything off and one with everything on, at the same time."""
    spawn = multiprocessing.get_context("spawn")
    with spawn.Manager() as manager, ProcessPoolExecutor(2, mp_context=spawn) as pool:
        together = manager.Barrier(2)
        sides = [
            pool.submit(side, folder / name, args, together, on=on)
            for name, on in (("off", False), ("on", True))
        ]
        return [future.result() for future in sides]


def used(here: Arena) -> dict[str, float]:
    """Seconds of CPU so far; what serves the figures is among the service's own processes."""
    found = here.cpu()
    return {name: found[name] for name in ("contender", "postgres", "valkey")}


@contextlib.contextmanager
def scraping(url: str) -> Iterator[None]:
    """Ask for the figures as Prometheus does. Who asks is not counted, who answers is."""
    stop = threading.Event()

    def scrape() -> None:
        while not stop.wait(EVERY):
            with urllib.request.urlopen(url, timeout=30) as answer:
                answer.read()

    thread = threading.Thread(target=scrape, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def load(rate: float, seconds: float) -> None:
    """Enqueue so many a second."""
    sent, began = 0, time.monotonic()
    while (passed := time.monotonic() - began) < seconds:
        wanted = int(passed * rate) - sent
        if wanted > 0:
            enqueue_many([REQUEST] * wanted)
            sent += wanted
        time.sleep(0.2)


def ended(engine: Engine) -> int:
    """How many have ended."""
    with engine.connect() as conn:
        return conn.execute(
            select(func.count()).where(Generation.status.in_(sorted(TERMINAL)))
        ).scalar_one()


def compared(off: dict[str, Any], on: dict[str, Any]) -> list[str]:
    """What being observed adds, by kind of process and together."""
    pairs = {
        name: (ms, on["ms_per_generation"][name]) for name, ms in off["ms_per_generation"].items()
    }
    pairs["together"] = off["together_ms"], on["together_ms"]
    lines = [
        f"{name}: {without:.2f} ms off, {with_it:.2f} ms on: {100 * (with_it / without - 1):+.1f} %"
        for name, (without, with_it) in pairs.items()
    ]
    if not all(result["carried"] for result in (off, on)):
        lines.append("the machine did not carry both, so this compares nothing: lower --rate")
    return lines


def main() -> None:
    """Alternating rounds, and what they say."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rate", type=float, default=50, help="generations a second")
    parser.add_argument("--seconds", type=float, default=300, help="of each round, measured")
    parser.add_argument("--workers", type=int, default=2, help="of each side")
    parser.add_argument("--speed", type=float, default=20, help="simulated seconds per second")
    parser.add_argument(
        "--parts", nargs="*", choices=PARTS, default=PARTS, help="what on means; all of them"
    )
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="telemetry-") as folder:
        results = both(Path(folder), args)
    for result in results:
        print(json.dumps(result))
    print("\n".join(compared(*results)))


if __name__ == "__main__":
    main()
