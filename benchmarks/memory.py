"""What a worker takes of memory, and a pass over the task list of time, with so many in flight.

    .venv/bin/python benchmarks/memory.py [--steps 0 1000 10000 100000] [--latency 0.3]

Real processes on this machine, everything over loopback: PostgreSQL, Valkey, one worker and the
simulator. The tasks are laid down in the simulator and their generations in the database, all of
them running and none about to end; at each step the worker follows them by the task list for some
passes, and reconciles once. Linux only: the peak is the kernel's (`VmHWM`).
"""

import argparse
import contextlib
import io
import tempfile
import time
import uuid
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import psutil
from sqlalchemy import Engine, func, insert, select

from models.base import table_of
from models.database import make_engine
from models.lifecycle import Status
from models.metrics import pulses
from models.observing.table import Observer
from models.tables import Generation
from simulator import Admin
from worker import embedded, migrate, stack
from worker.broker_access import connection
from worker.supervisor import Supervisor

REQUEST = {
    "model": "seedance-2.0",
    "content": [{"type": "text", "text": "a task that goes on"}],
    "resolution": "720p",
    "ratio": "16:9",
    "duration": 5,
    "generate_audio": True,
    "seed": 1,
    "watermark": False,
    "return_last_frame": False,
}
_o = table_of(Observer).c


@dataclass(frozen=True)
class Step:
    """With so many in flight."""

    in_flight: int
    resident: float
    """Megabytes of the worker, after the passes."""
    peak: float
    """Megabytes at most, reconcile included."""
    seconds: float
    """For a pass over the list, the slowest of them."""
    cpu: float
    """CPU seconds of the worker for a pass."""
    pages: int
    reconcile: float
    """Seconds that a reconcile took."""
    reconcile_cpu: float
    """CPU seconds of the worker for it."""


class Bench:
    """One worker against its servers."""

    def __init__(
        self, engine: Engine, admin: Admin, worker: psutil.Process, broker: str, *, passes: int
    ) -> None:
        self._passes = passes
        self._engine = engine
        self._admin = admin
        self._worker = worker
        self._broker = broker
        self._in_flight = 0

    def step(self, in_flight: int) -> Step:
        """Lay down what is missing, follow for some passes, reconcile."""
        if self._in_flight:
            # Between two passes: one that is under way would miss what comes in the meantime.
            self._wait_for_pass(self._begun_after(self._ended()))
        self._worker.suspend()
        self._lay_down(in_flight - self._in_flight)
        self._in_flight = in_flight
        self._worker.resume()
        Path(f"/proc/{self._worker.pid}/clear_refs").write_text("5")  # the peak begins anew
        pages, slowest, cpu = 0, 0.0, 0.0
        for _ in range(self._passes if in_flight else 0):
            began, spent = self._begun_after(self._ended()), self._cpu()
            pages = self._wait_for_pass(began)
            slowest = max(slowest, self._ended() - began)
            cpu = self._cpu() - spent
        if not in_flight:
            time.sleep(20)  # it has come up, and looked around
        resident = self._worker.memory_info().rss / 1e6
        began, spent = time.monotonic(), self._cpu()
        self._reconcile()
        took = time.monotonic() - began
        return Step(
            *(in_flight, resident, self._peak(), slowest, cpu, pages),
            *(took, self._cpu() - spent),
        )

    def _lay_down(self, number: int) -> None:
        if number <= 0:
            return
        ids = self._admin.inject(count=number, seconds=1e6, age=60, status="processing")
        row = {
            "status": str(Status.RUNNING),
            "request": REQUEST,
            "estimated_cost": 9,
            "attempt": 1,
            "lease": 3,
            "polls": 1,
            "remote_status": "processing",
        }
        with self._engine.begin() as conn:
            for start in range(0, len(ids), 5_000):
                conn.execute(
                    insert(table_of(Generation)).values(
                        due_at=func.now(), submitted_at=func.now() - timedelta(seconds=60)
                    ),
                    [
                        {**row, "id": uuid.uuid4(), "remote_task_id": task, "fingerprint": task}
                        for task in ids[start : start + 5_000]
                    ],
                )

    def _ended(self) -> float:
        with self._engine.connect() as conn:
            at = conn.execute(select(func.extract("epoch", func.max(_o.ended_at)))).scalar_one()
        return float(at or 0)

    def _begun_after(self, ended: float) -> float:
        """When the next pass began."""
        while True:
            with self._engine.connect() as conn:
                at = conn.execute(select(func.extract("epoch", func.max(_o.began_at)))).scalar()
            if at is not None and float(at) > ended:
                return float(at)
            time.sleep(0.02)

    def _wait_for_pass(self, began: float) -> int:
        while self._ended() < began:
            time.sleep(0.05)
        with self._engine.connect() as conn:
            row = conn.execute(select(_o.pages, _o.sought, _o.missed)).one()
        assert (row.sought, row.missed) == (self._in_flight, 0), (row, self._in_flight)
        return int(row.pages)

    def _reconcile(self) -> None:
        def told() -> object:
            with self._engine.connect() as conn:
                return pulses.last(conn).get("reconcile")

        before = told()
        with connection(self._broker, patience=5) as made, made.Producer() as producer:
            producer.publish(
                [[], {}, {}],
                routing_key="seedance.upkeep",
                headers={"task": "seedance.reconcile", "id": str(uuid.uuid4()), "lang": "py"},
                serializer="json",
            )
        while told() == before:
            time.sleep(0.05)

    def _cpu(self) -> float:
        times = self._worker.cpu_times()
        return float(times.user + times.system)

    def _peak(self) -> float:
        for line in Path(f"/proc/{self._worker.pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e6
        raise AssertionError("this kernel tells no peak")


def main() -> None:
    """All steps, each told when it is done."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, nargs="+", default=[0, 1_000, 10_000, 100_000])
    parser.add_argument("--passes", type=int, default=3, help="at each step")
    parser.add_argument("--latency", type=float, default=0.0, help="of the provider, in seconds")
    parser.add_argument("--rate", default="1000/second", help="SEEDANCE_RATE_LIMIT")
    given = parser.parse_args()
    stack.forget_settings()
    with contextlib.ExitStack() as defer:
        folder = Path(defer.enter_context(tempfile.TemporaryDirectory(prefix="memory-")))
        servers = defer.enter_context(embedded.servers(folder))
        assert servers.database_url
        engine = make_engine(servers.database_url)
        defer.callback(engine.dispose)
        migrate.upgrade(engine)
        api = stack.free_port()
        env = {
            "SEEDANCE_DATABASE_URL": servers.database_url,
            "SEEDANCE_BROKER_URL": servers.broker_url,
            "SEEDANCE_API_KEY": "sim-key",
            "SEEDANCE_API_BASE_URL": stack.local_url(api),
            "SEEDANCE_MAX_IN_FLIGHT": "200000",
            "SEEDANCE_RATE_LIMIT": given.rate,
            "SEEDANCE_STALLED_AFTER": "86400",
            "SEEDANCE_LOG_LEVEL": "warning",
        }
        spec = stack.worker(1, env, folder)
        supervisor = Supervisor(
            [stack.simulator(api, "--speed", "1", "--credits", "10000000"), spec],
            output=defer.enter_context(io.StringIO()),
        )
        defer.enter_context(supervisor)
        supervisor.wait_ready(120)
        pid = supervisor.pid(spec.name)
        assert pid is not None
        admin = Admin(stack.local_url(api))
        if given.latency:
            admin.fault("list", "delay_before", probability=1.0, seconds=given.latency)
        bench = Bench(engine, admin, psutil.Process(pid), servers.broker_url, passes=given.passes)
        first: float | None = None
        for in_flight in given.steps:
            step = bench.step(in_flight)
            first = step.resident if first is None else first
            print(
                f"{step.in_flight:7,d} in flight: {step.resident:.0f} MB"
                f" ({step.resident - first:+.0f}), peak {step.peak:.0f} MB;"
                f" a pass {step.seconds:.1f} s, {step.pages} pages, CPU {step.cpu:.2f} s;"
                f" a reconcile {step.reconcile:.1f} s, CPU {step.reconcile_cpu:.2f} s",
                flush=True,
            )


if __name__ == "__main__":
    main()
