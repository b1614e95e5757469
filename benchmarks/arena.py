"""Where one contender is measured: servers of its own database and queue, and a fresh simulator."""

import contextlib
import dataclasses
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import redis

from benchmarks import accounting
from simulator import Admin
from worker import embedded, stack
from worker.embedded_postgres import EmbeddedPostgres
from worker.embedded_valkey import EmbeddedValkey
from worker.supervisor import ProcessSpec, Supervisor

API_KEY = "sim-key"
_READY = 120.0
_GRACE = 3.0


@dataclass(frozen=True)
class Host:
    """PostgreSQL and Valkey, used by one arena after the other."""

    folder: Path
    postgres: EmbeddedPostgres
    valkey: EmbeddedValkey

    def pids(self) -> dict[str, int]:
        """Their processes."""
        found = {"postgres": self.postgres.pid, "valkey": self.valkey.pid}
        return {name: pid for name, pid in found.items() if pid is not None}


@contextlib.contextmanager
def host(folder: Path) -> Iterator[Host]:
    """Servers in a folder, with their usual durability."""
    folder.mkdir(parents=True, exist_ok=True)
    with embedded.servers(folder) as servers:
        postgres, valkey = servers.running
        assert isinstance(postgres, EmbeddedPostgres)
        assert isinstance(valkey, EmbeddedValkey)
        yield Host(folder, postgres, valkey)


@dataclass
class Arena:
    """One measurement's addresses, processes and folder."""

    host: Host
    folder: Path
    database_url: str
    """As SQLAlchemy writes it."""
    api: str
    admin: Admin
    running: dict[str, tuple[Supervisor, list[str]]] = field(default_factory=dict)
    """Supervisors, and the names of their processes."""

    @property
    def libpq_url(self) -> str:
        """As everybody else writes it."""
        return self.database_url.replace("postgresql+psycopg://", "postgresql://")

    @property
    def broker_url(self) -> str:
        """Valkey's."""
        return self.host.valkey.url()

    def environment(self) -> dict[str, str]:
        """What the programs in `contenders` read."""
        return {
            "PROVIDER_URL": self.api,
            "PROVIDER_KEY": API_KEY,
            "DATABASE_URL": self.libpq_url,
            "BROKER_URL": self.broker_url,
            "SEEDANCE_DATABASE_URL": self.database_url,
            "SEEDANCE_BROKER_URL": self.broker_url,
            "SEEDANCE_API_KEY": API_KEY,
            "SEEDANCE_API_BASE_URL": self.api,
        }

    def cpu(self) -> dict[str, float]:
        """CPU seconds so far: the contender's processes, each server, and the simulator."""
        used = {name: accounting.cpu([pid]) for name, pid in self.host.pids().items()}
        used |= {name: accounting.cpu(self.pids(name)) for name in self.running}
        return used

    def pids(self, which: str = "contender") -> list[int]:
        """The processes of one supervisor, as far as they run."""
        supervisor, names = self.running[which]
        pids = map(supervisor.pid, names)
        return [pid for pid in pids if pid is not None]

    def received(self) -> dict[str, int]:
        """Requests that the simulator got so far, by endpoint."""
        endpoints = self.admin.requests()["endpoints"]
        wanted = ("submit", "get", "list", "balance")
        return {name: int(endpoints.get(name, {}).get("received", 0)) for name in wanted}


@contextlib.contextmanager
def arena(servers: Host, *options: str) -> Iterator[Arena]:
    """A new database, an empty broker and a simulator with these options."""
    name = f"bench_{uuid.uuid4().hex[:12]}"
    folder = servers.folder / name
    folder.mkdir()
    database_url = servers.postgres.create_database(name)
    port = stack.free_port()
    with contextlib.ExitStack() as defer:
        defer.callback(servers.postgres.drop_database, name)
        _empty(servers.valkey)
        here = Arena(
            servers, folder, database_url, stack.local_url(port), Admin(stack.local_url(port))
        )
        specs = [stack.simulator(port, "--credits", "100000000", *options)]
        defer.enter_context(running(here, "simulator", specs))
        yield here


@contextlib.contextmanager
def running(here: Arena, name: str, specs: Sequence[ProcessSpec]) -> Iterator[None]:
    """Processes from ready to stopped; what they say goes to a file of the arena."""
    # What is measured is over by then, and nothing is kept.
    hasty = [dataclasses.replace(spec, grace=min(spec.grace, _GRACE)) for spec in specs]
    with (here.folder / f"{name}.log").open("w", encoding="utf-8") as output:
        supervisor = Supervisor(hasty, output=output, backoff=0.1)
        here.running[name] = supervisor, [spec.name for spec in specs]
        try:
            with supervisor:
                supervisor.wait_ready(_READY)
                yield
        finally:
            del here.running[name]


def _empty(valkey: EmbeddedValkey) -> None:
    with redis.Redis.from_url(valkey.url()) as client:
        client.flushall()
