"""What logs and metrics cost: CPU of workers and PostgreSQL for the same load, with all on and off.

    python benchmarks/telemetry_cost.py --rate 50 --seconds 300 --rounds 2

On: JSON lines at `info`, counts written every 15 s, a scrape every 15 s. Off: lines at `error`, no
counts, no scrapes. Celery's events are on in both. CPU is read from the processes themselves, and
rounds alternate; all the same it takes a machine with room to spare for the rate.
"""

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psutil
from sqlalchemy import Engine, create_engine, func, select

import simulator
from models.base import table_of
from models.lifecycle import TERMINAL
from models.tables import Generation
from worker import migrate, stack
from worker.embedded_postgres import EmbeddedPostgres
from worker.embedded_valkey import EmbeddedValkey
from worker.metrics import scrape
from worker.producer import enqueue_many
from worker.settings import load_settings

REQUEST = {"content": [{"type": "text", "text": "a cat"}]}
WARM_UP = 15.0
"""Seconds of the load before it is measured."""


def cpu(processes: list[psutil.Process]) -> float:
    """Seconds of CPU that they and what they started have used."""
    total = 0.0
    for parent in processes:
        for process in [parent, *parent.children(recursive=True)]:
            try:
                times = process.cpu_times()
            except psutil.Error:
                continue
            total += times.user + times.system + times.children_user + times.children_system
    return total


def run(folder: Path, args: argparse.Namespace, *, on: bool) -> dict[str, Any]:
    """One load; CPU milliseconds per generation."""
    speed = {"speed": 20.0, "random_seed": 1}
    with (
        EmbeddedPostgres(folder / "pg", durable=False) as postgres,
        EmbeddedValkey(folder / "valkey", durable=False) as valkey,
        simulator.serve(simulator.Config(**speed)) as provider,
    ):
        url = postgres.create_database("bench")
        env = {
            "SEEDANCE_DATABASE_URL": url,
            "SEEDANCE_BROKER_URL": valkey.url(0),
            "SEEDANCE_API_KEY": provider.api_key,
            "SEEDANCE_API_BASE_URL": provider.url,
            "SEEDANCE_RATE_LIMIT": "2000/second",
            "SEEDANCE_MAX_IN_FLIGHT": "5000",
            "SEEDANCE_CHECK_BALANCE": "false",
            "SEEDANCE_POLL_MIN": "5",
            "SEEDANCE_METRICS_EVERY": "15" if on else "0",
            "SEEDANCE_LOG_FORMAT": "json",
            "SEEDANCE_LOG_LEVEL": "info" if on else "error",
        }
        os.environ.update(env)
        engine = create_engine(url)
        migrate.upgrade(engine)
        with (folder / "worker.log").open("wb") as log:
            worker = psutil.Popen(
                stack.seedance("worker", "-c", "16"),
                env={**os.environ, **env},
                stdout=log,
                stderr=subprocess.STDOUT,
            )
            server = psutil.Process(postgres_pid(folder / "pg"))
            stop = threading.Event()
            if on:
                settings = load_settings()
                threading.Thread(
                    target=lambda: [
                        scrape.collect(engine, settings) for _ in iter(lambda: stop.wait(15), True)
                    ],
                    daemon=True,
                ).start()
            loading = threading.Thread(
                target=load, args=(args.rate, WARM_UP + args.seconds), daemon=True
            )
            loading.start()
            # Of a steady load: what ticks by itself costs the same each second, on or off.
            time.sleep(WARM_UP)
            before = cpu([worker]), cpu([server])
            first = ended(engine)
            time.sleep(args.seconds)
            after = cpu([worker]), cpu([server])
            done = ended(engine) - first
            loading.join()
            stop.set()
            worker.terminate()
            worker.wait(60)
        engine.dispose()
        lines = (folder / "worker.log").read_bytes().count(b"\n")
    # By what it got done: where that is much less than was asked, the machine had no room.
    mine, theirs = (1000 * (b - a) / max(1, done) for a, b in zip(before, after, strict=True))
    return {"on": on, "ended": done, "worker_ms": mine, "postgres_ms": theirs, "lines": lines}


def postgres_pid(folder: Path) -> int:
    file = next(folder.rglob("postmaster.pid"))
    return int(file.read_text().split()[0])


def load(rate: int, seconds: float) -> None:
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
    g = table_of(Generation).c
    with engine.connect() as conn:
        return conn.execute(
            select(func.count()).where(g.status.in_([str(s) for s in TERMINAL]))
        ).scalar_one()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rate", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--rounds", type=int, default=2)
    args = parser.parse_args()
    results = []
    for number in range(args.rounds):
        for on in (False, True) if number % 2 == 0 else (True, False):
            with tempfile.TemporaryDirectory() as folder:
                results.append(run(Path(folder), args, on=on))
                print(json.dumps(results[-1]), flush=True)
    for part in ("worker_ms", "postgres_ms"):
        off, with_ = (
            statistics.mean(r[part] for r in results if r["on"] is on) for on in (False, True)
        )
        print(f"{part}: {off:.2f} off, {with_:.2f} on: {100 * (with_ / off - 1):+.1f} %")
    off, with_ = (
        statistics.mean(r["worker_ms"] + r["postgres_ms"] for r in results if r["on"] is on)
        for on in (False, True)
    )
    print(f"together: {off:.2f} off, {with_:.2f} on: {100 * (with_ / off - 1):+.1f} %")


if __name__ == "__main__":
    main()
