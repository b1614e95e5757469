"""Accepting a request: stored once however often it is sent, in whoever's transaction."""

import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, func, select, text
from sqlalchemy.exc import OperationalError

from models import intake, schedule
from models.intake import IdempotencyConflict, RefusedRequest
from models.lifecycle import Status
from models.tables import Generation
from tests.integration import rows
from tests.integration.rows import events, read
from worker.requests import new_generation

REQUEST = {"content": [{"type": "text", "text": "a cat"}]}
OTHER = {"content": [{"type": "text", "text": "a dog"}]}


@pytest.fixture
def conn(engine: Engine) -> Iterator[Connection]:
    """A connection whose changes are undone at the end."""
    with engine.connect() as conn:
        yield conn


@pytest.fixture
def shared(engine: Engine) -> Iterator[Engine]:
    """For tests with several connections, which must commit."""
    yield engine
    with engine.begin() as conn:
        conn.execute(text("TRUNCATE generations CASCADE"))


def count(conn: Connection) -> int:
    return conn.execute(select(func.count()).select_from(Generation)).scalar_one()


def test_a_request_is_stored_with_everything_its_producer_gave(conn):
    deadline = datetime(2100, 1, 1, tzinfo=UTC)
    new = new_generation(
        {**REQUEST, "seed": 0},
        idempotency_key="k",
        priority=-3,
        tenant="shop",
        metadata={"order": 7},
        deadline=deadline,
    )
    assert intake.accept(conn, new) == intake.Accepted(new.id, created=True)
    row = read(conn, new.id)
    assert (row.status, row.tenant, row.priority) == (Status.ACCEPTED, "shop", -3)
    assert (row.metadata, row.idempotency_key) == ({"order": 7}, "k")
    assert (row.deadline_at, row.due_at) == (deadline, rows.db_now(conn))
    assert (row.request, row.estimated_cost) == (new.request, new.estimated_cost)
    assert row.fingerprint, "a seed fixed by the producer is known before admission"
    assert events(conn, new.id) == [("accept", None, "accepted")]


@pytest.mark.parametrize("seed", [None, -1])
def test_without_a_fixed_seed_nothing_is_waited_for(conn, seed):
    new = new_generation({**REQUEST, "seed": seed})
    intake.accept(conn, new)
    assert read(conn, new.id).fingerprint is None


def test_the_same_id_again_changes_nothing(conn):
    first = new_generation(REQUEST, generation_id=uuid.uuid4())
    again = new_generation(REQUEST, generation_id=first.id, priority=9)
    assert intake.accept(conn, first).created
    assert intake.accept(conn, again) == intake.Accepted(first.id, created=False)
    assert read(conn, first.id).priority == 0
    assert len(events(conn, first.id)) == 1


def test_the_same_key_again_returns_the_first_id(conn):
    first = intake.accept(conn, new_generation(REQUEST, idempotency_key="k"))
    again = intake.accept(conn, new_generation(REQUEST, idempotency_key="k"))
    assert again == intake.Accepted(first.id, created=False)
    assert count(conn) == 1


def test_a_key_counts_also_after_the_generation_has_ended(conn):
    generation_id = rows.make(
        conn, Status.FAILED, idempotency_key="k", request=new_generation(REQUEST).request
    )
    assert intake.accept(conn, new_generation(REQUEST, idempotency_key="k")).id == generation_id


def test_each_tenant_has_its_own_keys(conn):
    ids = {
        intake.accept(conn, new_generation(REQUEST, idempotency_key="k", tenant=tenant)).id
        for tenant in ("a", "b", None)
    }
    assert len(ids) == 3


def test_a_key_or_id_for_a_different_request_is_a_conflict(conn):
    first = new_generation(REQUEST, idempotency_key="k")
    intake.accept(conn, first)
    with pytest.raises(IdempotencyConflict, match=r"idempotency_key 'k'.*" + str(first.id)):
        intake.accept(conn, new_generation(OTHER, idempotency_key="k"))
    with pytest.raises(IdempotencyConflict, match=f"id {first.id}"):
        intake.accept(conn, new_generation(OTHER, generation_id=first.id))
    assert read(conn, first.id).request == first.request
    assert count(conn) == 1


def test_a_default_written_out_is_the_same_request(conn):
    intake.accept(conn, new_generation(REQUEST, idempotency_key="k"))
    spelt = {**REQUEST, "duration": 5, "ratio": "16:9", "model": "seedance-2.0"}
    assert not intake.accept(conn, new_generation(spelt, idempotency_key="k")).created


def test_many_at_once_in_their_order_with_repeats_among_them(conn):
    old = intake.accept(conn, new_generation(REQUEST, idempotency_key="k1"))
    new = [new_generation(REQUEST, idempotency_key=f"k{n % 3}") for n in range(7)]
    result = intake.accept_many(conn, new)
    assert [one.created for one in result] == [True, False, True, False, False, False, False]
    assert [one.id for one in result] == [
        new[0].id, old.id, new[2].id, new[0].id, old.id, new[2].id, new[0].id,
    ]  # fmt: skip
    assert count(conn) == 3
    assert intake.accept_many(conn, []) == []


def test_a_thousand_are_one_statement_for_rows_and_events(conn):
    new = [new_generation(REQUEST) for _ in range(1000)]
    assert all(one.created for one in intake.accept_many(conn, new))
    told = conn.execute(text("SELECT count(*) FROM generation_events")).scalar_one()
    assert (count(conn), told) == (1000, 1000)


def test_with_the_callers_transaction_it_comes_and_goes(shared):
    new = new_generation(REQUEST)
    with shared.connect() as conn, shared.connect() as other:
        intake.accept(conn, new)
        assert count(other) == 0
        other.rollback()
        conn.rollback()
        assert count(other) == 0


def race(engine: Engine, *requests: dict, key: str) -> list[Any]:
    ready = threading.Barrier(len(requests))

    def run(request: dict) -> object:
        new = new_generation(request, idempotency_key=key)
        with engine.begin() as conn:
            conn.execute(text("SELECT 1"))
            ready.wait(5)
            try:
                return intake.accept(conn, new)
            except IdempotencyConflict as conflict:
                return conflict

    with ThreadPoolExecutor(len(requests)) as pool:
        return list(pool.map(run, requests))


def test_the_same_key_in_many_connections_at_once_makes_one_generation(shared):
    for _ in range(5):
        results = race(shared, *[REQUEST] * 6, key=uuid.uuid4().hex)
        assert sum(result.created for result in results) == 1
        assert len({result.id for result in results}) == 1


def test_two_requests_for_one_key_at_once(shared):
    results = race(shared, REQUEST, OTHER, key=uuid.uuid4().hex)
    assert sorted(type(result).__name__ for result in results) == [
        "Accepted",
        "IdempotencyConflict",
    ]


def test_whoever_waits_for_one_that_is_undone_takes_its_place(shared):
    """The second waits for the first's end, not for its result."""
    key = uuid.uuid4().hex
    with shared.connect() as first, ThreadPoolExecutor(1) as pool:
        intake.accept(first, new_generation(REQUEST, idempotency_key=key))

        def second() -> intake.Accepted:
            with shared.begin() as conn:
                return intake.accept(conn, new_generation(OTHER, idempotency_key=key))

        waiting = pool.submit(second)
        first.rollback()
        assert waiting.result(10).created


def test_dispatchers_hear_of_it_and_not_of_repeats(shared):
    with shared.connect() as listening:
        listening.execute(text(f"LISTEN {schedule.CHANNEL}"))
        listening.commit()
        raw = listening.connection.driver_connection
        new = new_generation(REQUEST)
        with shared.begin() as conn:
            intake.accept(conn, new)
        assert len(list(raw.notifies(timeout=5, stop_after=1))) == 1
        with shared.begin() as conn:
            intake.accept(conn, new)
            conn.execute(text("NOTIFY done"))
        listening.execute(text("LISTEN done"))
        listening.commit()
        assert list(raw.notifies(timeout=0.05)) == []
        listening.execute(text("UNLISTEN *"))
        listening.commit()


def test_a_refused_request_is_a_failed_generation_that_says_why(conn):
    refused = RefusedRequest(uuid.uuid4(), {"duration": 99}, "duration is 99", metadata={"a": 1})
    assert intake.record_refused(conn, refused)
    assert not intake.record_refused(conn, refused), "delivered again"
    row = read(conn, refused.id)
    assert (row.status, row.error_code, row.error_message) == (
        Status.FAILED,
        "INVALID_REQUEST",
        "duration is 99",
    )
    assert (row.credit_cost, row.metadata) == (0, {"a": 1})
    assert row.finished_at is not None
    assert events(conn, refused.id) == [("reject", None, "failed")]


def test_a_refusal_does_not_touch_a_generation_of_the_same_id(conn):
    new = new_generation(REQUEST)
    intake.accept(conn, new)
    assert not intake.record_refused(conn, RefusedRequest(new.id, {}, "no"))
    assert read(conn, new.id).status == Status.ACCEPTED


def test_a_snapshot_that_cannot_see_the_other_request_says_so(shared):
    """A caller's own REPEATABLE READ transaction, and another's request with the same key."""
    with shared.connect().execution_options(isolation_level="REPEATABLE READ") as conn:
        assert count(conn) == 0  # takes the snapshot
        with shared.begin() as other:
            intake.accept(other, new_generation(REQUEST, idempotency_key="k"))
        with pytest.raises(OperationalError, match="could not serialize access"):
            intake.accept(conn, new_generation(REQUEST, idempotency_key="k"))
