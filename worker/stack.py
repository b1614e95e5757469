"""The processes of one whole service on this machine, for `seedance up` and `seedance demo`."""

import contextlib
import os
import signal
import socket
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType

from models.secret_files import SUFFIX
from worker import flower as window
from worker.embedded import EmbeddedError, Servers
from worker.supervisor import ProcessSpec

_WATCH_EVERY = 1.0
_LOOPBACK = "127.0.0.1"


def seedance(*args: str) -> list[str]:
    """The command line of one of our processes. `-P`: a folder here must not shadow a package."""
    return [sys.executable, "-P", "-m", "worker.cli", *args]


def free_port(wanted: int = 0) -> int:
    """A port of the loopback address that is free now: `wanted`, if it is, unless that is 0.

    Raises OSError if the wanted one is taken.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((_LOOPBACK, wanted))
        return int(probe.getsockname()[1])


def answers(url: str) -> Callable[[], bool]:
    """A readiness check: something answers a GET there."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def ready() -> bool:
        with opener.open(url, timeout=1.0) as answer:
            return bool(answer.status == 200)

    return ready


def worker(number: int, env: Mapping[str, str], run_dir: Path, *options: str) -> ProcessSpec:
    """A worker; it is ready when its dispatcher looks for work."""
    heartbeat = run_dir / f"worker{number}.heartbeat"
    heartbeat.unlink(missing_ok=True)
    return ProcessSpec(
        f"worker{number}",
        seedance("worker", "--name", f"worker{number}@%h", *options),
        env={**env, "SEEDANCE_HEARTBEAT_FILE": str(heartbeat)},
        ready=heartbeat.exists,
        grace=50.0,
        # One after the other, those still to come would take new work meanwhile.
        group="workers",
    )


def beat(env: Mapping[str, str]) -> ProcessSpec:
    """Beat."""
    return ProcessSpec("beat", seedance("beat"), env=env, grace=10.0)


def gateway(port: int, env: Mapping[str, str]) -> ProcessSpec:
    """What takes callbacks in. Nothing waits for it: what it misses, polling sees."""
    return ProcessSpec(
        "gateway",
        seedance("gateway", "--host", _LOOPBACK, "--port", str(port), "--log-level", "warning"),
        env=env,
        grace=15.0,
    )


def simulator(port: int, *options: str) -> ProcessSpec:
    """A stand-in for the provider."""
    return ProcessSpec(
        "simulator",
        seedance("simulator", "--port", str(port), *options),
        ready=answers(f"{local_url(port)}/admin/config"),
        grace=5.0,
    )


def flower(port: int, env: Mapping[str, str]) -> ProcessSpec:
    """Flower on the loopback address, with the environment that `worker.flower` made."""
    return ProcessSpec(
        "flower",
        window.command(_LOOPBACK, port),
        env=env,
        ready=answers(f"{local_url(port)}/healthcheck"),
        grace=15.0,  # it writes down what it saw
    )


def local_url(port: int) -> str:
    """The address of a process that listens on this machine."""
    return f"http://{_LOOPBACK}:{port}"


@contextlib.contextmanager
def kept_running(servers: Servers, say: Callable[[str], None]) -> Iterator[None]:
    """Start an embedded server again when it dies, for the length of a `with` block."""
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(_WATCH_EVERY):
            try:
                for name in servers.mend():
                    say(f"{name} had died and was started again")
            except (EmbeddedError, OSError) as error:
                say(f"an embedded server can't be started again: {error}")

    thread = threading.Thread(target=watch, name="servers", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@contextlib.contextmanager
def signals_unwind() -> Iterator[None]:
    """SIGTERM and SIGHUP end a `with` block as Ctrl-C does, so that everything is stopped."""

    def unwind(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    wanted = (signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, unwind) for number in wanted}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def only(environ: Mapping[str, str], *kept: str) -> dict[str, str]:
    """An environment without any of our settings but those kept: what it says elsewhere must not
    change a demonstration.
    """
    return {
        name: value
        for name, value in environ.items()
        if not name.startswith("SEEDANCE_") or name.removesuffix(SUFFIX) in kept
    }


def forget_settings(*kept: str) -> None:
    """The same for this process, and so for those that it starts."""
    wanted = only(os.environ, *kept)
    for name in set(os.environ) - set(wanted):
        del os.environ[name]
