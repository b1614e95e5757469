"""A chaos run from its plan to its report: `python -m tests.chaos.run --seed 7 -n 300`.

Real workers and beats, PostgreSQL with its safety on, Valkey with its append-only file, the
simulator. First a calm stage, then partial faults only, then every fault and strike; then none, and
everything must come to rest; then the checks.
"""

import argparse
import heapq
import json
import logging
import random
import shutil
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from celery import Celery
from sqlalchemy import Engine, text

import simulator
from models import intake, schedule, transitions
from models.database import make_engine
from models.lifecycle import TERMINAL, Status
from tests.chaos import database_faults, invariants, operator, records, telling
from tests.chaos.broker_tap import BrokerTap
from tests.chaos.forkserver import ROOT, ForkServer
from tests.chaos.plan import TIMES, Order, Plan, deadline_of, draw
from tests.chaos.processes import Fleet
from tests.chaos.strikes import ENOUGH_CREDITS, Journal, Strikes
from tests.receiver import receiving, webhook_settings
from worker import migrate
from worker import stack as servers
from worker.embedded_postgres import EmbeddedPostgres
from worker.embedded_valkey import EmbeddedValkey
from worker.requests import new_generation

API_KEY = "sk-chaos-5f0c27d1a9"
PATIENCE = 600.0
"""Seconds after the last fault in which every row must have ended. Most of it is for equal requests
with equal seeds: they go one after the other, behind the least urgent of them, and one whose answer
was lost takes a minute until an operator is asked."""
ASK_AGAIN = 6.0
"""Seconds after which a producer sends a message again whose row has not appeared."""
SETTLED = 5.0
"""Seconds after the last row's end in which a late task would still appear (K)."""
_UNTOLD = "SELECT count(*) FROM notices WHERE status = 'pending'"


@dataclass
class Outcome:
    """What a run came to."""

    plan: Plan
    records: records.Records
    wrong: dict[str, list[invariants.Broken]]
    report: telling.Report

    def story(self) -> str:
        """What broke and how it came about."""
        return telling.explain(self.plan, self.records, self.wrong)


def run(plan: Plan, folder: Path, *, patience: float = PATIENCE) -> Outcome:
    """Carry a plan out. Everything that it starts has ended when it returns."""
    began = time.monotonic()
    with ExitStack() as stack:
        chaos = _Run(plan, folder, stack)
        chaos.through_faults()
        calm_at = time.time()
        rested = chaos.until_rest(patience)
        left = chaos.remains()
        wrong = invariants.broken(left)
        report = telling.report(
            plan,
            left,
            wrong,
            died_at=chaos.strikes.died_at(),
            seconds_to_rest=_since_last_fault(left, calm_at, rested),
            seconds=time.monotonic() - began,
        )
    return Outcome(plan, left, wrong, report)


def _since_last_fault(left: records.Records, calm_at: float, rested: float | None) -> float | None:
    """Some requests carry their fault along, and meet it after everything else is mended."""
    if rested is None:
        return None
    met = [request["time"] for request in left.requests if request["fault"]]
    return max(0.0, rested - max(calm_at, *met, 0.0))


class _Run:
    """The servers, the fleet and the producers of one run."""

    def __init__(self, plan: Plan, folder: Path, stack: ExitStack) -> None:
        self.plan = plan
        self.folder = folder
        self.journal = Journal()
        self.ids: dict[int, uuid.UUID] = {}
        self.archive = folder / "archive"
        self.archive.mkdir()
        postgres = stack.enter_context(EmbeddedPostgres(folder / "servers", durable=True))
        valkey = stack.enter_context(EmbeddedValkey(folder / "servers", durable=True))
        self.sim = stack.enter_context(
            simulator.serve(
                simulator.Config(
                    api_keys=[API_KEY],
                    credits=ENOUGH_CREDITS,
                    speed=100,
                    random_seed=plan.seed,
                    **plan.provider,
                )
            )
        )
        self.url = postgres.create_database("chaos")
        self.engine: Engine = make_engine(self.url, pool_size=4, application="chaos-harness")
        stack.callback(self.engine.dispose)
        migrate.upgrade(self.engine)
        self.receiver = stack.enter_context(receiving())
        env = {
            **TIMES,
            **webhook_settings(self.receiver),
            "SEEDANCE_DATABASE_URL": self.url,
            "SEEDANCE_BROKER_URL": valkey.url(),
            "SEEDANCE_API_KEY": API_KEY,
            "SEEDANCE_API_BASE_URL": self.sim.url,
            "SEEDANCE_MEDIA_ROOTS": str(_media(folder, plan)),
            "SEEDANCE_ARCHIVE_URL": self.archive.as_uri(),
        }
        self.gateway_port = servers.free_port()
        if plan.callbacks:
            env["SEEDANCE_PUBLIC_URL"] = f"http://127.0.0.1:{self.gateway_port}"
        tap = stack.enter_context(BrokerTap(valkey.url()))
        server = ForkServer()
        stack.callback(server.close)
        self.fleet = Fleet(server, folder, env, self.journal.tell)
        stack.callback(self.fleet.stop)
        self._start_fleet()
        self.strikes = Strikes(
            random.Random(plan.seed),
            self.fleet,
            postgres,
            valkey,
            self.sim,
            tap,
            self.url,
            plan.provider,
            self.journal,
            self.receiver,
        )
        self.app = Celery("producer", broker=valkey.url())
        self.app.conf.broker_transport_options = {"socket_timeout": 3, "socket_connect_timeout": 2}
        stack.callback(self.app.close)

    def _start_fleet(self) -> None:
        for place, pool in enumerate(self.plan.pools):
            env = {}
            if place == 0 and self.plan.clock_shift:
                env["CHAOS_CLOCK_SHIFT"] = str(self.plan.clock_shift)
            if place == 1 and self.plan.serializable:
                env["SEEDANCE_DATABASE_URL"] = database_faults.add_serializable_user(self.url)
            self.fleet.add_worker(pool=pool, debug=self.plan.debug, **env)
        for _ in range(self.plan.beats):
            self.fleet.add_beat()
        if self.plan.callbacks:
            self.fleet.add_gateway(self.gateway_port)

    # --- while faults last ----------------------------------------------------------------------

    def through_faults(self) -> None:
        """Producers ask and cancel, acts are carried out, each at its time; then calm."""
        self.fleet.wait_ready(60.0)
        start = time.monotonic()
        producer = _Agenda(start, self.journal)
        for order in self.plan.orders:
            producer.add(order.at, self._ask(order, producer))
        with producer:
            for act in self.plan.acts:
                time.sleep(max(0.0, start + act.at - time.monotonic()))
                self.strikes.carry_out(act)
            time.sleep(max(0.0, start + self.plan.faults_end - time.monotonic()))
            self.strikes.calm()
            producer.finish(60.0)

    def _ask(self, order: Order, agenda: "_Agenda") -> Callable[[], None]:
        generation_id = uuid.uuid4()
        webhook = self.receiver.url(f"/hook?order={order.number}")
        notify = None if order.notify is None else {"webhook": webhook, "on": order.notify}

        def by_row() -> None:
            lasts = deadline_of(order)
            new = new_generation(
                order.request,
                generation_id=generation_id,
                tenant=order.tenant,
                priority=order.priority,
                notify=notify,
                private_webhooks=True,
                deadline=None if lasts is None else datetime.now(UTC) + lasts,
            )
            with self.engine.begin() as conn:
                intake.accept(conn, new)
            accepted()

        def by_message() -> None:
            # A producer that wants to be sure sends again, under the same id, until it sees it.
            if not self._exists(generation_id):
                kwargs = {"request": order.request, "tenant": order.tenant, "notify": notify}
                self.app.send_task(
                    "seedance.generate",
                    task_id=str(generation_id),
                    kwargs={**kwargs, "priority": order.priority},
                    retry=False,
                )
                agenda.add_in(ASK_AGAIN, by_message)
                return
            accepted()

        def accepted() -> None:
            self.ids[order.number] = generation_id
            if order.cancel_after is not None:
                agenda.add_in(order.cancel_after, lambda: self._cancel(generation_id))

        return by_message if order.by_celery else by_row

    def _exists(self, generation_id: uuid.UUID) -> bool:
        with self.engine.connect() as conn:
            found = conn.execute(
                text("SELECT 1 FROM generations WHERE id = :id"), {"id": generation_id}
            )
            return found.first() is not None

    def _cancel(self, generation_id: uuid.UUID) -> None:
        with self.engine.begin() as conn:
            transitions.cancel(conn, generation_id)
            schedule.wake(conn)

    # --- afterwards -----------------------------------------------------------------------------

    def until_rest(self, patience: float) -> float | None:
        """Wait until every row has ended and all results are stored.

        When the last row ended, or None if it did not come to that.
        """
        watch = operator.Watch(self.engine, self.sim, self.fleet.env, self.journal)
        deadline = time.monotonic() + patience
        wanted = len(self.plan.orders)
        while time.monotonic() < deadline:
            with self.engine.connect() as conn:
                rows = conn.execute(text("SELECT status, finished_at FROM generations")).all()
                untold = conn.execute(text(_UNTOLD)).scalar_one()
                unstored = conn.execute(text("SELECT count(due_at) FROM artifacts")).scalar_one()
            ended = len(rows) == wanted and all(Status(row.status) in TERMINAL for row in rows)
            if ended and not untold and not unstored:
                return max(row.finished_at.timestamp() for row in rows)
            watch.look()
            time.sleep(0.5)
        return None

    def remains(self) -> records.Records:
        """What is left once everything that could still come has come."""
        time.sleep(SETTLED)
        for child in self.fleet.all:
            if not child.ready() and child in self.fleet.workers:
                self.journal.tell("restart", f"{child.name} is not ready at the end")
        logs = [child.log for child in self.fleet.all]
        self.fleet.stop()
        operator.reconcile_once(self.fleet.env)
        logs += [self.folder / "servers" / name for name in ("postgres.log", "valkey.log")]
        return records.read(
            self.engine,
            self.sim,
            orders=self.plan.orders,
            ids=self.ids,
            journal=self.journal,
            logs=logs,
            archive=self.archive,
            receiver=self.receiver,
        )


@dataclass
class _Agenda:
    """What producers do, each at its time; tried again while the service's servers are down."""

    start: float
    journal: Journal
    _waiting: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)
    _count: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _stop: threading.Event = field(default_factory=threading.Event)
    _busy: bool = False
    _thread: threading.Thread | None = None

    def add(self, at: float, act: Callable[[], None]) -> None:
        with self._lock:
            self._count += 1
            heapq.heappush(self._waiting, (self.start + at, self._count, act))

    def add_in(self, seconds: float, act: Callable[[], None]) -> None:
        self.add(time.monotonic() - self.start + seconds, act)

    def finish(self, patience: float) -> None:
        """Wait until nothing is left to do."""
        deadline = time.monotonic() + patience
        while (self._waiting or self._busy) and time.monotonic() < deadline:
            time.sleep(0.1)

    def __enter__(self) -> "_Agenda":
        self._thread = threading.Thread(target=self._run, name="producers", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join(30)

    def _next(self) -> Callable[[], None] | None:
        with self._lock:
            if not self._waiting or self._waiting[0][0] > time.monotonic():
                return None
            self._busy = True
            return heapq.heappop(self._waiting)[2]

    def _run(self) -> None:
        while not self._stop.is_set():
            act = self._next()
            if act is None:
                self._stop.wait(0.02)
                continue
            try:
                act()
            except Exception as error:  # noqa: BLE001  (whatever is down, a producer tries again)
                self.journal.tell("producer", f"tries again after {type(error).__name__}")
                self.add_in(0.5, act)
            finally:
                self._busy = False


def _media(folder: Path, plan: Plan) -> Path:
    """The files that the plan's references name: few contents under many names."""
    media = folder / "media"
    media.mkdir()
    picture = (ROOT / "examples" / "media" / "lake.jpg").read_bytes()
    for order in plan.orders:
        for name in order.references:
            content = name.partition("-")[0]
            (media / name).write_bytes(picture + content.encode() * 40_000)
    return media


def main(argv: list[str] | None = None) -> int:
    """The command line. 0 if every promise held."""
    parser = argparse.ArgumentParser(prog="chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=None, help="any, if not given")
    parser.add_argument("-n", type=int, default=300, help="generations (300)")
    parser.add_argument("--seconds", type=float, default=None, help="length of the third stage")
    parser.add_argument("--json", type=Path, default=None, help="append the report to this file")
    parser.add_argument("--keep", type=Path, default=None, help="keep logs and data here")
    parser.add_argument("--plan", action="store_true", help="show the plan and do nothing")
    given = parser.parse_args(argv)
    seed = random.SystemRandom().randrange(10**6) if given.seed is None else given.seed
    plan = draw(seed, given.n, seconds=given.seconds)
    print(plan.summary(), flush=True)  # first of all, so that no death of the run hides the seed
    if given.plan:
        for act in plan.acts:
            print(f"  {act.at:6.2f} {act.kind} {act.args}")
        return 0
    folder = given.keep or Path(tempfile.mkdtemp(prefix="seedance-chaos-"))
    folder.mkdir(parents=True, exist_ok=True)
    # Requests that break off are what it is for; its server need not tell of each.
    logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)
    try:
        outcome = run(plan, folder)
    finally:
        if given.keep is None:
            shutil.rmtree(folder, ignore_errors=True)
    if given.json is not None:
        with given.json.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(outcome.report)) + "\n")
    if outcome.wrong:
        print(outcome.story())
    print(outcome.report.screen())
    print(outcome.report.line)
    return 1 if outcome.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
