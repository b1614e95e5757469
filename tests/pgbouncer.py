"""A PgBouncer of a test's own, from the system's package, before the run's PostgreSQL."""

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import psycopg
from sqlalchemy import make_url

from tests.waiting import wait_for
from worker.embedded_process import end, spawn, unprivileged_account
from worker.stack import free_port

if TYPE_CHECKING:
    import subprocess

PROGRAM = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
ABSENT = PROGRAM is None
WHY_ABSENT = "PgBouncer is not installed (Debian: apt-get install pgbouncer)"


class PgBouncer:
    """In transaction mode, on a loopback port, with few sessions of the server."""

    def __init__(self, folder: Path, server_url: str, *, sessions: int = 4) -> None:
        self._server = make_url(server_url)
        self._socket = str(self._server.query["host"])
        self.port = free_port()
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._config = folder / "pgbouncer.ini"
        self._config.write_text(
            f"[databases]\n* = host={self._socket} user={self._server.username}\n"
            "[pgbouncer]\n"
            f"listen_addr = 127.0.0.1\nlisten_port = {self.port}\nunix_socket_dir =\n"
            "auth_type = any\npool_mode = transaction\n"
            f"default_pool_size = {sessions}\nmax_client_conn = 500\n"
            # Named in messages of the log alone; nothing else is switched off.
            "log_connections = 0\nlog_disconnections = 0\n"
        )
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it takes connections."""
        assert PROGRAM is not None
        # As the server's own account, which reaches its socket; root it refuses to run as.
        account = unprivileged_account(Path(self._socket), Path(PROGRAM))
        argv = [PROGRAM, str(self._config)]
        log = self._folder / "pgbouncer.log"
        self._process = spawn(argv, cwd=Path("/"), log=log, account=account)
        wait_for(self._answers, "PgBouncer answers")

    def stop(self) -> None:
        """End it."""
        if self._process is not None:
            end(self._process)
            self._process = None

    def url(self, database_url: str) -> str:
        """The way to that database through here."""
        database = make_url(database_url).database
        place = quote(self._socket, safe="")
        return (
            f"postgresql://{self._server.username}@127.0.0.1:{self.port}/{database}"
            f"?pooler=transaction&direct={place}"
        )

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self._folder / "pgbouncer.log").read_text()
        try:
            psycopg.connect(
                host="127.0.0.1", port=self.port, user=self._server.username, dbname="postgres"
            ).close()
        except psycopg.OperationalError:
            return False
        return True
