"""Starts workers in a tenth of the time: a process that has imported what they need, and forks.

Each is a process and a session of its own, like one that a supervisor started; only the seconds
that Python takes to import libraries are paid once. None of the modules imported ahead reads the
environment. Orders come as JSON lines (`argv`, `env`, `log`), answers go back as `{"pid"}`, and
the ends of children as `{"ended", "code"}`. When the orders end, so do the children.
"""

import contextlib
import importlib
import json
import os
import selectors
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
INSIDE = Path(__file__).parent / "inside" / "sitecustomize.py"
AHEAD = (
    "alembic.command",
    "celery.app.trace",
    "celery.apps.beat",
    "celery.apps.worker",
    "celery.bin.celery",
    "celery.concurrency.prefork",
    "celery.concurrency.thread",
    "celery.worker.consumer",
    "kombu.transport.redis",
    "limits.strategies",
    "psycopg",
    "requests_hardened",
    "rich.console",
    "sqlalchemy.dialects.postgresql.psycopg",
    "api_client",
    "models.watch",
    "worker.settings",
)


class ForkServer:
    """The side of whoever wants processes started."""

    def __init__(self) -> None:
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.chaos.forkserver"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            text=True,
            start_new_session=True,
        )
        self._codes: dict[int, int] = {}
        self._started: list[int] = []
        self._changed = threading.Condition()
        self._orders = threading.Lock()
        self._reader = threading.Thread(target=self._read, name="fork server", daemon=True)
        self._reader.start()

    def start(self, argv: Sequence[str], env: Mapping[str, str], log: Path) -> "Forked":
        """Start `seedance …` or `celery …` with exactly this environment."""
        order = {"argv": list(argv), "env": dict(env), "log": str(log)}
        with self._orders:
            assert self._server.stdin is not None
            self._server.stdin.write(json.dumps(order) + "\n")
            self._server.stdin.flush()
            with self._changed:
                assert self._changed.wait_for(lambda: self._started, 60), "the fork server is gone"
                return Forked(self, self._started.pop())

    def code(self, pid: int, timeout: float = 0.0) -> int | None:
        """How a child ended; None while it lives. Negative for a signal, as subprocess has it."""
        with self._changed:
            self._changed.wait_for(lambda: pid in self._codes, timeout)
            return self._codes.get(pid)

    def close(self) -> None:
        """End it, and with it every child."""
        if self._server.stdin is not None:
            with contextlib.suppress(OSError):
                self._server.stdin.close()
        self._server.wait(30)
        self._reader.join(10)
        if self._server.stdout is not None:
            self._server.stdout.close()

    def _read(self) -> None:
        assert self._server.stdout is not None
        for line in self._server.stdout:
            told = json.loads(line)
            with self._changed:
                if "pid" in told:
                    self._started.append(told["pid"])
                else:
                    self._codes[told["ended"]] = told["code"]
                self._changed.notify_all()


class Forked:
    """A child of the fork server, as `subprocess.Popen` would show it."""

    def __init__(self, server: ForkServer, pid: int) -> None:
        self._server = server
        self.pid = pid

    def poll(self) -> int | None:
        return self._server.code(self.pid)

    def wait(self, timeout: float) -> int:
        code = self._server.code(self.pid, timeout)
        if code is None:
            raise TimeoutError(f"process {self.pid} does not end")
        return code


# --- the server's side -------------------------------------------------------------------------


def _serve() -> None:
    for module in AHEAD:
        importlib.import_module(module)
    wake_reader, wake_writer = os.pipe()
    os.set_blocking(wake_writer, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake_writer, warn_on_full_buffer=False)
    children: set[int] = set()
    selector = selectors.DefaultSelector()
    selector.register(sys.stdin.fileno(), selectors.EVENT_READ)
    selector.register(wake_reader, selectors.EVENT_READ)
    rest = b""
    while True:
        for key, _ in selector.select():
            chunk = os.read(key.fd, 2**16)
            if key.fd == wake_reader:
                _bury(children)
                continue
            if not chunk:
                _end(children)
                return
            *orders, rest = (rest + chunk).split(b"\n")
            for order in orders:
                pid = os.fork()
                if pid == 0:
                    _become(json.loads(order))
                children.add(pid)
                _say(pid=pid)


def _bury(children: set[int]) -> None:
    for pid in list(children):
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            children.discard(pid)
            _say(ended=pid, code=os.waitstatus_to_exitcode(status))


def _end(children: set[int]) -> None:
    for pid in children:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
            os.kill(pid, signal.SIGKILL)


def _say(**what: int) -> None:
    os.write(1, json.dumps(what).encode() + b"\n")


def _become(order: dict[str, Any]) -> None:
    """The child: never returns."""
    code = 1
    try:
        os.setsid()
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.closerange(3, 64)
        os.environ.clear()
        os.environ.update(order["env"])
        sys.argv = order["argv"]
        exec(compile(INSIDE.read_text(), str(INSIDE), "exec"), {"__name__": "inside"})
        if sys.argv[0] == "seedance":
            from worker.cli import main
        else:
            from celery.__main__ import main
        main()
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(bool(ended.code))
    except BaseException:  # noqa: BLE001  (there is nobody else to tell)
        import traceback

        traceback.print_exc()
    finally:
        logging_done()
        os._exit(code & 0xFF)


def logging_done() -> None:
    import logging

    with contextlib.suppress(Exception):
        logging.shutdown()
        sys.stdout.flush()


if __name__ == "__main__":
    _serve()
