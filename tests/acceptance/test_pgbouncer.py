"""The service behind PgBouncer in transaction mode, with fewer sessions than threads."""

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import text

import simulator
from models.database import make_engine
from models.lifecycle import Status
from tests import pgbouncer
from tests.acceptance.conftest import Service, wait_for
from worker import migrate
from worker.embedded_postgres import EmbeddedPostgres
from worker.runtime import Runtime

pytestmark = pytest.mark.skipif(pgbouncer.ABSENT, reason=pgbouncer.WHY_ABSENT)


@pytest.fixture
def bouncer(tmp_path: Path, postgres: EmbeddedPostgres) -> Iterator[pgbouncer.PgBouncer]:
    server = pgbouncer.PgBouncer(tmp_path / "pgbouncer", postgres.url())
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture
def environment(environment: dict[str, str], bouncer: pgbouncer.PgBouncer) -> dict[str, str]:
    url = bouncer.url(environment["SEEDANCE_DATABASE_URL"])
    return {**environment, "SEEDANCE_DATABASE_URL": url}


def test_workers_do_everything_once_through_a_pooler(service: Service, sim: simulator.Simulator):
    # Woken by NOTIFY alone, within a tick that is longer than the test.
    slow_tick = {"SEEDANCE_TICK": "60"}
    killed = service.ready(service.worker(**slow_tick))
    first = service.enqueue("a cat")
    assert service.ended(first, 50).status is Status.COMPLETED, "it was woken"
    other = service.ready(service.worker())
    ids = [service.enqueue(f"cat {number} [sim: seconds=60]") for number in range(20)]
    wait_for(lambda: len(sim.submits()) >= 5, "some are submitted")
    killed.kill()

    views = [service.ended(generation_id, 120) for generation_id in ids]

    assert {view.status for view in views} == {Status.COMPLETED}
    assert len(sim.submits()) == len(ids) + 1
    for process in (killed, other):
        for word in ("prepared statement", "unsupported startup parameter"):
            assert word not in process.text()


def test_times_are_told_in_utc_whatever_session_is_handed_out(rt: Runtime):
    with rt.engine.connect() as conn:
        name = conn.execute(text("SELECT current_database()")).scalar_one()
        conn.execute(text(f"ALTER DATABASE {name} SET timezone = 'Asia/Tokyo'"))
        conn.commit()
    rt.engine.dispose()
    # One goes first, and so takes the session that the other has just left; then all at once.
    for _ in range(3):
        with rt.engine.connect() as one:
            assert one.execute(text("SHOW TimeZone")).scalar_one() == "UTC"
            with rt.engine.connect() as two, rt.engine.connect() as three:
                for conn in (three, two):
                    assert conn.execute(text("SHOW TimeZone")).scalar_one() == "UTC"


def test_a_migration_goes_to_postgresql_itself(
    bouncer: pgbouncer.PgBouncer, postgres: EmbeddedPostgres
):
    name = f"empty_{uuid.uuid4().hex[:8]}"
    engine = make_engine(bouncer.url(postgres.create_database(name)))
    try:
        assert migrate.upgrade(engine).up_to_date
    finally:
        engine.dispose()
