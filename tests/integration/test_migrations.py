"""Migrations: up and down, equal to the models, harmless to running workers, cheap queries."""

import re
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, Engine, event, text

from models import reads, schedule, submission
from models.artifacts import storing
from models.base import Base
from models.database import make_engine
from models.flow_control import breakers, evidence, rules
from models.flow_control import state as flow_state
from models.flow_control.state import FlowState
from models.lifecycle import Status
from models.metrics import pulses
from tests.integration import rows
from worker import migrate
from worker.embedded_postgres import EmbeddedPostgres

ROOT = Path(__file__).parents[2]

CATALOGUE = {
    "columns": """
        SELECT c.relname, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull,
               a.attidentity, pg_get_expr(d.adbin, d.adrelid)
        FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0
        LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
        WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'r' AND NOT a.attisdropped
    """,
    "constraints": """
        SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid)
        FROM pg_constraint WHERE connamespace = 'public'::regnamespace
    """,
    "indexes": "SELECT tablename, indexname, indexdef FROM pg_indexes WHERE schemaname = 'public'",
    "sequences": "SELECT sequencename FROM pg_sequences WHERE schemaname = 'public'",
    "types": """
        SELECT typname FROM pg_type WHERE typnamespace = 'public'::regnamespace
        AND typrelid = 0 AND typelem = 0
    """,
    "functions": "SELECT proname FROM pg_proc WHERE pronamespace = 'public'::regnamespace",
}


def catalogue(engine: Engine) -> dict[str, set[tuple[Any, ...]]]:
    """Everything in the schema but Alembic's own table."""
    with engine.connect() as conn:
        return {
            kind: {
                tuple(row) for row in conn.execute(text(query)) if "alembic_version" not in row[0]
            }
            for kind, query in CATALOGUE.items()
        }


@pytest.fixture
def empty(postgres: EmbeddedPostgres) -> Iterator[Engine]:
    name = f"empty_{uuid.uuid4().hex[:12]}"
    engine = make_engine(postgres.create_database(name))
    yield engine
    engine.dispose()
    postgres.drop_database(name)


def test_up_from_empty_and_down_again_leaves_nothing(empty):
    before = catalogue(empty)
    assert migrate.revision(empty).current is None
    assert migrate.upgrade(empty).up_to_date
    assert catalogue(empty) != before
    migrate.downgrade(empty)
    assert catalogue(empty) == before
    assert not migrate.revision(empty).up_to_date
    assert migrate.upgrade(empty).up_to_date, "and up again"


def test_the_migrations_make_what_the_models_say_to_the_last_check_and_index(engine, empty):
    Base.metadata.create_all(empty)
    by_models, by_migrations = catalogue(empty), catalogue(engine)
    for kind in CATALOGUE:
        assert by_migrations[kind] == by_models[kind], kind
    assert len(by_models["constraints"]) > 30


def test_alembic_finds_nothing_to_migrate(engine):
    with engine.connect() as conn:
        context = MigrationContext.configure(conn, opts={"compare_server_default": True})
        assert compare_metadata(context, Base.metadata) == []


def test_migrating_twice_changes_nothing(engine):
    before = catalogue(engine)
    assert migrate.upgrade(engine).up_to_date
    assert catalogue(engine) == before


def test_an_older_version_leaves_newer_tables_alone(empty):
    """So that it can be started again, its `migrate` and its `up` included."""
    migrate.upgrade(empty)
    with empty.begin() as conn:
        conn.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    before = catalogue(empty)
    found = migrate.upgrade(empty)
    assert (found.current, found.newer, found.up_to_date) == ("9999", True, False)
    assert catalogue(empty) == before


MIGRATE = """
import sys
from models.database import make_engine
from worker import migrate
engine = make_engine(sys.argv[1])
sys.stdin.readline()
print(migrate.upgrade(engine).up_to_date)
"""


def test_two_migrators_at_once(empty):
    """Two processes, as two hosts of a deployment would: Alembic itself is one per process."""
    url = empty.url.render_as_string(hide_password=False)
    migrators = [
        subprocess.Popen(
            [sys.executable, "-c", MIGRATE, url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=ROOT,
        )
        for _ in range(2)
    ]
    for migrator in migrators:
        assert migrator.stdin is not None
        migrator.stdin.write("\n")
        migrator.stdin.flush()
    assert [migrator.communicate(timeout=90)[0] for migrator in migrators] == ["True\n"] * 2
    assert migrate.revision(empty).up_to_date


def test_workers_that_read_and_write_do_not_hold_up_a_migrator_with_nothing_to_do(engine):
    with engine.begin() as conn:
        generation_id = rows.make(conn, Status.RUNNING)
    with engine.connect() as working, engine.connect() as reading:
        working.execute(text("SELECT 1 FROM generations FOR UPDATE"))
        reading.execute(text("SELECT count(*) FROM generations"))
        assert migrate.upgrade(engine).up_to_date
        working.execute(text("UPDATE generations SET polls = polls + 1"))
        working.commit()
    with engine.begin() as conn:
        assert rows.read(conn, generation_id).polls == 1
        conn.execute(text("TRUNCATE generations CASCADE"))


def test_a_migrator_gives_up_rather_than_queue_the_workers_behind_it(empty):
    """Its own wait for a lock ends, the transaction is undone, and a second run succeeds."""
    migrate.upgrade(empty)

    @event.listens_for(empty, "before_cursor_execute", retval=True)
    def _shorter(conn, cursor, statement, parameters, context, executemany):
        return statement.replace("lock_timeout = '5s'", "lock_timeout = '200ms'"), parameters

    before = catalogue(empty)
    with empty.connect() as working:
        for name in Base.metadata.tables:  # whichever the latest migration would change
            working.execute(text(f"SELECT count(*) FROM {name}"))
        with pytest.raises(Exception, match="lock timeout"):
            migrate.downgrade(empty)
        assert catalogue(empty) == before
        working.execute(text("SELECT count(*) FROM generations"))
    migrate.downgrade(empty)


def test_a_connection_that_migrated_goes_back_to_its_usual_limits(empty):
    usual = "SELECT current_setting('lock_timeout'), current_setting('statement_timeout')"
    with empty.connect() as conn:
        limits = conn.execute(text(usual)).one()
    migrate.upgrade(empty)
    with empty.connect() as conn:
        assert conn.execute(text(usual)).one() == limits
        held = conn.execute(text("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"))
        assert held.scalar_one() == 0


CONVERTED: list[tuple[str, str, dict[str, Any] | None]] = [
    ("a decision", "operator", None),
    ("a pause of tenant 'acme': why (ana)", "pause", None),
    ("an equal generation with the same seed", "equal_generation", None),
    ("gate api_key", "breaker", {"breaker": "api_key"}),
    ("gate credit", "breaker", {"breaker": "credit"}),
    ("gate backoff", "rate", {"cause": "backoff"}),
    ("gate backoff, re-opening after X: 1 at a time", "rate", {"cause": "backoff"}),
    ("the request rate", "rate", {"cause": "request_rate"}),
    ("a free slot: the provider has as many tasks as it takes", "concurrency", None),
    ("credits: 9 needed, 2 free", "credits", None),
    ("budget: 9 needed", "budget", None),
    ("its reference", "reference", None),
    ("the intent is 9.0 s old", "retry", {"why": "the intent is 9.0 s old"}),
]


def test_0014_converts_sentences_to_reasons_and_back(empty):
    migrate.upgrade(empty)
    migrate.downgrade(empty, "0013")
    insert = text(
        "INSERT INTO generations (id, status, request, estimated_cost, due_at, priority, waits_for)"
        " VALUES (gen_random_uuid(), 'accepted', '{}', 9, now(), :number, :waits_for)"
    )
    sentences = [None, *(sentence for sentence, _, _ in CONVERTED)]
    with empty.begin() as conn:
        conn.execute(insert, [{"number": n, "waits_for": s} for n, s in enumerate(sentences)])
    assert migrate.upgrade(empty).up_to_date
    found = text("SELECT wait_reason, wait_detail FROM generations ORDER BY priority")
    with empty.connect() as conn:
        converted = [(row.wait_reason, row.wait_detail) for row in conn.execute(found)]
    assert converted == [(None, None), *((reason, detail) for _, reason, detail in CONVERTED)]
    migrate.downgrade(empty, "0013")
    with empty.connect() as conn:
        back = set(conn.execute(text("SELECT waits_for FROM generations")).scalars())
    assert {None, "a decision", "gate api_key", "gate credit", "gate backoff"} <= back


def test_0015_replaces_gates_by_flow_control_and_back(empty):
    """What was closed is opened; an account of which nothing is known is ramped up."""
    migrate.upgrade(empty, "0014")
    before = catalogue(empty)
    with empty.begin() as conn:
        conn.execute(
            text("INSERT INTO gates (name, closed_at, reason) VALUES ('credit', now(), '402')")
        )
        conn.execute(text("INSERT INTO learned_limits (name, value) VALUES ('in_flight', 4)"))
        conn.execute(text("INSERT INTO pulses (name, process) VALUES ('dispatcher', 'w1')"))
        conn.execute(text("INSERT INTO pulses (name, process) VALUES ('reconcile', '')"))
        generation_id = conn.execute(
            text(
                "INSERT INTO generations (id, status, request, estimated_cost, due_at, lease,"
                " attempt, fingerprint) VALUES (gen_random_uuid(), 'uncertain', '{}', 9, now(), 7,"
                " 1, 'x') RETURNING id"
            )
        ).scalar_one()
        conn.execute(
            text(
                "INSERT INTO submit_attempts (generation_id, number, seed, seed_drawn, fingerprint,"
                " settle_at, outcome) VALUES (:id, 1, 5, true, 'x', now(), 'unknown')"
            ),
            {"id": generation_id},
        )
    assert migrate.upgrade(empty).up_to_date
    with empty.connect() as conn:
        found = flow_state.read(conn)
        assert found.ramp_age is not None
        assert (found.concurrency, found.rate, found.outage_age) == (None, None, None)
        assert breakers.read(conn).open == ()
        assert conn.execute(text("SELECT name FROM pulses")).scalars().all() == ["reconcile"]
        kept = "SELECT lease, status, leased_until, claimed_by FROM generations"
        assert tuple(conn.execute(text(kept)).one()) == (7, "uncertain", None, None)
        kept = "SELECT outcome, answered_at, provider_ok FROM submit_attempts"
        assert tuple(conn.execute(text(kept)).one()) == ("unknown", None, None)
    migrate.downgrade(empty, "0014")
    assert catalogue(empty) == before
    with empty.connect() as conn:
        assert conn.execute(text("SELECT count(*) FROM gates")).scalar_one() == 0
        kept = "SELECT lease, status FROM generations"
        assert tuple(conn.execute(text(kept)).one()) == (7, "uncertain")
    assert migrate.upgrade(empty).up_to_date


# --- the queries that run all the time ---------------------------------------------------------


@pytest.fixture(scope="module")
def full(postgres: EmbeddedPostgres) -> Iterator[Engine]:
    """20,000 ended generations, 200 live ones, 500 that wait."""
    with rows.fresh_database(postgres) as engine:
        with engine.begin() as conn:
            conn.execute(
                text("""
                INSERT INTO generations (id, status, request, tenant, estimated_cost, due_at,
                    finished_at, remote_task_id, fingerprint, attempt, submitted_at)
                SELECT gen_random_uuid(), s, '{}', 't' || n % 20, 9,
                    CASE WHEN s <> 'completed' THEN now() + (n % 60 - 30) * interval '1 s' END,
                    CASE WHEN s = 'completed' THEN now() END,
                    CASE WHEN s IN ('completed', 'running') THEN 'task-' || n END,
                    CASE WHEN s <> 'accepted' THEN 'mark-' || n END,
                    CASE WHEN s <> 'accepted' THEN 1 ELSE 0 END,
                    now()
                FROM (SELECT n, CASE WHEN n <= 20000 THEN 'completed' WHEN n <= 20200
                      THEN 'running' ELSE 'accepted' END AS s FROM generate_series(1, 20700) n) x
                """)
            )
            conn.execute(
                text("""
                INSERT INTO submit_attempts (generation_id, number, seed, seed_drawn, fingerprint,
                    settle_at, outcome, remote_task_id, answered_at, provider_ok)
                SELECT id, 1, row_number() OVER (), true, fingerprint, now(), 'submitted',
                    remote_task_id, now() - row_number() OVER () * interval '1 s', true
                FROM generations WHERE attempt = 1
                """)
            )
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
            conn.execute(text("VACUUM ANALYZE"))
        yield engine


def plans(conn: Connection, call) -> list[str]:
    """The plan of each statement that the call makes on the big tables."""
    statements: list[tuple[str, Any]] = []

    def listen(conn, cursor, statement, parameters, context, executemany):
        statements.append((statement, parameters))

    event.listen(conn, "before_cursor_execute", listen)
    try:
        with conn.begin_nested() as point:
            call(conn)
            point.rollback()
    finally:
        event.remove(conn, "before_cursor_execute", listen)
    explained = []
    for statement, parameters in statements:
        if "generations" in statement or "submit_attempts" in statement:
            lines = conn.exec_driver_sql(f"EXPLAIN {statement}", parameters).scalars().all()
            explained.append("\n".join(lines))
    return explained


def admit(conn: Connection) -> None:
    claims = schedule.admit(conn, 40, max_in_flight=240, lease_seconds=60, ceiling=None)
    assert len(claims) == 40


def claim(conn: Connection) -> None:
    assert len(schedule.claim_due(conn, 50, lease_seconds=60)) == 50


def intend(conn: Connection) -> None:
    generation_id = rows.make(conn, Status.UPLOADING)
    timing = submission.Timing(10, 60, 15)
    assert isinstance(
        submission.begin(conn, submission.Wanted(generation_id, 7), timing), submission.Intent
    )


def catch_up(conn: Connection) -> None:
    """A pass with the one before just over, and nothing completed since."""
    pulses.tell(conn, storing.CAUGHT_UP)
    since = storing.behind(conn).since + 2 * storing.OVERLAP
    assert storing.catch_up(conn, storing.Place(since), most=500) == (0, None)


def allowance(conn: Connection) -> None:
    """While submission is ramped up: as far back as a ramp ever lasts."""
    ramping = FlowState(failed_ago=1.0, ramp_age=rules.MAX_RAMP - 1)
    assert flow_state.allowance(conn, ramping) is None


def failed(conn: Connection) -> None:
    assert not evidence.failed(conn, reason="SERVICE_BUSY")


def one_too_many(conn: Connection) -> None:
    generation_id = rows.make(conn, Status.SUBMITTING)
    assert evidence.concurrency_refused(conn, generation_id, 1) == 200


def relax(conn: Connection) -> None:
    """With a limit that may be raised, and a ramp that may be over."""
    conn.execute(
        text(
            "INSERT INTO flow_control (account, concurrency, concurrency_refused,"
            " concurrency_changed_at, ramp_since) VALUES ('default', 5, 6, now() - interval"
            " '1 h', now() - interval '5 min')"
        )
    )
    evidence.relax(conn, max_in_flight=300, max_rate=20.0)
    assert flow_state.read(conn).concurrency.value == 6
    assert flow_state.read(conn).ramp_age is None


@pytest.mark.parametrize(
    ("call", "index"),
    [
        (claim, "ix_generations_due"),
        (admit, "ix_generations_waiting"),
        (admit, "ix_generations_live"),
        (lambda conn: schedule.next_due_in(conn), "ix_generations_due"),
        (lambda conn: schedule.in_flight(conn), "ix_generations_live"),
        (intend, "ix_submit_attempts_seed"),
        (lambda conn: reads.summary(conn), "ix_generations_live"),
        (catch_up, "ix_generations_completed"),
        (allowance, "ix_submit_attempts_answered"),
        (allowance, "ix_generations_live"),
        (failed, "ix_submit_attempts_started"),
        (relax, "ix_submit_attempts_answered"),
        (one_too_many, "ix_generations_live"),
        (lambda conn: schedule.at_work(conn), "ix_generations_live"),
    ],
    ids=[
        *("claim", "admit", "admit: busy tenants", "next_due_in", "in_flight", "intend"),
        *("summary", "catch up", "allowance", "allowance: in progress", "failed", "relax"),
        *("one too many", "at work"),
    ],
)
def test_what_runs_all_the_time_does_not_read_what_has_ended(full, call, index):
    with full.connect() as conn:
        found = plans(conn, call)
    assert found
    for plan in found:
        assert "Seq Scan on generations" not in plan, plan
        assert "Seq Scan on submit_attempts" not in plan, plan
    # Some small index of the live rows will do where the planner likes it better.
    live = ("ix_generations_due", "ix_generations_live") if "generations" in index else ()
    wanted = live if index in live else (index,)
    assert any(name in plan for plan in found for name in wanted), "\n\n".join(found)


def test_waiting_for_what_is_due_does_not_read_what_the_task_list_is_read_for(full):
    """All that runs may be left to the list: only what comes due while it waits is looked at."""
    with full.connect() as conn:
        found = plans(conn, lambda conn: schedule.next_due_in(conn, within=0.5, by_list=True))
    due, retry = found
    for plan in found:
        assert re.search(r"Index Cond: .*due_at", plan), plan
    assert "ix_generations_due" in due
    assert "ix_generations_retry" in retry
