"""What following costs, by the task list and by a GET for each: requests, lag, CPU, memory.

    .venv/bin/python benchmarks/following.py [--generations 1000] [--seconds 60 120]

Real processes on this machine, everything over loopback: PostgreSQL, Valkey, two workers and the
simulator, whose tasks take 60 to 120 real seconds each, all at once. The lag is `finished_at` less
the time at which the simulator ended the task. CPU is of the two workers, from the last submission
to the last end.
"""

import argparse
import contextlib
import io
import os
import random
import statistics
import tempfile
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import psutil
from sqlalchemy import Engine, select, text

from models.database import make_engine
from models.lifecycle import Status
from models.tables import Generation
from simulator import Admin
from worker import embedded, migrate, stack
from worker.producer import enqueue_many
from worker.supervisor import Supervisor

WORKERS = 2


@dataclass(frozen=True)
class Figures:
    """One run."""

    requests: float
    """To the provider for each generation, submits included."""
    median: float
    worst: float
    """The lag's 99th percentile, in seconds."""
    cpu: float
    """Milliseconds of the workers for each generation, after its submission."""
    memory: float
    """Megabytes of one worker at its largest."""


def run(*, by_list: bool, generations: int, seconds: tuple[float, float]) -> Figures:
    """Enqueue all at once, and follow them to their end."""
    with contextlib.ExitStack() as defer:
        folder = Path(defer.enter_context(tempfile.TemporaryDirectory(prefix="following-")))
        servers = defer.enter_context(embedded.servers(folder))
        assert servers.database_url
        assert servers.broker_url
        engine = make_engine(servers.database_url)
        defer.callback(engine.dispose)
        migrate.upgrade(engine)
        api = stack.free_port()
        env = {
            "SEEDANCE_DATABASE_URL": servers.database_url,
            "SEEDANCE_BROKER_URL": servers.broker_url,
            "SEEDANCE_API_KEY": "sim-key",
            "SEEDANCE_API_BASE_URL": stack.local_url(api),
            "SEEDANCE_MAX_IN_FLIGHT": str(generations),
            "SEEDANCE_RATE_LIMIT": "1000/second",
            "SEEDANCE_LOG_LEVEL": "warning",
        } | ({} if by_list else {"SEEDANCE_OBSERVE_FROM": "0"})
        workers_specs = [stack.worker(n, env, folder) for n in range(1, WORKERS + 1)]
        supervisor = Supervisor(
            [
                stack.simulator(api, "--speed", "1", "--credits", "10000000"),
                *workers_specs,
            ],
            output=defer.enter_context(io.StringIO()),
        )
        defer.enter_context(supervisor)
        supervisor.wait_ready(120)
        os.environ["SEEDANCE_DATABASE_URL"] = servers.database_url
        rng = random.Random(1)
        enqueue_many(
            {
                "content": [
                    {"type": "text", "text": f"cat {n} [sim: seconds={rng.uniform(*seconds):.3f}]"}
                ]
            }
            for n in range(generations)
        )
        pids = [supervisor.pid(spec.name) for spec in workers_specs]
        workers = [psutil.Process(pid) for pid in pids if pid is not None]
        _wait(engine, Generation.submitted_at.is_(None), 900)
        before = _cpu(workers)
        memory = 0.0
        while _count(engine, Generation.finished_at.is_(None)):
            memory = max(memory, *(w.memory_info().rss / 1e6 for w in workers))
            time.sleep(1)
        cpu = _cpu(workers) - before
        admin = Admin(stack.local_url(api))
        lags = _lags(engine, admin)
        endpoints = ("submit", "get", "list")
        received = {name: admin.received(name) for name in endpoints}
        print(received, flush=True)
        cut = statistics.quantiles(lags, n=100)
        return Figures(
            sum(received.values()) / generations,
            statistics.median(lags),
            cut[98],
            1000 * cpu / generations,
            memory,
        )


def _cpu(processes: list[psutil.Process]) -> float:
    return sum(p.cpu_times().user + p.cpu_times().system for p in processes)


def _count(engine: Engine, *where: object) -> int:
    with engine.connect() as conn:
        return len(conn.execute(select(Generation.id).where(*where).limit(1)).all())  # type: ignore[arg-type]


def _wait(engine: Engine, pending: object, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    while _count(engine, pending):
        assert time.monotonic() < deadline, "not all were submitted in time"
        time.sleep(0.5)


def _lags(engine: Engine, admin: Admin) -> list[float]:
    ended = {task["task_id"]: task["ended_at"] for task in admin.tasks()}
    with engine.connect() as conn:
        rows = conn.execute(
            select(Generation.remote_task_id, Generation.finished_at, Generation.status)
        ).all()
        here = datetime.now().astimezone()
        skew = conn.execute(text("SELECT clock_timestamp()")).scalar_one() - here
    assert all(row.status == Status.COMPLETED for row in rows)
    assert abs(skew.total_seconds()) < 1
    return [row.finished_at.timestamp() - ended[row.remote_task_id] for row in rows]


def main() -> None:
    """Both ways, one after the other, with their ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--generations", type=int, default=1000)
    parser.add_argument("--seconds", type=float, nargs=2, default=(60.0, 120.0))
    given = parser.parse_args()
    stack.forget_settings()
    figures = {}
    for by_list in (True, False):
        one = run(by_list=by_list, generations=given.generations, seconds=tuple(given.seconds))
        figures[by_list] = one
        print(
            f"{'task list' if by_list else 'GET each ':9}: {one.requests:.2f} requests each,"
            f" lag median {one.median:.2f} s, 99th {one.worst:.2f} s,"
            f" CPU {one.cpu:.1f} ms each, worker {one.memory:.0f} MB",
            flush=True,
        )
    a, b = figures[True], figures[False]
    print(f"ratios: requests {b.requests / a.requests:.2f}, CPU {b.cpu / a.cpu:.2f}")


if __name__ == "__main__":
    main()
