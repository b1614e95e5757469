"""Real PostgreSQL and Valkey without root or Docker, for the demo, for tests, for trying out.

Everything lives in one folder (by default `seedance-data/`), which survives a restart and may
be removed whenever nothing runs: `postgres/` and `valkey/` hold the data, the `.log` files what the
servers say, `servers.json` where they are reached. Two folders never meet: PostgreSQL listens on a
socket inside its own, Valkey on a port that is chosen at its first start.

One process owns a folder at a time. If it is killed, the servers live on; the next owner ends them
cleanly and starts its own, so that they run with the settings of today and as its children. A
process is touched only if it is provably the server of this very folder.

The servers have sessions of their own. Ctrl-C in a terminal reaches the workers, and whoever
entered `servers(…)` stops the servers last.
"""

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from worker.embedded_errors import EmbeddedError, InUseError, NotInstalledError, ServerStartError
from worker.embedded_postgres import EmbeddedPostgres, StopMode, postgres_binaries
from worker.embedded_process import FolderLock
from worker.embedded_valkey import EmbeddedValkey, valkey_binary

__all__ = [
    "DEFAULT_DATA_DIR",
    "EmbeddedError",
    "EmbeddedPostgres",
    "EmbeddedValkey",
    "InUseError",
    "NotInstalledError",
    "ServerStartError",
    "Servers",
    "StopMode",
    "find",
    "postgres_binaries",
    "servers",
    "valkey_binary",
]

DEFAULT_DATA_DIR = Path("seedance-data")


@dataclass(frozen=True)
class Servers:
    """Where the servers are reached; empty for one that was not asked for."""

    database_url: str
    broker_url: str
    data_dir: Path
    running: tuple[EmbeddedPostgres | EmbeddedValkey, ...] = field(default=(), compare=False)
    """The servers themselves, for whoever runs them; empty for who only found them."""

    def mend(self) -> list[str]:
        """Start again what has died, under the same addresses. Returns what that was."""
        dead = [server for server in self.running if server.pid is None]
        for server in dead:
            server.start()
        return ["PostgreSQL" if isinstance(one, EmbeddedPostgres) else "Valkey" for one in dead]


@contextmanager
def servers(
    data_dir: Path = DEFAULT_DATA_DIR,
    *,
    postgres: bool = True,
    broker: bool = True,
    durable: bool = True,
) -> Iterator[Servers]:
    """Run the servers for the length of a `with` block and stop them, and only them, at its end.

    Raises `InUseError` if another process runs servers on this folder, `NotInstalledError` (which
    names the extra) if the wheels are missing.
    """
    folder = data_dir.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        lock = FolderLock(_lock_path(folder))
        lock.acquire()
        stack.callback(lock.release)
        database_url = broker_url = ""
        running: list[EmbeddedPostgres | EmbeddedValkey] = []
        if postgres:
            database = stack.enter_context(EmbeddedPostgres(folder, durable=durable))
            database_url = database.url()
            running.append(database)
        if broker:
            valkey = stack.enter_context(EmbeddedValkey(folder, durable=durable))
            broker_url = valkey.url()
            running.append(valkey)
        found = Servers(database_url, broker_url, folder, tuple(running))
        _write(found)
        stack.callback(_addresses(folder).unlink, missing_ok=True)
        yield found


def find(data_dir: Path = DEFAULT_DATA_DIR) -> Servers | None:
    """The servers that another living process runs on this folder, if any."""
    folder = data_dir.resolve()
    if not FolderLock(_lock_path(folder)).held():
        return None
    try:
        urls = json.loads(_addresses(folder).read_text(encoding="utf-8"))
        return Servers(urls["database_url"], urls["broker_url"], folder)
    except (OSError, ValueError, KeyError):
        return None  # its owner is just starting or stopping


def _write(found: Servers) -> None:
    urls = {"database_url": found.database_url, "broker_url": found.broker_url}
    # In one step, so that a reader never sees half of it.
    fresh = _addresses(found.data_dir).with_suffix(".new")
    fresh.write_text(json.dumps(urls, indent=2) + "\n", encoding="utf-8")
    fresh.replace(_addresses(found.data_dir))


def _addresses(folder: Path) -> Path:
    return folder / "servers.json"


def _lock_path(folder: Path) -> Path:
    return folder / "servers.lock"
