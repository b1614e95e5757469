"""What a generation costs where tasks end at once: generations a second, CPU by kind of process.

    .venv/bin/python benchmarks/throughput.py [--generations 1000] [--workers 2]

Real processes on this machine, everything over loopback: PostgreSQL, Valkey, workers and the
simulator, whose tasks end within a tenth of a second. CPU is from enqueuing to the last end.
"""

import argparse
import contextlib
import io
import os
import tempfile
import time
from collections import Counter
from pathlib import Path

import psutil
from sqlalchemy import func, select

from models.database import make_engine
from models.tables import Generation
from simulator import Admin
from worker import embedded, migrate, stack
from worker.producer import enqueue, enqueue_many
from worker.supervisor import Supervisor

SINGLE = 200


def main() -> None:
    """One run, and its figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--generations", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args()
    stack.forget_settings()
    with contextlib.ExitStack() as defer:
        folder = Path(defer.enter_context(tempfile.TemporaryDirectory(prefix="throughput-")))
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
            "SEEDANCE_MAX_IN_FLIGHT": "1000",
            "SEEDANCE_RATE_LIMIT": "5000/second",
            "SEEDANCE_POLL_MIN": "1",
            "SEEDANCE_LOG_LEVEL": "warning",
        }
        specs = [stack.worker(n, env, folder) for n in range(1, given.workers + 1)]
        supervisor = Supervisor(
            [stack.simulator(api, "--speed", "1000", "--credits", "10000000"), *specs],
            output=defer.enter_context(io.StringIO()),
        )
        defer.enter_context(supervisor)
        supervisor.wait_ready(120)
        os.environ["SEEDANCE_DATABASE_URL"] = servers.database_url
        before = _cpu()
        began = time.monotonic()
        enqueue_many(
            {"content": [{"type": "text", "text": f"cat {n}"}]} for n in range(given.generations)
        )
        stored = time.monotonic() - began
        while _left(engine):
            time.sleep(0.1)
        took = time.monotonic() - began
        spent = _cpu()
        spent.subtract(before)
        requests = {name: Admin(stack.local_url(api)).received(name) for name in ("get", "list")}
        began = time.monotonic()
        for n in range(SINGLE):
            enqueue({"content": [{"type": "text", "text": f"dog {n}"}]})
        single = (time.monotonic() - began) / SINGLE
    n = given.generations
    print(f"enqueue_many {n / stored:,.0f} rows/s; enqueue {1000 * single:.1f} ms")
    print(f"{n / took:.1f} generations/s; requests beside the submits: {requests}")
    told = ", ".join(f"{name} {1000 * s / n:.2f}" for name, s in sorted(spent.items()) if s > 0.05)
    print(f"CPU ms for each: {told}")


def _left(engine: object) -> int:
    with engine.connect() as conn:  # type: ignore[attr-defined]
        query = select(func.count()).where(Generation.finished_at.is_(None))
        return int(conn.execute(query).scalar_one())


def _cpu() -> Counter[str]:
    """CPU seconds of this process and its children, by kind."""
    spent: Counter[str] = Counter()
    me = psutil.Process()
    for process in [me, *me.children(recursive=True)]:
        with contextlib.suppress(psutil.Error):
            line = " ".join(process.cmdline())
            kind = next((k for k in ("postgres", "valkey", "simulator", "worker") if k in line), "")
            times = process.cpu_times()
            spent[kind if process != me else "producer"] += times.user + times.system
    return spent


if __name__ == "__main__":
    main()
