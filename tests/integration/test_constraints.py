"""What must not be is refused by the database itself, whoever writes it."""

from collections.abc import Iterator

import pytest
from sqlalchemy import Connection, Engine, func, text
from sqlalchemy.exc import DBAPIError, IntegrityError

from models.lifecycle import LIVE, TERMINAL, Status
from tests.integration import rows
from tests.integration.rows import make

S = Status


@pytest.fixture
def conn(engine: Engine) -> Iterator[Connection]:
    """A connection whose changes are undone at the end."""
    with engine.connect() as conn:
        yield conn


@pytest.mark.parametrize("status", S)
def test_each_status_can_be_as_it_should(conn, status):
    make(conn, status)


WRONG = [
    (S.ACCEPTED, "status = 'lost'", "status_known"),
    (S.ACCEPTED, "status = NULL", "status"),
    *[(status, "finished_at = NULL", "ended_has_time") for status in sorted(TERMINAL)],
    *[(status, "due_at = now()", "unended_is_due") for status in sorted(TERMINAL)],
    *[(s, "finished_at = now()", "ended_has_time") for s in sorted(LIVE | {S.ACCEPTED})],
    *[(s, "due_at = NULL", "unended_is_due") for s in sorted(LIVE | {S.ACCEPTED})],
    (S.RUNNING, "remote_task_id = NULL", "running_has_task"),
    (S.COMPLETED, "remote_task_id = NULL", "running_has_task"),
    *[
        (s, "remote_task_id = 'x'", "unsubmitted_has_no_task")
        for s in (S.ACCEPTED, S.UPLOADING, S.SUBMITTING, S.UNCERTAIN)
    ],
    *[
        (s, change, "in_doubt_has_attempt")
        for s in (S.SUBMITTING, S.UNCERTAIN)
        for change in ("fingerprint = NULL", "attempt = 0")
    ],
    (S.FAILED, "error_code = NULL", "failed_has_code"),
    (S.RUNNING, "attention = 'look'", "attention_has_time"),
    (S.RUNNING, "attention_at = now()", "attention_has_time"),
    (S.RUNNING, "credit_cost = -0.0001", "credit_cost_positive"),
    (S.RUNNING, "estimated_cost = -1", "estimated_cost_positive"),
    (S.RUNNING, "estimated_cost = NULL", "estimated_cost"),
    (S.RUNNING, "request = NULL", "request"),
    (S.RUNNING, "tenant = NULL", "tenant"),
    (S.RUNNING, "status = 'accepted'", "unsubmitted_has_no_task"),
    (S.COMPLETED, "status = 'running'", "ended_has_time|unended_is_due"),
    (S.ACCEPTED, "wait_reason = 'gate backoff'", "wait_reason_known"),
    (S.ACCEPTED, """wait_reason = 'retry', wait_detail = '"late"'""", "wait_detail_of_reason"),
    (S.ACCEPTED, "wait_detail = '{}'", "wait_detail_of_reason"),
]


@pytest.mark.parametrize(
    ("status", "change", "name"), WRONG, ids=[f"{s}: {change}" for s, change, _ in WRONG]
)
def test_a_wrong_generation_is_refused(conn, status, change, name):
    generation_id = make(conn, status)
    with pytest.raises(IntegrityError, match=name):
        conn.execute(text(f"UPDATE generations SET {change} WHERE id = :id"), {"id": generation_id})


REFUSED = [
    ("breakers (account, name) VALUES ('a', 'other')", "name_known"),
    ("breakers (account, name, opened_at) VALUES ('a', 'credit', now())", "open_has_reason"),
    ("breakers (account, name, reason) VALUES ('a', 'credit', 'why')", "open_has_reason"),
    ("stray_tasks (task_id, kind, status) VALUES ('t', 'odd', 'queued')", "kind_known"),
    ("stray_tasks (task_id, kind, status) VALUES ('t', 'second', 'q')", "ours_names_generation"),
    ("stray_tasks (task_id, kind, status) VALUES ('t', 'possible', 'q')", "ours_names_generation"),
    ("uploads (sha256, content_type, size) VALUES ('ab', 'image/png', 1)", "sha256_is_hex"),
    (
        "uploads (sha256, content_type, size, file_path) VALUES (repeat('a', 64), 'x', 1, 'p')",
        "uploaded_has_validity",
    ),
    (
        "uploads (sha256, content_type, size, claimed_by) SELECT repeat('a', 64), 'x', 1, uuidv7()",
        "fk_uploads_claimed_by",
    ),
    (
        "generation_events (generation_id, event) VALUES (gen_random_uuid(), 'accept')",
        "fk_generation_events",
    ),
    ("rejected_messages (reason, body) VALUES (NULL, '')", "reason"),
]


@pytest.mark.parametrize(("into", "name"), REFUSED, ids=[into[:60] for into, _ in REFUSED])
def test_a_wrong_row_is_refused(conn, into, name):
    with pytest.raises(IntegrityError, match=name):
        conn.execute(text(f"INSERT INTO {into}"))


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"outcome": "maybe"}, "outcome_known"),
        ({"outcome": "submitted"}, "task_iff_created"),
        ({"outcome": "adopted"}, "task_iff_created"),
        ({"outcome": "absent", "remote_task_id": "t"}, "task_iff_created"),
        ({"remote_task_id": "t"}, "task_iff_created"),
        ({"settle_at": None}, "settle_at"),
        ({"number": 1}, "pk_submit_attempts"),
    ],
    ids=str,
)
def test_a_wrong_attempt_is_refused(conn, values, name):
    generation_id = make(conn, S.UNCERTAIN)
    with pytest.raises(IntegrityError, match=name):
        rows.attempt(conn, generation_id, **{"number": 2, **values})


def test_no_two_attempts_share_a_drawn_seed_and_fixed_ones_may(conn):
    generation_id = make(conn, S.ACCEPTED)
    for number in (1, 2):
        rows.attempt(conn, generation_id, number, seed=5, seed_drawn=False)
    rows.attempt(conn, generation_id, 3, seed=5)
    with pytest.raises(IntegrityError, match="uq_submit_attempts_seed"):
        rows.attempt(conn, generation_id, 4, seed=5)


def test_a_remote_task_belongs_to_one_generation_for_ever(conn):
    make(conn, S.COMPLETED, remote_task_id="t")
    with pytest.raises(IntegrityError, match="remote_task_id"):
        make(conn, S.RUNNING, remote_task_id="t")


@pytest.mark.parametrize("status", [S.SUBMITTING, S.UNCERTAIN])
def test_one_fingerprint_is_in_doubt_once(conn, status):
    make(conn, S.RUNNING, fingerprint="f")
    make(conn, S.ACCEPTED, fingerprint="f")
    make(conn, S.UNCERTAIN, fingerprint="f")
    with pytest.raises(IntegrityError, match="uq_generations_in_doubt"):
        make(conn, status, fingerprint="f")


def test_an_idempotency_key_is_unique_for_its_tenant(conn):
    make(conn, S.COMPLETED, idempotency_key="k")
    make(conn, S.ACCEPTED, idempotency_key="k", tenant="other")
    make(conn, S.ACCEPTED, idempotency_key=None)
    with pytest.raises(IntegrityError, match="idempotency_key"):
        make(conn, S.ACCEPTED, idempotency_key="k")


def test_credits_are_exact(conn):
    generation_id = make(conn, S.RUNNING, estimated_cost="0.1", credit_cost="26.4960")
    row = rows.read(conn, generation_id)
    assert (str(row.estimated_cost), str(row.credit_cost)) == ("0.1000", "26.4960")


def test_history_goes_with_its_generation(conn):
    generation_id = make(conn, S.RUNNING)
    conn.execute(text("DELETE FROM generations WHERE id = :id"), {"id": generation_id})
    assert rows.attempts(conn, generation_id) == []


def test_the_database_keeps_the_time_in_utc(conn):
    assert rows.db_now(conn).utcoffset().total_seconds() == 0
    assert conn.execute(func.current_setting("TimeZone").select()).scalar_one() == "UTC"


def test_a_statement_that_waits_too_long_for_a_lock_is_given_up(engine):
    with engine.begin() as conn:
        generation_id = make(conn, S.RUNNING)
    with engine.connect() as first, engine.connect() as second:
        lock = text("SELECT 1 FROM generations WHERE id = :id FOR UPDATE")
        first.execute(lock, {"id": generation_id})
        assert second.execute(func.current_setting("lock_timeout").select()).scalar_one() == "10s"
        second.execute(text("SET LOCAL lock_timeout = '50ms'"))
        with pytest.raises(DBAPIError, match="lock timeout"):
            second.execute(lock, {"id": generation_id})
