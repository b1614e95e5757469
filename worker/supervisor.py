"""Runs named processes, restarts one that dies, and stops all of them in order.

No library fitted: honcho ends everything when one process ends, circus brings ZeroMQ and Tornado,
supervisord wants a configuration file and a daemon; none of them waits for readiness.

Each child leads a session of its own, so that Ctrl-C in the terminal reaches only the supervisor,
which then stops the children last-started-first, a group of them together. If the supervisor itself
is killed, Linux sends its children SIGTERM (PR_SET_PDEATHSIG); on other systems they would live on
and have to be stopped by hand.
"""

import contextlib
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Self, TextIO, cast

from worker import logs
from worker.child_process import end_group, has_ended, meaning, spawn_tied
from worker.prefixed_output import PrefixedOutput

if TYPE_CHECKING:
    import subprocess

_TICK = 0.05
_STILL_WAITING = 15.0
_OWN_NAME = "supervisor"


@dataclass(frozen=True)
class ProcessSpec:
    """One process to run.

    `env` is added to the supervisor's own environment. The processes after this one are started
    when `ready` says so for the first time (at once, without it); it is asked often and must
    answer quickly, and an exception means "not yet". With `restart=False` the process is left
    alone when it ends. `grace` is how long it may take to end after SIGTERM; neighbours of the
    same `group` are told to stop together.
    """

    name: str
    argv: Sequence[str]
    env: Mapping[str, str] | None = None
    ready: Callable[[], bool] | None = None
    restart: bool = True
    grace: float = 30.0
    group: str = ""


class _Child:
    """A spec and what has become of it. Touched by the supervising thread; others only read."""

    def __init__(self, spec: ProcessSpec) -> None:
        self.spec = spec
        self.process: subprocess.Popen[bytes] | None = None
        self.reader: threading.Thread | None = None
        self.started_at = 0.0
        self.start_at = 0.0
        self.was_ready = False
        self.doubt = ""
        self.starts = 0
        self.over = False  # ended for good
        self.failures = 0  # in a row, for the backoff
        self.code: int | None = None


class Supervisor:
    """Runs processes in the order of `specs`, until it is told to stop.

    A process that dies is started again after `backoff` seconds, doubled each time up to
    `backoff_max`; having lived for `stable_after` seconds it starts from the beginning.
    """

    def __init__(
        self,
        specs: Sequence[ProcessSpec],
        *,
        output: TextIO | None = None,
        backoff: float = 0.5,
        backoff_max: float = 30.0,
        stable_after: float = 30.0,
    ) -> None:
        self._children = {spec.name: _Child(spec) for spec in specs}
        if len(self._children) != len(specs):
            raise ValueError("the names of the processes must differ")
        self._output = PrefixedOutput(
            output if output is not None else sys.stdout,
            [*self._children, _OWN_NAME],
            as_json=logs.given_format() == "json",
        )
        self._backoff = (backoff, backoff_max, stable_after)
        self._stopping = threading.Event()
        self._hurry = threading.Event()
        self._killed: list[str] = []
        # One thread starts and stops everything: Linux takes the death of the thread that started
        # a child for the death of its parent.
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to start the processes; `wait_ready` waits for them."""
        if self._thread is not None:
            raise RuntimeError("a supervisor starts once")
        self._thread = threading.Thread(target=self._supervise, name="supervisor", daemon=True)
        self._thread.start()

    def wait_ready(self, timeout: float = 60.0) -> None:
        """Wait until every process was ready once.

        Raises TimeoutError when time is up, RuntimeError when one has ended for good before.
        """
        deadline = time.monotonic() + timeout
        while late := [child for child in self._children.values() if not child.was_ready]:
            if dead := [child for child in late if child.over]:
                raise RuntimeError(f"{dead[0].spec.name} ended ({meaning(dead[0].code)})")
            if time.monotonic() > deadline or self._stopping.is_set():
                names = ", ".join(child.spec.name + child.doubt for child in late)
                raise TimeoutError(f"not ready: {names}")
            time.sleep(_TICK)

    def stop(self) -> None:
        """Stop everything that was started, last first, groups at once, and nothing else."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()

    def run(self) -> int:
        """Run until SIGINT, SIGTERM or SIGHUP, or until nothing is left to run.

        A second signal kills what has not ended yet. Gives the exit code: 0 if everything ended
        in its own way, 1 if something failed for good or had to be killed.
        """
        with _counted_signals() as seen:
            self.start()
            thread = cast("threading.Thread", self._thread)
            while thread.is_alive():
                thread.join(_TICK)
                if seen:
                    self._stopping.set()
                if len(seen) > 1:
                    self._hurry.set()
        failed = any(c.code and not c.spec.restart for c in self._children.values())
        return 1 if self._killed or failed else 0

    def pid(self, name: str) -> int | None:
        """The process id, or None while the process does not run."""
        process = self._children[name].process
        return process.pid if process is not None else None

    def restarts(self, name: str) -> int:
        """How often the process was started again."""
        return max(0, self._children[name].starts - 1)

    def exit_code(self, name: str) -> int | None:
        """With what the process last ended (negative: the signal), if it has."""
        return self._children[name].code

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def _supervise(self) -> None:
        try:
            waiting_since = time.monotonic()
            while not self._stopping.wait(_TICK):
                for child in self._children.values():
                    self._look_after(child)
                    if not child.was_ready and not child.over:
                        waiting_since = self._report_waiting(child, waiting_since)
                        break  # those after it have to wait
                if all(child.over for child in self._children.values()):
                    self._say("nothing is left to run")
                    break
        finally:
            self._stopping.set()
            self._stop_all()

    def _look_after(self, child: _Child) -> None:
        now = time.monotonic()
        if child.process is not None and has_ended(child.process):
            self._collect(child)
            self._plan_restart(child, now)
        elif child.process is None and not child.over and now >= child.start_at:
            self._launch(child)
        if child.process is not None and not child.was_ready:
            child.was_ready = self._is_ready(child)

    def _is_ready(self, child: _Child) -> bool:
        if child.spec.ready is None:
            return True
        try:
            return child.spec.ready()
        except Exception as error:  # noqa: BLE001 - whatever it is, it is told if it goes on
            child.doubt = f" ({type(error).__name__}: {error})"
            return False

    def _report_waiting(self, child: _Child, since: float) -> float:
        now = time.monotonic()
        if now - since < _STILL_WAITING:
            return since
        self._say(f"still waiting for {child.spec.name} to be ready{child.doubt}")
        return now

    def _launch(self, child: _Child) -> None:
        spec = child.spec
        child.starts += 1
        child.started_at = time.monotonic()
        try:
            child.process = process = spawn_tied(spec.argv, spec.env)
        except OSError as error:
            self._say(f"cannot run {spec.name}: {error}")
            child.code = 127
            self._plan_restart(child, child.started_at)
            return
        if process.stdout is not None:
            child.reader = threading.Thread(
                target=self._output.copy, args=(spec.name, process.stdout), daemon=True
            )
            child.reader.start()

    def _plan_restart(self, child: _Child, now: float) -> None:
        ended = f"{child.spec.name} ended ({meaning(child.code)})"
        if not child.spec.restart:
            child.over = True
            self._say(ended)
            return
        first, most, stable = self._backoff
        child.failures = 1 if now - child.started_at >= stable else child.failures + 1
        delay = min(most, first * 2.0 ** min(child.failures - 1, 30))
        child.start_at = now + delay
        self._say(f"{ended}; start {child.starts + 1} in {delay:g} s")

    def _collect(self, child: _Child) -> None:
        """Take leave of a process that has ended, and of what it left in its group."""
        process = cast("subprocess.Popen[bytes]", child.process)
        child.code = end_group(process)
        if child.reader is not None:
            child.reader.join(1.0)  # its last words; a grandchild elsewhere may hold the pipe
        child.process = None

    def _stop_all(self) -> None:
        running = [child for child in self._children.values() if child.process is not None]
        if running:
            self._say(f"stopping {', '.join(c.spec.name for c in reversed(running))}")
        for _, group in groupby(reversed(running), lambda c: c.spec.group or c.spec.name):
            self._stop_group(list(group))

    def _stop_group(self, group: Sequence[_Child]) -> None:
        told = time.monotonic()
        processes = [cast("subprocess.Popen[bytes]", child.process) for child in group]
        for process in processes:
            # Only the process itself: it knows best how to stop its own children.
            if not has_ended(process):
                process.send_signal(signal.SIGTERM)
        for child, process in zip(group, processes, strict=True):
            while not has_ended(process):
                if time.monotonic() > told + child.spec.grace or self._hurry.wait(_TICK):
                    self._say(f"{child.spec.name} has not ended in time and is killed")
                    self._killed.append(child.spec.name)
                    break
            self._collect(child)

    def _say(self, text: str) -> None:
        self._output.line(_OWN_NAME, text)


@contextlib.contextmanager
def _counted_signals() -> Iterator[list[int]]:
    """Collect the signals that mean "stop" instead of dying of them."""
    seen: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        # No more than this: a handler may interrupt whatever holds a lock.
        seen.append(number)

    wanted = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, note) for number in wanted}
    try:
        yield seen
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
