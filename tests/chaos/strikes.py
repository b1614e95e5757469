"""Carries a plan's acts out, and takes down what was done and when."""

import contextlib
import random
import signal
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import redis
import requests

import simulator
from tests.chaos import database_faults
from tests.chaos.broker_tap import BrokerTap
from tests.chaos.plan import Act, Stage
from tests.chaos.processes import Fleet
from tests.receiver import Receiver
from worker.embedded_postgres import EmbeddedPostgres
from worker.embedded_valkey import EmbeddedValkey

ENOUGH_CREDITS = Decimal(10_000_000)
NOT_STRIKES = frozenset(
    {
        "restart",
        "DIED",
        "habit",
        "stage",
        "operator",
        "waits in silence",
        "crash point set",
        "producer",
    }
)
"""Kinds of notes that record something else than a strike."""


@dataclass(frozen=True)
class Note:
    """Something that was done to the service."""

    at: float
    """Seconds since 1970."""
    kind: str
    detail: str
    until: float


@dataclass
class Journal:
    """What was done, by time; safe to write from any thread."""

    notes: list[Note] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def tell(self, kind: str, detail: str = "", *, since: float | None = None) -> None:
        now = time.time()
        with self._lock:
            self.notes.append(Note(now if since is None else since, kind, detail, now))

    @contextlib.contextmanager
    def lasting(self, kind: str, detail: str = "") -> Iterator[None]:
        """A note of something that takes its time, from before to after."""
        began = time.time()
        try:
            yield
        finally:
            self.tell(kind, detail, since=began)

    def counts(self) -> Counter[str]:
        return Counter(note.kind for note in self.notes)

    def of(self, *kinds: str) -> list[Note]:
        return sorted((n for n in self.notes if n.kind in kinds), key=lambda n: n.at)


@dataclass
class Strikes:
    """One method for each kind of act. What lasts is ended by a timer, or by `calm`."""

    rng: random.Random
    fleet: Fleet
    postgres: EmbeddedPostgres
    valkey: EmbeddedValkey
    sim: simulator.Simulator
    tap: BrokerTap
    database_url: str
    provider: dict[str, Any]
    journal: Journal
    receiver: Receiver | None = None
    """The producers' web server, where there is one."""
    marks: list[tuple[str, Path]] = field(default_factory=list)
    """Crash points that were set, and the file that appears when a worker has died there."""
    _faults: dict[str, int] = field(default_factory=dict)
    _timers: list[threading.Timer] = field(default_factory=list)

    def carry_out(self, act: Act) -> None:
        """Do it. An act that can't be done now (the database is down, say) is told, not raised."""
        try:
            getattr(self, act.kind)(**act.args)
        except Exception as error:  # noqa: BLE001  (chaos may hit the harness as well)
            self.journal.tell(f"{act.kind} not possible", f"{type(error).__name__}: {error}"[:200])

    def calm(self) -> None:
        """End every fault, whatever its timer says, and leave a whole system."""
        for timer in self._timers:
            timer.cancel()
        for timer in self._timers:
            timer.join(30)
        self.sim.clear_faults()
        self.sim.configure(**{**_HABITS_OFF, **self.provider})
        self._restore_account()
        if self.receiver is not None:
            self._receiver_is_well()
        self.tap.twice = False
        for child in self.fleet.all:
            child.once = {}
            child.signal(signal.SIGCONT)
        if self.valkey.pid is None:
            self.valkey.start()
        self._signal_broker(signal.SIGCONT)
        if self.postgres.pid is None:
            self.postgres.start()
        database_faults.mend(self.database_url)
        for child in self.fleet.all:
            # Set to die at a point that it may never have come to.
            if self._doomed(child.name):
                child.kill()

    def died_at(self) -> list[str]:
        """The crash points at which a worker has died."""
        return sorted(point for point, mark in self.marks if mark.exists())

    def _later(self, seconds: float, act: Any) -> None:
        timer = threading.Timer(seconds, act)
        timer.daemon = True
        self._timers.append(timer)
        timer.start()

    def stage(self, name: Stage) -> None:
        """Record that a stage of the run begins; `tests.chaos.liveness` measures in them."""
        self.journal.tell("stage", name)

    # --- the provider ---------------------------------------------------------------------------

    def provider_fault(self, name: str, endpoint: str, kind: str, **order: Any) -> None:
        self._faults[name] = self.sim.fault(endpoint, kind, **order)

    def provider_mends(self, name: str) -> None:
        if (fault := self._faults.pop(name, None)) is not None:
            self.sim.clear_faults(fault)

    def provider_habit(self, settings: dict[str, Any]) -> None:
        self.sim.configure(**settings)
        self.journal.tell("habit", str(settings))

    def provider_habit_ends(self, names: list[str]) -> None:
        self.sim.configure(**{name: _HABITS_OFF[name] for name in names})

    def key_refused(self, seconds: float) -> None:
        self.sim.change_account(self.sim.api_key, enabled=False)
        self.journal.tell("key refused", f"{seconds:.1f} s")
        self._later(seconds, self._restore_account)

    def credits_run_out(self, seconds: float) -> None:
        self.sim.change_account(self.sim.api_key, credits="1")
        self.journal.tell("credits run out", f"{seconds:.1f} s")
        self._later(seconds, self._restore_account)

    def _restore_account(self) -> None:
        self.sim.change_account(self.sim.api_key, enabled=True, credits=str(ENOUGH_CREDITS))

    # --- the producers' web server ---------------------------------------------------------------

    def receiver_dies(self, seconds: float) -> None:
        assert self.receiver is not None
        self.receiver.stop()
        self.journal.tell("receiver down", f"{seconds:.1f} s")
        self._later(seconds, self._receiver_is_well)

    def receiver_fails(self, seconds: float, status: int) -> None:
        assert self.receiver is not None
        self.receiver.status = status
        self.journal.tell("receiver fails", f"HTTP {status}, {seconds:.1f} s")
        self._later(seconds, self._receiver_is_well)

    def _receiver_is_well(self) -> None:
        assert self.receiver is not None
        self.receiver.status = 200
        self.receiver.start()

    # --- callbacks --------------------------------------------------------------------------------

    def gateway_dies(self) -> None:
        if self.fleet.kill(*self.fleet.gateways):
            self.journal.tell("kill -9 of the gateway", "")

    def callbacks_forged(self, dice: int) -> None:
        """Strangers who know everything of an address but its secret."""
        rng = random.Random(dice)
        for url in rng.sample(urls := self._callback_urls(), min(3, len(urls))):
            head, _, secret = url.rpartition("/")
            whose, _, attempt = head.rpartition("/")
            forged = (
                f"{head}/{secret[::-1]}",
                f"{whose}/{int(attempt) + 1}/{secret}",
                f"{whose.rpartition('/')[0]}/{uuid.uuid4().hex}/{attempt}/{secret}",
            )
            for address in forged:
                self.journal.tell("callback forged", "")
                if self._call_back(address, "any") == requests.codes.ok:
                    self.journal.tell("FORGERY TAKEN", f"of attempt {attempt}")

    def callbacks_again(self, dice: int) -> None:
        """The provider itself calls again, early or late, and speaks of another's task."""
        rng = random.Random(dice)
        tasks = [t for t in self.sim.tasks(origin="submit") if t["body"].get("callback_url")]
        for task in rng.sample(tasks, min(4, len(tasks))):
            self.journal.tell("callback repeated", "")
            for about in (task["task_id"], rng.choice(tasks)["task_id"]):
                self._call_back(task["body"]["callback_url"], about)

    def _callback_urls(self) -> list[str]:
        tasks = self.sim.tasks(origin="submit")
        return [url for task in tasks if (url := task["body"].get("callback_url"))]

    def _call_back(self, url: str, task_id: str) -> int | None:
        """The status of the answer; None where there is none."""
        with contextlib.suppress(requests.RequestException):
            return requests.post(url, json={"task_id": task_id}, timeout=3).status_code
        return None

    # --- processes ------------------------------------------------------------------------------

    def kill_worker(self, which: int) -> None:
        worker = self.fleet.workers[which % len(self.fleet.workers)]
        if self.fleet.kill(worker):
            self.journal.tell("kill -9", worker.name)

    def kill_all_workers(self) -> None:
        if self.fleet.kill(*self.fleet.workers):
            self.journal.tell("kill -9 of all", "every worker")

    def kill_child(self, which: int) -> None:
        if self.fleet.kill_child(random.Random(which)):
            self.journal.tell("kill -9 of a pool process", "")

    def stop_worker(self, which: int) -> None:
        worker = self.fleet.workers[which % len(self.fleet.workers)]
        if self.fleet.stop_softly(worker):
            self.journal.tell("SIGTERM", worker.name)

    def pause_worker(self, which: int, seconds: float) -> None:
        worker = self.fleet.workers[which % len(self.fleet.workers)]
        with self.journal.lasting("SIGSTOP", worker.name):
            worker.signal(signal.SIGSTOP)
            time.sleep(seconds)
            worker.signal(signal.SIGCONT)

    def crash_at(self, point: str, which: int) -> None:
        """A worker is killed, and dies again at this point when it has been started."""
        worker = self.fleet.workers[which % len(self.fleet.workers)]
        self.marks.append((point, self.fleet.crash_at(worker, point)))
        self.kill_worker(which)
        self.journal.tell("crash point set", f"{worker.name} at {point}")

    def _doomed(self, name: str) -> bool:
        notes = [n for n in self.journal.notes if n.kind in ("crash point set", "restart")]
        mine = [n for n in notes if n.detail.startswith(f"{name} ")]
        # Its latest start is the one that has the point set.
        return len(mine) > 1 and mine[-2].kind == "crash point set"

    # --- the broker -----------------------------------------------------------------------------

    def broker_dies(self) -> None:
        with self.journal.lasting("broker killed", "its data stay"):
            self.valkey.kill()
            time.sleep(0.5)
            self.valkey.start()

    def broker_loses_all(self) -> None:
        with self.journal.lasting("broker killed, data lost"):
            self.valkey.kill()
            self.valkey.wipe()
            time.sleep(0.5)
            self.valkey.start()

    def flush_broker(self) -> None:
        with redis.Redis.from_url(self.valkey.url(), socket_timeout=5) as client:
            client.flushall()
        self.journal.tell("FLUSHALL")

    def broker_freezes(self, seconds: float) -> None:
        with self.journal.lasting("broker frozen"):
            self._signal_broker(signal.SIGSTOP)
            time.sleep(seconds)
            self._signal_broker(signal.SIGCONT)

    def _signal_broker(self, number: signal.Signals) -> None:
        process = self.valkey._process
        if process is not None and process.poll() is None:
            process.send_signal(number)

    def messages_twice(self, seconds: float) -> None:
        self.tap.twice = True
        self.journal.tell("messages twice", f"{seconds:.1f} s")
        self._later(seconds, self._messages_once)

    def _messages_once(self) -> None:
        self.tap.twice = False

    def old_messages(self) -> None:
        self.journal.tell("old messages", f"{self.tap.replay(0.5)} sent again")

    # --- the database ---------------------------------------------------------------------------

    def database_dies(self) -> None:
        with self.journal.lasting("database restarted at once"):
            self.postgres.restart("immediate")

    def cut_connections(self) -> None:
        cut = database_faults.cut_connections(self.database_url)
        self.journal.tell("connections cut", str(cut))

    def statements_time_out(self, seconds: float, share: float) -> None:
        with self.journal.lasting("statements time out", f"{share:.0%}"):
            database_faults.statements_time_out(self.database_url, share)
            time.sleep(seconds)
            database_faults.mend(self.database_url)

    def commits_fail(self, seconds: float, share: float) -> None:
        with self.journal.lasting("commits fail", f"{share:.0%}"):
            database_faults.commits_fail(self.database_url, share)
            time.sleep(seconds)
            database_faults.mend(self.database_url)


_HABITS_OFF: dict[str, Any] = {
    "list_order": "created_desc",
    "list_lag": 0.0,
    "get_lag": 0.0,
    "drift_insert": 0.0,
    "drift_delete": 0.0,
    "drift_update": 0.0,
    "rate_limit": None,
    "rate_burst": 10,
    "retry_after": "1",
    "max_concurrent": None,
    "concurrency_mode": "created_with_id",
}
