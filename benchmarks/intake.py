"""What it costs to take a request in, and how soon it is submitted where nothing else is to do.

    .venv/bin/python benchmarks/intake.py [--rows 10000] [--finished 1000000] [--live 100000]
        [--only many single idle due]

Real processes on this machine, everything over loopback and all durable. `many` and `single` are a
producer alone with PostgreSQL; `idle` has a worker and the simulator beside it, one request at a
time; `due` fills a database with what has ended and what is live, and claims a hundred due rows.
Times are medians; CPU is told beside them, since it does not depend on who else uses the machine.
"""

import argparse
import contextlib
import io
import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
from sqlalchemy import Engine, text

from models import schedule
from models.database import make_engine
from worker import embedded, migrate, stack
from worker.producer import enqueue, enqueue_many, get
from worker.supervisor import Supervisor

ROUNDS = 5
SINGLE = 500
IDLE = 60


def main() -> None:
    """Each part, and its figures."""
    parts: dict[str, Callable[[argparse.Namespace, Engine, embedded.Servers, Path], None]] = {
        "many": many,
        "single": single,
        "idle": idle,
        "due": due,
    }
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--finished", type=int, default=1_000_000)
    parser.add_argument("--live", type=int, default=100_000)
    parser.add_argument("--only", nargs="+", choices=list(parts), default=list(parts))
    given = parser.parse_args()
    stack.forget_settings()
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors", flush=True)
    for name in given.only:
        with _database() as (engine, servers, folder):
            parts[name](given, engine, servers, folder)


@contextlib.contextmanager
def _database() -> Iterator[tuple[Engine, embedded.Servers, Path]]:
    with contextlib.ExitStack() as defer:
        folder = Path(defer.enter_context(tempfile.TemporaryDirectory(prefix="intake-")))
        servers = defer.enter_context(embedded.servers(folder))
        assert servers.database_url
        engine = make_engine(servers.database_url)
        defer.callback(engine.dispose)
        migrate.upgrade(engine)
        os.environ["SEEDANCE_DATABASE_URL"] = servers.database_url
        yield engine, servers, folder


def many(given: argparse.Namespace, *_: object) -> None:
    """Plain requests with keys, all in one call; then the same call again."""
    fresh, again, mine, theirs = [], [], [], []
    for round_ in range(ROUNDS):
        requests = [_request(f"cat {round_} {n}") for n in range(given.rows)]
        keys = [f"order-{round_}-{n}" for n in range(given.rows)]
        cpu = time.process_time(), _postgres_cpu()
        began = time.monotonic()
        enqueue_many(requests, idempotency_keys=keys)
        fresh.append(given.rows / (time.monotonic() - began))
        mine.append((time.process_time() - cpu[0]) / given.rows)
        theirs.append((_postgres_cpu() - cpu[1]) / given.rows)
        began = time.monotonic()
        enqueue_many(requests, idempotency_keys=keys)
        again.append(given.rows / (time.monotonic() - began))
    print(
        f"enqueue_many of {given.rows:,}: {_median(fresh):,.0f} rows/s, most {max(fresh):,.0f};"
        f" repeated {_median(again):,.0f} rows/s; CPU for each row: producer"
        f" {1e6 * _median(mine):.0f} µs, PostgreSQL {1e6 * _median(theirs):.0f} µs",
        flush=True,
    )


def single(*_: object) -> None:
    """One request at a time."""
    took = []
    cpu = time.process_time(), _postgres_cpu()
    for n in range(SINGLE):
        began = time.monotonic()
        enqueue(_request(f"dog {n}"), idempotency_key=f"one-{n}")
        took.append(1000 * (time.monotonic() - began))
    mine = 1000 * (time.process_time() - cpu[0]) / SINGLE
    theirs = 1000 * (_postgres_cpu() - cpu[1]) / SINGLE
    print(
        f"enqueue: median {_median(took):.2f} ms, 99th {statistics.quantiles(took, n=100)[98]:.2f}"
        f" ms; CPU: producer {mine:.2f} ms, PostgreSQL {theirs:.2f} ms",
        flush=True,
    )


_HOPS = """
    SELECT event, extract(epoch FROM at)::float8 AS at FROM generation_events
    WHERE generation_id = :id AND event IN ('accept', 'admit', 'intend', 'submit')
    ORDER BY id
"""


def idle(
    _given: argparse.Namespace, engine: Engine, servers: embedded.Servers, folder: Path
) -> None:
    """From the call of `enqueue` to the answer of the POST, by what is told in the history."""
    api = stack.free_port()
    assert servers.database_url
    assert servers.broker_url
    env = {
        "SEEDANCE_DATABASE_URL": servers.database_url,
        "SEEDANCE_BROKER_URL": servers.broker_url,
        "SEEDANCE_API_KEY": "sim-key",
        "SEEDANCE_API_BASE_URL": stack.local_url(api),
        "SEEDANCE_MAX_IN_FLIGHT": "1000",
        "SEEDANCE_LOG_LEVEL": "warning",
    }
    specs = [stack.simulator(api, "--speed", "1"), stack.worker(1, env, folder)]
    hops: dict[str, list[float]] = {}
    with io.StringIO() as output, Supervisor(specs, output=output) as supervisor:
        supervisor.wait_ready(120)
        for n in range(IDLE):
            time.sleep(0.35)  # out of step with the dispatcher's tick
            began = time.time()
            generation_id = enqueue(_request(f"bird {n}"))
            until = time.monotonic() + 60
            while get(generation_id).submitted_at is None:
                assert time.monotonic() < until, "not submitted within a minute"
                time.sleep(0.02)
            with engine.connect() as conn:
                told = conn.execute(text(_HOPS), {"id": generation_id}).all()
            times = [("called", began), *((row.event, row.at) for row in told)]
            for (_, before), (event, at) in itertools.pairwise(times):
                hops.setdefault(event, []).append(1000 * (at - before))
            hops.setdefault("all", []).append(1000 * (told[-1].at - began))
    whole = hops.pop("all")
    each = ", ".join(f"{event} {_median(took):.1f}" for event, took in hops.items())
    print(
        f"idle, enqueue to submitted: median {_median(whole):.1f} ms, most {max(whole):.1f} ms;"
        f" of it until {each} ms",
        flush=True,
    )


_FILL = """
    INSERT INTO generations (id, status, request, estimated_cost, tenant, created_at, submitted_at,
        finished_at, due_at, remote_task_id, error_code, attempt, fingerprint, lease)
    SELECT gen_random_uuid(), s.status, '{"model": "seedance-2.0", "resolution": "720p"}', 9,
        'tenant ' || n % 20, now() - n * interval '1 s', now() - n * interval '1 s',
        CASE WHEN s.ended THEN now() - n * interval '1 s' END,
        CASE WHEN NOT s.ended THEN now() + (n % 3600 - 36) * interval '1 s' END,
        CASE WHEN s.status IN ('running', 'completed') THEN 'task-' || :offset + n END,
        CASE WHEN s.status = 'failed' THEN 'X' END, 1,
        CASE WHEN s.status <> 'accepted' THEN 'mark-' || :offset + n END, 1
    FROM generate_series(1, :rows) n
    CROSS JOIN LATERAL (SELECT CASE WHEN :ended
        THEN (ARRAY['completed', 'completed', 'completed', 'failed'])[1 + n % 4]
        ELSE (ARRAY['running', 'running', 'running', 'accepted'])[1 + n % 4] END AS status,
        CAST(:ended AS boolean) AS ended) s
"""
"""One per cent of what is live is due."""


def due(given: argparse.Namespace, engine: Engine, *_: object) -> None:
    """Claim a hundred due rows, with ever more that has ended."""
    sizes = [0, given.finished // 10, given.finished]
    _fill(engine, given.live, ended=False, offset=0)
    there, first = 0, None
    for size in sizes:
        _fill(engine, size - there, ended=True, offset=10_000_000 + there)
        there = size
        took: dict[str, list[float]] = {"claim": [], "admit": []}
        for _ in range(25):
            with engine.connect() as conn:
                began = time.monotonic()
                assert len(schedule.claim_due(conn, 100, lease_seconds=60)) == 100
                took["claim"].append(1000 * (time.monotonic() - began))
                conn.rollback()
                began = time.monotonic()
                admitted = schedule.admit(
                    conn, 100, max_in_flight=2 * given.live, lease_seconds=60, ceiling=None
                )
                assert len(admitted) == 100
                took["admit"].append(1000 * (time.monotonic() - began))
                conn.rollback()
        claim, admit = _median(took["claim"]), _median(took["admit"])
        first = first or (claim, admit)
        print(
            f"{size:>9,} finished, {given.live:,} live: claim of 100 {claim:.1f} ms"
            f" ({claim / first[0]:.2f} ×), admission of 100 {admit:.1f} ms"
            f" ({admit / first[1]:.2f} ×)",
            flush=True,
        )


def _fill(engine: Engine, rows: int, *, ended: bool, offset: int) -> None:
    with engine.begin() as conn:
        conn.execute(text("SET LOCAL statement_timeout = 0"))
        conn.execute(text(_FILL), {"rows": rows, "ended": ended, "offset": offset})
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
        conn.execute(text("SET statement_timeout = 0"))
        conn.execute(text("VACUUM ANALYZE generations"))
        conn.execute(text("CHECKPOINT"))


def _request(prompt: str) -> dict[str, object]:
    return {"content": [{"type": "text", "text": prompt}]}


def _median(figures: list[float]) -> float:
    return statistics.median(figures)


def _postgres_cpu() -> float:
    """CPU seconds of the PostgreSQL that this process has started, what ended included."""
    spent = 0.0
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if "postgres" in process.name():
                times = process.cpu_times()
                spent += times.user + times.system
    return spent


if __name__ == "__main__":
    main()
