"""Shared fixtures: real servers once per process of a run, a fresh database for each test of them.

A test that uses none of them does no I/O; the servers start when first asked for.
"""

import os
import signal
from collections.abc import Callable, Iterator

import pytest
from sqlalchemy import text

import simulator as provider
from models.database import make_engine
from tests.databases import CALM, TEMPLATE, Databases
from worker import migrate
from worker.embedded_postgres import EmbeddedPostgres
from worker.embedded_valkey import EmbeddedValkey
from worker.runtime import Runtime, build
from worker.settings import Settings, load_settings


def pytest_configure(config: pytest.Config) -> None:
    """SIGTERM ends a run as Ctrl-C does: with its servers and workers stopped.

    A shell starts what runs in its background with SIGINT ignored, and every process below
    inherits that: the tests that press Ctrl-C would wait for nothing.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.signal(signal.SIGINT, signal.default_int_handler)


# Imported where they are needed: a run of one process does without xdist.


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    from tests import sharing

    return sharing.scheduler(config, log)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    from tests import sharing

    return sharing.processes()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if hasattr(config, "workerinput"):
        from tests import sharing

        sharing.sort(items)


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the machine's environment says must not change a test."""
    for name in list(os.environ):
        if name.startswith("SEEDANCE_"):
            monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedPostgres]:
    """One PostgreSQL server for the run, with a migrated database to copy."""
    folder = tmp_path_factory.mktemp("postgres")
    with EmbeddedPostgres(folder, durable=False) as server:
        engine = make_engine(server.create_database(TEMPLATE))
        migrate.upgrade(engine)
        with engine.begin() as conn:
            conn.execute(text(CALM))
        engine.dispose()
        yield server


@pytest.fixture(scope="session")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedValkey]:
    """One Valkey server for the run."""
    with EmbeddedValkey(tmp_path_factory.mktemp("valkey"), durable=False) as server:
        yield server


@pytest.fixture(scope="session")
def databases(postgres: EmbeddedPostgres) -> Databases:
    """Migrated databases of the run's server."""
    return Databases(postgres)


@pytest.fixture
def database_url(databases: Databases) -> Iterator[str]:
    """The address of an empty, migrated database."""
    with databases.lend() as url:
        yield url


_broker_db = iter(range(1, 1_000_000))


@pytest.fixture
def broker_url(valkey: EmbeddedValkey) -> str:
    """The address of an empty broker."""
    import redis

    url = valkey.url(next(_broker_db) % 15 + 1)
    client = redis.Redis.from_url(url)
    client.flushdb()
    client.close()
    return url


@pytest.fixture(scope="session")
def _simulator() -> Iterator[provider.Simulator]:
    with provider.serve(provider.Config(random_seed=1)) as sim:
        yield sim


@pytest.fixture
def sim(_simulator: provider.Simulator) -> provider.Simulator:
    """A provider without tasks, faults or uploads, whose minutes pass in seconds."""
    _simulator.reset(random_seed=1, speed=100)
    return _simulator


@pytest.fixture
def environment(database_url: str, broker_url: str, sim: provider.Simulator) -> dict[str, str]:
    """Settings of a service against these servers, as a process would get them; small times."""
    return {
        "SEEDANCE_DATABASE_URL": database_url,
        "SEEDANCE_BROKER_URL": broker_url,
        "SEEDANCE_API_KEY": sim.api_key,
        "SEEDANCE_API_BASE_URL": sim.url,
        "SEEDANCE_SEND_BUDGET": "2",
        "SEEDANCE_LATE_CREATION": "0.5",
        "SEEDANCE_LIST_LAG": "0.3",
        "SEEDANCE_SETTLE_MARGIN": "0.2",
        "SEEDANCE_LEASE": "3",
        "SEEDANCE_HTTP_TIMEOUT": "1.5",
        "SEEDANCE_HTTP_CONNECT_TIMEOUT": "1",
        "SEEDANCE_POLL_MIN": "0.2",
        "SEEDANCE_POLL_MAX": "0.5",
        "SEEDANCE_TICK": "0.2",
        "SEEDANCE_PROBE_EVERY": "0.5",
        "SEEDANCE_RATE_LIMIT": "1000/second",
    }


MakeRuntime = Callable[..., Runtime]


@pytest.fixture
def make_runtime(environment: dict[str, str]) -> Iterator[MakeRuntime]:
    """Build runtimes for the test's servers, with settings changed by keyword."""
    built: list[Runtime] = []

    def make(**overrides: object) -> Runtime:
        settings: Settings = load_settings(environment, **overrides)
        built.append(build(settings))
        return built[-1]

    yield make
    for rt in built:
        rt.close()


@pytest.fixture
def rt(make_runtime: MakeRuntime) -> Runtime:
    """A runtime with the test's settings."""
    return make_runtime()
