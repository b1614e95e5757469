"""One strike at a time: real servers that may be killed, shared by the tests of this folder."""

import itertools
import os
import random
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

import simulator
from models import intake
from models.database import make_engine
from models.lifecycle import TERMINAL, Status
from tests.chaos import invariants, operator, records, telling
from tests.chaos.broker_tap import BrokerTap
from tests.chaos.forkserver import ROOT, ForkServer
from tests.chaos.plan import TIMES, Order, tag
from tests.chaos.processes import Fleet
from tests.chaos.strikes import ENOUGH_CREDITS, Journal, Strikes
from tests.waiting import PATIENCE, wait_for
from worker import migrate
from worker.embedded_postgres import EmbeddedPostgres
from worker.embedded_valkey import EmbeddedValkey
from worker.requests import new_generation


@pytest.fixture(scope="session")
def forks() -> Iterator[ForkServer]:
    server = ForkServer()
    yield server
    server.close()


@pytest.fixture(scope="session")
def own_postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedPostgres]:
    """A server that loses no commit when it is killed."""
    with EmbeddedPostgres(tmp_path_factory.mktemp("own"), durable=True) as server:
        engine = make_engine(server.create_database("template_chaos"))
        migrate.upgrade(engine)
        engine.dispose()
        yield server


@pytest.fixture(scope="session")
def own_valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedValkey]:
    with EmbeddedValkey(tmp_path_factory.mktemp("own"), durable=True) as server:
        yield server


class Arena:
    """A service, the means to strike it, and what must hold of it afterwards."""

    def __init__(
        self,
        forks: ForkServer,
        postgres: EmbeddedPostgres,
        valkey: EmbeddedValkey,
        sim: simulator.Simulator,
        folder: Path,
        settings: Mapping[str, str],
    ) -> None:
        self.sim = sim
        # A database of its own in the broker as well, so that no arena takes another's messages.
        self.broker_url = valkey.url(next(_broker_db) % 15 + 1)
        self.tap = BrokerTap(self.broker_url).__enter__()
        self.journal = Journal()
        self.folder = folder
        self.orders: list[Order] = []
        self.ids: dict[int, uuid.UUID] = {}
        self.postgres, self.valkey = postgres, valkey
        self.url = postgres.create_database(
            f"arena_{uuid.uuid4().hex[:10]}", template="template_chaos"
        )
        self.engine = make_engine(self.url, pool_size=3, application="chaos-harness")
        self.media = folder / "media"
        self.media.mkdir()
        self.env = {
            **TIMES,
            "SEEDANCE_DATABASE_URL": self.url,
            "SEEDANCE_BROKER_URL": self.broker_url,
            "SEEDANCE_API_KEY": sim.api_key,
            "SEEDANCE_API_BASE_URL": sim.url,
            "SEEDANCE_MEDIA_ROOTS": str(self.media),
            **settings,
        }
        self.fleet = Fleet(forks, folder, self.env, self.journal.tell)
        self.strikes = Strikes(
            random.Random(1),
            self.fleet,
            postgres,
            valkey,
            sim,
            self.tap,
            self.url,
            {},
            self.journal,
        )

    def workers(self, count: int, **options: Any) -> None:
        """Start so many, and wait until they take messages."""
        for _ in range(count):
            self.fleet.add_worker(**options)
        self.fleet.wait_ready(PATIENCE)

    def picture(self, name: str, content: str | None = None) -> str:
        """A file in the media folder; the same `content` gives the same bytes."""
        lake = (ROOT / "examples" / "media" / "lake.jpg").read_bytes()
        (self.media / name).write_bytes(lake + (content or name).encode() * 20_000)
        return f"path:{name}"

    def ask(
        self,
        count: int = 1,
        *,
        wishes: str = "seconds=100",
        path: str | None = None,
        poisoned: bool = False,
    ) -> None:
        """Enqueue `count` requests, with wishes for the simulator in their prompts.

        The provider answers each submit of a poisoned one with SERVICE_BUSY until its faults are
        cleared.
        """
        for _ in range(count):
            number = len(self.orders)
            content: list[dict[str, str]] = []
            if path is not None:
                content.append({"type": "image_url", "image_url": path})
            content.append({"type": "text", "text": f"chaos {tag(number)} [sim: {wishes}]"})
            order = Order(number, 0.0, {"content": content}, "default", 0, poisoned=poisoned)
            if poisoned:
                self.sim.fault("submit", "service_busy", match=order.tag)
            self.orders.append(order)
            self.ids[number] = uuid.uuid4()
            new = new_generation(order.request, generation_id=self.ids[number])
            with self.engine.begin() as conn:
                intake.accept(conn, new)

    def ask_mixed(self, count: int) -> None:
        """Plain ones, one in four with its answer lost, and one with a reference."""
        self.ask(count - count // 4 - 1)
        self.ask(count // 4, wishes="seconds=100, submit=lost")
        name = f"mixed-r{len(self.orders)}.jpg"
        self.ask(1, path=self.picture(name))

    def sql(self, statement: str, **values: Any) -> list[Any]:
        with self.engine.begin() as conn:
            result = conn.execute(text(statement), values)
            return list(result.all()) if result.returns_rows else []

    def status(self, number: int) -> Any:
        [row] = self.sql("SELECT * FROM generations WHERE id = :id", id=self.ids[number])
        return row

    def submitted(self, count: int) -> None:
        """Wait until the provider has got so many submits."""
        wait_for(lambda: len(self.sim.submits()) >= count, f"{count} submits")

    def at_rest(self, timeout: float = PATIENCE) -> float:
        """Wait until everything has ended; the seconds that took."""
        began = time.monotonic()

        def ended() -> bool:
            rows = self.sql("SELECT status FROM generations")
            return all(Status(row.status) in TERMINAL for row in rows)

        try:
            wait_for(ended, "everything ends", timeout)
        except AssertionError:
            raise AssertionError(self._story() or "not at rest") from None
        return time.monotonic() - began

    def remains(self) -> records.Records:
        operator.reconcile_once(self.env)
        logs = [child.log for child in self.fleet.all]
        return records.read(
            self.engine,
            self.sim,
            orders=self.orders,
            ids=self.ids,
            journal=self.journal,
            logs=logs,
        )

    def check(self) -> records.Records:
        """Everything that must hold, holds."""
        left = self.remains()
        wrong = invariants.broken(left)
        assert not wrong, self._story(left)
        return left

    def _story(self, left: records.Records | None = None) -> str:
        left = left or self.remains()
        wrong = invariants.broken(left)
        numbers = dict.fromkeys(b.number for found in wrong.values() for b in found)
        lines = [f"{name}: {b}" for name, found in wrong.items() for b in found[:8]]
        for number in list(numbers)[:3]:
            lines += telling.timeline(left, number)
        lines += [line for child in self.fleet.all for line in child.text().splitlines()[-15:]]
        return "\n".join(lines)

    def close(self) -> None:
        self.fleet.stop()
        self.tap.__exit__()
        self.engine.dispose()


_broker_db = itertools.count()
MakeArena = Callable[..., Arena]


def arenas(
    forks: ForkServer,
    own_postgres: EmbeddedPostgres,
    own_valkey: EmbeddedValkey,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[MakeArena]:
    """Build arenas with settings by name; each has a provider and a database of its own."""
    made: list[Arena] = []
    for name in [name for name in os.environ if name.startswith("SEEDANCE_")]:
        del os.environ[name]
    config = simulator.Config(
        api_keys=["sk-chaos-arena-77d1"], credits=ENOUGH_CREDITS, speed=100, random_seed=1
    )
    with simulator.serve(config) as sim:

        def make(**settings: str) -> Arena:
            for arena in made:
                arena.close()
            sim.reset(**config.model_dump(mode="json"))
            own_valkey.start()
            folder = tmp_path_factory.mktemp("arena")
            made.append(Arena(forks, own_postgres, own_valkey, sim, folder, settings))
            return made[-1]

        yield make
        for arena in made:
            arena.close()


@pytest.fixture
def make_arena(
    forks: ForkServer,
    own_postgres: EmbeddedPostgres,
    own_valkey: EmbeddedValkey,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[MakeArena]:
    yield from arenas(forks, own_postgres, own_valkey, tmp_path_factory)


@pytest.fixture(scope="module")
def shared_arena(
    forks: ForkServer,
    own_postgres: EmbeddedPostgres,
    own_valkey: EmbeddedValkey,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Arena]:
    """Two workers that see one strike after the other."""
    making = arenas(forks, own_postgres, own_valkey, tmp_path_factory)
    arena = next(making)()
    arena.workers(2)
    yield arena
    next(making, None)


__all__ = ["Arena", "MakeArena", "wait_for"]
