"""The processes of a service under attack, and a supervisor that starts what has died again."""

import contextlib
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import psutil

from tests.chaos.forkserver import Forked, ForkServer
from tests.waiting import wait_for

RESTART_AFTER = 0.3
"""Seconds until the supervisor starts a dead process again."""

Tell = Callable[[str, str], None]
"""Takes down what was done: a kind, and details."""


class Child:
    """One place in the fleet: a process, started again with the same words when it has died."""

    def __init__(
        self,
        name: str,
        argv: list[str],
        env: Mapping[str, str],
        folder: Path,
        server: ForkServer,
    ) -> None:
        self._server = server
        self.name = name
        self.argv = argv
        self.env = dict(env)
        self.once: dict[str, str] = {}
        """Environment of the next start alone."""
        self.log = folder / f"{name}.log"
        self.starts = 0
        self._process: Forked | None = None

    @property
    def pid(self) -> int | None:
        """While it lives."""
        return self._process.pid if self._process and self._process.poll() is None else None

    @property
    def returncode(self) -> int | None:
        return None if self._process is None else self._process.poll()

    def start(self) -> None:
        outside = {k: v for k, v in os.environ.items() if not k.startswith("SEEDANCE_")}
        env = {**outside, **self.env, **self.once}
        self._process = self._server.start(self.argv, env, self.log)
        self.once = {}
        self.starts += 1

    def signal(self, number: signal.Signals) -> bool:
        """To the whole session. False if there is nobody left."""
        pid = self.pid
        if pid is None:
            return False
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, number)
        return True

    def kill(self) -> bool:
        """SIGKILL, at once and to all of it."""
        hit = self.signal(signal.SIGKILL)
        if hit and self._process is not None:
            self._process.wait(30)
        return hit

    def text(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def ready(self) -> bool:
        """Whether the latest start takes messages."""
        return self.pid is not None and self.text().count(" ready.") >= self.starts

    def children(self) -> list[int]:
        """The processes of a prefork pool."""
        pid = self.pid
        if pid is None:
            return []
        with contextlib.suppress(psutil.Error):
            return [child.pid for child in psutil.Process(pid).children()]
        return []


class Fleet:
    """Workers, beats and gateways, supervised as in production."""

    def __init__(
        self, server: ForkServer, folder: Path, env: Mapping[str, str], tell: Tell
    ) -> None:
        self.server = server
        self.folder = folder
        self.env = dict(env)
        self.tell = tell
        self.workers: list[Child] = []
        self.beats: list[Child] = []
        self.gateways: list[Child] = []
        self.supervised = True
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._stopping: set[str] = set()
        self._thread = threading.Thread(target=self._watch, name="supervisor", daemon=True)

    def add_worker(
        self, *, pool: str = "threads", threads: int = 4, debug: bool = False, **env: str
    ) -> Child:
        """One more worker, running; `env` is added to the service's."""
        name = f"worker-{len(self.workers)}"
        level = "debug" if debug else "info"
        argv = ["seedance", "worker", "-c", str(threads), "-l", level, "-n", f"{name}@chaos"]
        if pool != "threads":
            argv = ["celery", "-A", "worker.app", "worker", "--pool", pool, "-c", str(threads)]
            argv += ["-l", level.upper(), "-n", f"{name}@chaos"]
        return self._add(
            self.workers, Child(name, argv, {**self.env, **env}, self.folder, self.server)
        )

    def add_beat(self, **env: str) -> Child:
        """One more beat, running."""
        name = f"beat-{len(self.beats)}"
        return self._add(
            self.beats,
            Child(name, ["seedance", "beat"], {**self.env, **env}, self.folder, self.server),
        )

    def add_gateway(self, port: int) -> Child:
        """One that takes callbacks in, running."""
        name = f"gateway-{len(self.gateways)}"
        argv = ["seedance", "gateway", "--port", str(port), "-l", "debug"]
        return self._add(self.gateways, Child(name, argv, self.env, self.folder, self.server))

    def _add(self, among: list[Child], child: Child) -> Child:
        with self._lock:
            child.start()
            among.append(child)
        if not self._thread.is_alive() and not self._stop.is_set():
            self._thread.start()
        return child

    def wait_ready(self, timeout: float) -> None:
        """Until every worker takes messages."""
        try:
            wait_for(lambda: all(w.ready() for w in self.workers), "every worker is ready", timeout)
        except AssertionError as error:
            raise AssertionError([w.text()[-2000:] for w in self.workers]) from error

    @property
    def all(self) -> list[Child]:
        return [*self.workers, *self.beats, *self.gateways]

    def kill(self, *children: Child) -> int:
        """kill -9 of several at once. Returns how many lived."""
        hit = [child for child in children if child.signal(signal.SIGKILL)]
        for child in hit:
            child.kill()
        return len(hit)

    def stop_softly(self, child: Child) -> bool:
        """SIGTERM; the supervisor starts it again when it has ended."""
        self._stopping.add(child.name)
        return child.signal(signal.SIGTERM)

    def crash_at(self, child: Child, point: str) -> Path:
        """Have the child die at a crash point after its next start. Returns the mark it leaves."""
        mark = self.folder / f"crashed-{point}-{time.monotonic_ns()}"
        child.once = {"SEEDANCE_CRASH_AT": point, "SEEDANCE_CRASH_ONCE": str(mark)}
        return mark

    def kill_child(self, rng: random.Random) -> bool:
        """One process of a prefork pool, as the kernel kills what uses too much memory."""
        pids = [pid for worker in self.workers for pid in worker.children()]
        if not pids:
            return False
        with contextlib.suppress(ProcessLookupError):
            os.kill(rng.choice(pids), signal.SIGKILL)
        return True

    def _watch(self) -> None:
        while not self._stop.wait(RESTART_AFTER):
            if not self.supervised:
                continue
            for child in self.all:
                with self._lock:
                    if child.pid is None and self.supervised and not self._stop.is_set():
                        how = child.returncode
                        expected = child.name in self._stopping
                        self._stopping.discard(child.name)
                        self.tell("restart", f"{child.name} had ended with {how}")
                        if how not in (-signal.SIGKILL, 0) and not expected:
                            self.tell("DIED", f"{child.name} by itself, with {how}")
                        child.start()

    def stop(self) -> None:
        """Kill everything and stop supervising."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(10)
        with self._lock:
            for child in self.all:
                child.signal(signal.SIGCONT)
                child.kill()
