"""How long after the provider's completion a generation is finished: callbacks beside polling.

    .venv/bin/python benchmarks/callback_lag.py [--generations 200] [--seconds 20 60]

Real processes on this machine, everything over loopback: PostgreSQL, Valkey, two workers, the
gateway and the simulator, whose tasks take 20 to 60 real seconds each, all at once. Polling is as
by default: from 5 s on, at growing intervals of up to 30 s. The lag is `finished_at` less the time
at which the simulator ended the task, by the same machine's clock.
"""

import argparse
import contextlib
import io
import os
import random
import statistics
import tempfile
import time
import uuid
from datetime import datetime
from pathlib import Path

from sqlalchemy import Engine, select, text

from models.database import make_engine
from models.tables import Generation
from simulator import Admin
from worker import embedded, migrate, stack
from worker.producer import enqueue_many, wait_many
from worker.supervisor import Supervisor

WORKERS = 2


def run(*, callbacks: bool, generations: int, seconds: tuple[float, float]) -> list[float]:
    """The lags of one run, in seconds, in order."""
    with contextlib.ExitStack() as defer:
        folder = Path(defer.enter_context(tempfile.TemporaryDirectory(prefix="lag-")))
        servers = defer.enter_context(embedded.servers(folder))
        assert servers.database_url
        assert servers.broker_url
        engine = make_engine(servers.database_url)
        defer.callback(engine.dispose)
        migrate.upgrade(engine)
        api, gateway = stack.free_port(), stack.free_port()
        env = _environment(servers.database_url, servers.broker_url, api, generations)
        if callbacks:
            env["SEEDANCE_PUBLIC_URL"] = stack.local_url(gateway)
        supervisor = Supervisor(
            [
                stack.simulator(api, "--speed", "1"),
                *(stack.worker(n, env, folder) for n in range(1, WORKERS + 1)),
                stack.gateway(gateway, env),
            ],
            output=defer.enter_context(io.StringIO()),
        )
        defer.enter_context(supervisor)
        supervisor.wait_ready(120)
        os.environ["SEEDANCE_DATABASE_URL"] = servers.database_url
        rng = random.Random(1)
        ids = enqueue_many(
            {
                "content": [
                    {"type": "text", "text": f"cat {n} [sim: seconds={rng.uniform(*seconds)}]"}
                ]
            }
            for n in range(generations)
        )
        wait_many(ids, timeout=600)
        return _lags(engine, ids, Admin(stack.local_url(api)))


def _environment(database_url: str, broker_url: str, api: int, generations: int) -> dict[str, str]:
    return {
        "SEEDANCE_DATABASE_URL": database_url,
        "SEEDANCE_BROKER_URL": broker_url,
        "SEEDANCE_API_KEY": "sim-key",
        "SEEDANCE_API_BASE_URL": stack.local_url(api),
        "SEEDANCE_MAX_IN_FLIGHT": str(generations),
        "SEEDANCE_RATE_LIMIT": "100/second",
    }


def _lags(engine: Engine, ids: list[uuid.UUID], admin: Admin) -> list[float]:
    ended = {task["task_id"]: task["ended_at"] for task in admin.tasks()}
    with engine.connect() as conn:
        rows = conn.execute(
            select(Generation.remote_task_id, Generation.finished_at, Generation.status).where(
                Generation.id.in_(ids)
            )
        ).all()
        skew = (
            conn.execute(text("SELECT clock_timestamp()")).scalar_one()
            - datetime.now().astimezone()
        )
    assert all(row.status == "completed" for row in rows)
    assert abs(skew.total_seconds()) < 1
    return sorted(row.finished_at.timestamp() - ended[row.remote_task_id] for row in rows)


def main() -> None:
    """Both runs, and their figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--generations", type=int, default=200)
    parser.add_argument("--seconds", type=float, nargs=2, default=(20.0, 60.0))
    given = parser.parse_args()
    stack.forget_settings()
    for callbacks in (True, False):
        began = time.monotonic()
        lags = run(callbacks=callbacks, generations=given.generations, seconds=tuple(given.seconds))
        cut = statistics.quantiles(lags, n=100)
        print(
            f"{'callbacks' if callbacks else 'polling  '}: {len(lags)} generations,"
            f" median {statistics.median(lags):.2f} s, 99th {cut[98]:.2f} s,"
            f" most {lags[-1]:.2f} s (run {time.monotonic() - began:.0f} s)",
            flush=True,
        )


if __name__ == "__main__":
    main()
