"""What the schedule asks again and again: its plans, with much that has ended and much live.

Each statement is caught as it is sent and explained with its own values. A plan is judged by the
rows of `generations` that it looks at: none may grow with what has ended, and who claims a hundred
looks at about a hundred. benchmarks/intake.py has the same with a million, and the times.
"""

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, event, text

from models import schedule
from models.observing import turns
from tests.integration import rows
from worker.embedded_postgres import EmbeddedPostgres

ENDED, LIVE, DUE, SOON, WAITING = 100_000, 10_000, 300, 40, 2_000

_FILL = """
    INSERT INTO generations (id, status, request, estimated_cost, tenant, created_at, submitted_at,
        finished_at, due_at, remote_task_id, error_code, attempt, fingerprint, lease, polls)
    SELECT gen_random_uuid(), given.status, '{"model": "seedance-2.0", "resolution": "720p"}', 9,
        'tenant ' || n % 20, now() - n * interval '1 s', now() - n * interval '1 s',
        CASE WHEN given.due IS NULL THEN now() - n * interval '1 s' END,
        now() + given.due * interval '1 s' + n * interval '1 ms',
        CASE WHEN given.status IN ('running', 'completed') THEN 'task ' || name || n END,
        CASE WHEN given.status = 'failed' THEN 'X' END, 1, name || n, 1, 1
    FROM generate_series(1, :rows) n CROSS JOIN (VALUES
        (CAST(:status AS text), CAST(:due AS float8), CAST(:name AS text))
    ) given (status, due, name)
"""


@pytest.fixture(scope="module")
def database(postgres: EmbeddedPostgres) -> Iterator[Engine]:
    with rows.fresh_database(postgres) as engine:
        with engine.begin() as conn:
            for status, due, number in (
                ("completed", None, ENDED * 9 // 10),
                ("failed", None, ENDED // 10),
                ("running", 3600, LIVE),
                ("running", -DUE, DUE),
                ("running", 2, SOON),
                ("accepted", -WAITING, WAITING),
            ):
                given = {"status": status, "due": due, "rows": number, "name": f"{status}{due}"}
                conn.execute(text(_FILL), given)
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
            conn.execute(text("VACUUM ANALYZE"))
        yield engine


@pytest.fixture
def conn(database: Engine) -> Iterator[Connection]:
    """A connection whose changes are undone at the end."""
    with database.connect() as conn:
        yield conn


def caught(conn: Connection, ask: Callable[[], object]) -> list[tuple[str, Any]]:
    """The statements of `ask`, whose changes are undone, each with its values."""
    sent: list[tuple[str, Any]] = []

    def catch(
        conn: Connection, cursor: Any, statement: str, parameters: Any, context: Any, many: bool
    ) -> None:
        sent.append((statement, parameters))

    before = conn.begin_nested()
    event.listen(conn, "before_cursor_execute", catch)
    ask()
    event.remove(conn, "before_cursor_execute", catch)
    before.rollback()
    assert sent
    return sent


def looks(conn: Connection, ask: Callable[[], object]) -> int:
    """The rows of `generations` that the plans of `ask`'s statements look at; no scan of it all."""
    seen = 0
    for statement, parameters in caught(conn, ask):
        if "generations" not in statement:
            continue
        before = conn.begin_nested()
        explained = conn.exec_driver_sql(f"EXPLAIN (ANALYZE, FORMAT JSON) {statement}", parameters)
        [plan] = explained.scalar_one()
        before.rollback()
        for node in _nodes(plan["Plan"]):
            if node.get("Relation Name") != "generations" or node["Node Type"] == "ModifyTable":
                continue
            assert node["Node Type"] != "Seq Scan", statement
            left_out = sum(
                node.get(f"Rows Removed by {why}", 0) for why in ("Filter", "Index Recheck")
            )
            seen += round((node["Actual Rows"] + left_out) * node["Actual Loops"])
    return seen


def numbered(statement: str) -> str:
    """A statement's parameters by number, as the server has them."""
    names = list(dict.fromkeys(re.findall(r"%\((\w+)\)s", statement)))
    return re.sub(r"%\((\w+)\)s", lambda m: f"${names.index(m[1]) + 1}", statement)


def _nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for inner in plan.get("Plans", []):
        yield from _nodes(inner)


def test_a_claim_of_a_hundred_looks_at_a_hundred(conn):
    claimed: list[schedule.Claim] = []

    def claim() -> None:
        claimed.extend(schedule.claim_due(conn, 100, lease_seconds=60))

    assert looks(conn, claim) <= 300, "found, locked, and found again to be changed"
    assert len(claimed) == 100


@pytest.mark.parametrize("by_list", [False, True])
def test_the_plans_that_a_prepared_statement_keeps_use_the_index_as_well(conn, by_list):
    """They are made for all values: an index for some is only found by words in the statement."""

    def ask() -> None:
        schedule.claim_due(conn, 100, lease_seconds=60, by_list=by_list)
        schedule.next_due_in(conn, by_list=by_list)

    asked = [statement for statement, _ in caught(conn, ask) if "generations" in statement]
    assert len(asked) == 3
    for statement in asked:
        explained = conn.exec_driver_sql(
            f"EXPLAIN (GENERIC_PLAN, FORMAT JSON) {numbered(statement)}"
        )
        nodes = list(_nodes(explained.scalar_one()[0]["Plan"]))
        due = "ix_generations_retry" if "retry" in statement else "ix_generations_due"
        assert due in {node.get("Index Name") for node in nodes}, statement
        assert "Seq Scan" not in {node["Node Type"] for node in nodes}


def test_the_next_one_due_is_found_by_itself(conn):
    assert looks(conn, lambda: schedule.next_due_in(conn)) <= 2
    conn.execute(
        text("UPDATE generations SET due_at = now() + interval '1 h' WHERE due_at IS NOT NULL")
    )
    assert looks(conn, lambda: schedule.next_due_in(conn, within=1)) <= 2


def test_whether_anything_waits_is_one_row(conn):
    assert schedule.waits(conn).accepted
    assert looks(conn, lambda: schedule.waits(conn)) <= 2


def test_an_admission_looks_at_what_is_live_and_at_nothing_that_has_ended(conn):
    admitted: list[schedule.Claim] = []

    def admit() -> None:
        admitted.extend(
            schedule.admit(conn, 50, max_in_flight=10**6, lease_seconds=60, ceiling=None)
        )

    assert looks(conn, admit) <= 2 * (LIVE + DUE + SOON) + 3 * WAITING
    assert len(admitted) == 50


def test_whether_the_task_list_pays_is_asked_of_what_is_due_soon(conn):
    """Not of all that runs, which each worker would count at each tick."""
    conn.execute(
        text(
            "UPDATE generations SET due_at = now() + CASE WHEN fingerprint LIKE 'running2%'"
            " THEN interval '2 s' ELSE interval '1 h' END"
            " WHERE fingerprint LIKE 'running2%' OR due_at < now()"
        )
    )

    def take() -> None:
        assert turns.take(conn, least=SOON + 1, every=5, lease_seconds=60) == turns.Turn(False)

    assert looks(conn, take) <= SOON

    def take_more() -> None:
        assert turns.take(conn, least=SOON, every=5, lease_seconds=60) == turns.Turn(False)

    assert looks(conn, take_more) <= 2 * SOON + 50 * SOON
