"""How each contender is set up, started and read: what its program in `contenders` doesn't say.

Each gets two processes, one for each core of a small machine; the script is one program.
"""

import dataclasses
import json
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

import psycopg

from benchmarks.arena import Arena
from models.database import make_engine
from worker import migrate, stack
from worker.supervisor import ProcessSpec

_migrating = threading.Lock()
"""Alembic keeps its context in module globals, so two threads cannot migrate at a time."""

PROCESSES = 2
THREADS = 32
"""Of a process, where a program is told a number."""


@dataclass(frozen=True)
class Work:
    """What a contender has to be ready for."""

    in_flight: int
    poll_seconds: float = 5.0
    """The provider advises 5 to 10; each takes the least."""


class Entrant(ABC):
    """One contender."""

    name: ClassVar[str]
    title: ClassVar[str]
    program: ClassVar[str]
    """Its module in `contenders`."""
    queue: ClassVar[bool] = True
    """Whether requests can be enqueued while nothing works on them."""
    bulk: ClassVar[bool] = False
    """Whether there is a call for many."""
    variant_of: ClassVar[str] = ""
    """Whose other settings these are, and so only measured with that one."""

    @property
    def about(self) -> str:
        """What runs, with its version."""
        return self.title

    def prepare(self, here: Arena) -> None:  # noqa: B027 - not everybody has tables
        """Create tables."""

    @abstractmethod
    def processes(self, here: Arena, work: Work) -> Sequence[ProcessSpec]:
        """What has to run."""

    @abstractmethod
    def ended(self, here: Arena) -> int:
        """How many generations it knows to have ended."""

    @abstractmethod
    def endings(self, here: Arena) -> dict[str, float]:
        """When it learned of each remote task's end, in seconds since 1970."""

    def module(self, here: Arena, work: Work, number: int, *options: str) -> ProcessSpec:
        """Its program as a process of its own."""
        argv = [sys.executable, "-m", f"benchmarks.contenders.{self.program}", *options]
        return self.process(here, work, number, argv)

    def process(self, here: Arena, work: Work, number: int, argv: Sequence[str]) -> ProcessSpec:
        """A process that touches READY_FILE when it is up."""
        ready = here.folder / f"ready{number}"
        ready.unlink(missing_ok=True)
        env = here.environment() | {
            "POLL_SECONDS": str(work.poll_seconds),
            "READY_FILE": str(ready),
        }
        return ProcessSpec(f"{self.name}{number}", argv, env=env, ready=ready.exists)


class Service(Entrant):
    """This service with its default settings, but for limits that would hold it back."""

    name, title, program = "service", "this service", "this_service"
    bulk = True

    def prepare(self, here: Arena) -> None:
        engine = make_engine(here.database_url)
        try:
            with _migrating:
                migrate.upgrade(engine)
        finally:
            engine.dispose()

    def processes(self, here: Arena, work: Work) -> Sequence[ProcessSpec]:
        env = here.environment() | {
            "SEEDANCE_MAX_IN_FLIGHT": str(work.in_flight),
            "SEEDANCE_RATE_LIMIT": "5000/second",
            "SEEDANCE_POLL_MIN": str(work.poll_seconds),
            "SEEDANCE_LOG_LEVEL": "warning",
        }
        workers = [stack.worker(n, env, here.folder) for n in range(1, PROCESSES + 1)]
        return [*workers, stack.beat(env)]

    def ended(self, here: Arena) -> int:
        return _count(here, "SELECT count(*) FROM generations WHERE finished_at IS NOT NULL")

    def endings(self, here: Arena) -> dict[str, float]:
        return _times(
            here,
            "SELECT remote_task_id, extract(epoch FROM finished_at)"
            " FROM generations WHERE status = 'completed'",
        )


class _WithVideos(Entrant):
    """Keeps its results in a table of the application."""

    def prepare(self, here: Arena) -> None:
        _run(
            here,
            "CREATE TABLE videos (task_id text PRIMARY KEY, url text,"
            " at timestamptz NOT NULL DEFAULT clock_timestamp())",
        )

    def ended(self, here: Arena) -> int:
        return _count(here, "SELECT count(*) FROM videos")

    def endings(self, here: Arena) -> dict[str, float]:
        return _times(here, "SELECT task_id, extract(epoch FROM at) FROM videos")


class PlainCelery(_WithVideos):
    """Threads, as the work waits on the network."""

    name, title, program = "celery", "plain Celery", "plain_celery"
    threads = THREADS

    @property
    def about(self) -> str:
        return f"Celery {version('celery')}, {PROCESSES} workers of {self.threads} threads"

    def processes(self, here: Arena, work: Work) -> Sequence[ProcessSpec]:
        argv = [sys.executable, "-m", "celery", "-A", f"benchmarks.contenders.{self.program}"]
        argv += ["worker", "--pool", "threads", "--concurrency", str(self.threads), "-l", "error"]
        return [
            self.process(here, work, n, [*argv, "--hostname", f"celery{n}@%h"])
            for n in range(1, PROCESSES + 1)
        ]


class Procrastinate(_WithVideos):
    """Asynchronous jobs."""

    name, title, program = "procrastinate", "Procrastinate", "on_procrastinate"
    bulk = True

    @property
    def about(self) -> str:
        return f"Procrastinate {version('procrastinate')}, {PROCESSES} workers of {THREADS} jobs"

    def prepare(self, here: Arena) -> None:
        from procrastinate.schema import SchemaManager

        super().prepare(here)
        _run(here, SchemaManager.get_schema())

    def processes(self, here: Arena, work: Work) -> Sequence[ProcessSpec]:
        return [self.module(here, work, n, str(THREADS)) for n in range(1, PROCESSES + 1)]


class Dbos(Entrant):
    """Durable workflows; what has ended stands in its own tables."""

    name, title, program = "dbos", "DBOS", "on_dbos"

    @property
    def about(self) -> str:
        return f"DBOS {version('dbos')}, {PROCESSES} executors, asynchronous workflows"

    def prepare(self, here: Arena) -> None:
        from dbos import run_dbos_database_migrations

        run_dbos_database_migrations(here.libpq_url)

    def processes(self, here: Arena, work: Work) -> Sequence[ProcessSpec]:
        return [self.module(here, work, n, f"executor{n}") for n in range(1, PROCESSES + 1)]

    def ended(self, here: Arena) -> int:
        return _count(here, "SELECT count(*) FROM dbos.workflow_status WHERE status = 'SUCCESS'")

    def endings(self, here: Arena) -> dict[str, float]:
        from dbos import DBOSClient

        client = DBOSClient(system_database_url=here.libpq_url)
        try:
            done = client.list_workflows(status="SUCCESS", load_input=False)
        finally:
            client.destroy()
        return {flow.output[0]: (flow.completed_at or 0) / 1000 for flow in done}


class Script(Entrant):
    """The document's script: one process, a thread for each generation that is under way."""

    name, title, program = "script", "the document's script", "document_script"
    queue = False

    @property
    def about(self) -> str:
        return "the provider document's script, a thread for each generation"

    def processes(self, here: Arena, work: Work) -> Sequence[ProcessSpec]:
        requests, results = self.files(here)
        requests.touch()
        return [self.module(here, work, 1, str(requests), str(results), str(work.in_flight))]

    def ended(self, here: Arena) -> int:
        return len(self._lines(here))

    def endings(self, here: Arena) -> dict[str, float]:
        return {line["task_id"]: line["at"] for line in self._lines(here)}

    @staticmethod
    def files(here: Arena) -> tuple[Path, Path]:
        """What it reads and what it writes."""
        return here.folder / "requests.jsonl", here.folder / "results.jsonl"

    def _lines(self, here: Arena) -> list[dict[str, Any]]:
        results = self.files(here)[1]
        text = results.read_text() if results.exists() else ""
        return [json.loads(line) for line in text.split("\n")[:-1]]


class ImpatientCelery(PlainCelery):
    """With a visibility timeout that brings back what a killed worker held, soon; for the blow."""

    name, title = "celery_60", "plain Celery, visibility_timeout 60 s"
    variant_of = "celery"

    def processes(self, here: Arena, work: Work) -> Sequence[ProcessSpec]:
        return [
            dataclasses.replace(spec, env={**(spec.env or {}), "VISIBILITY": "60"})
            for spec in super().processes(here, work)
        ]


ENTRANTS: tuple[Entrant, ...] = (Service(), PlainCelery(), Procrastinate(), Dbos(), Script())
VARIANTS: tuple[Entrant, ...] = (ImpatientCelery(),)
TITLES = {entrant.name: entrant.title for entrant in (*ENTRANTS, *VARIANTS)}


def _connect(here: Arena) -> psycopg.Connection[tuple[Any, ...]]:
    return psycopg.connect(here.libpq_url, autocommit=True)


def _run(here: Arena, statement: str) -> None:
    with _connect(here) as connection:
        connection.execute(statement.encode())


def _count(here: Arena, query: str) -> int:
    with _connect(here) as connection:
        row = connection.execute(query.encode()).fetchone()
    assert row is not None
    return int(row[0])


def _times(here: Arena, query: str) -> dict[str, float]:
    with _connect(here) as connection:
        return {task: float(at) for task, at in connection.execute(query.encode())}
