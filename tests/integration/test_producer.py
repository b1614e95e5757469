"""What a producer calls, as a producer calls it."""

import asyncio
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from typing import Any

import psycopg
import pytest
from sqlalchemy import Engine, event, func, select, text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from models import intake
from models.lifecycle import Status
from models.tables import Generation
from tests.integration import rows
from worker import aproducer, producer_database
from worker.embedded_postgres import EmbeddedPostgres
from worker.producer import (
    GenerationRequest,
    IdempotencyConflict,
    InvalidRequest,
    UnknownGenerationError,
    cancel,
    enqueue,
    enqueue_many,
    get,
)
from worker.settings import SettingsError

REQUEST = {"content": [{"type": "text", "text": "a cat"}]}


@pytest.fixture(scope="module")
def database(postgres: EmbeddedPostgres) -> Iterator[Engine]:
    with rows.fresh_database(postgres) as engine:
        yield engine


@pytest.fixture
def engine(database: Engine, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    """A producer's process: it knows the database's address and nothing else."""
    url = database.url.render_as_string(hide_password=False)
    monkeypatch.setenv("SEEDANCE_DATABASE_URL", url)
    yield database
    for own in producer_database._engines.values():
        own.dispose()
    producer_database._engines.clear()
    with database.begin() as conn:
        conn.execute(text("TRUNCATE generations CASCADE"))
        conn.execute(text("DROP TABLE IF EXISTS orders"))


def count(engine: Engine) -> int:
    with engine.connect() as conn:
        return conn.execute(select(func.count()).select_from(Generation)).scalar_one()


def test_enqueue_and_get(engine):
    generation_id = enqueue(REQUEST, metadata={"order": 7}, tenant="shop", priority=2)
    view = get(generation_id)
    assert isinstance(generation_id, uuid.UUID)
    assert (view.status, view.tenant, view.priority) == (Status.ACCEPTED, "shop", 2)
    assert (view.metadata, view.estimated_cost) == ({"order": 7}, Decimal(9))
    assert not view.ended


def test_a_typed_request_is_as_good(engine):
    request = GenerationRequest.model_validate(REQUEST)
    assert get(enqueue(request)).request == get(enqueue(REQUEST)).request


def test_with_the_callers_session_both_are_there_or_neither(engine):
    with engine.begin() as conn:
        conn.execute(text("CREATE TABLE orders (generation_id uuid)"))
    insert = text("INSERT INTO orders VALUES (:id)")
    with Session(engine) as session:
        generation_id = enqueue(REQUEST, session=session)
        session.execute(insert, {"id": generation_id})
        assert get(generation_id, session=session).status is Status.ACCEPTED
        assert count(engine) == 0, "nobody else sees it before the commit"
        session.rollback()
    assert count(engine) == 0
    with Session(engine) as session, session.begin():
        generation_id = enqueue(REQUEST, session=session)
        session.execute(insert, {"id": generation_id})
    assert get(generation_id).id == generation_id
    with engine.connect() as conn:
        assert conn.execute(text("SELECT generation_id FROM orders")).scalars().all() == [
            generation_id
        ]


def test_a_conflict_leaves_the_callers_transaction_usable(engine):
    with Session(engine) as session, session.begin():
        enqueue(REQUEST, session=session, idempotency_key="k")
        other = {"content": [{"type": "text", "text": "a dog"}]}
        with pytest.raises(IdempotencyConflict):
            enqueue(other, session=session, idempotency_key="k")
        enqueue(other, session=session, idempotency_key="k2")
    assert count(engine) == 2


def test_a_connection_is_as_good_as_a_session(engine):
    with engine.connect() as conn:
        enqueue(REQUEST, session=conn)
        conn.rollback()
    assert count(engine) == 0


def test_a_repeated_call_returns_the_first_id(engine):
    assert len({enqueue(REQUEST, idempotency_key="k") for _ in range(3)}) == 1
    assert count(engine) == 1


def test_a_refused_request_raises_and_stores_nothing(engine):
    with pytest.raises(InvalidRequest, match="duration"):
        enqueue({**REQUEST, "duration": 99})
    with pytest.raises(InvalidRequest, match="notify"):
        enqueue(REQUEST, notify="https://example.com")
    assert count(engine) == 0


def test_many_in_their_order(engine):
    wanted = [{**REQUEST, "duration": 4 + n % 10} for n in range(30)]
    ids = enqueue_many(iter(wanted), metadata={"batch": 1})
    assert [get(one).request["duration"] for one in ids] == [r["duration"] for r in wanted]
    assert enqueue_many([]) == []


def test_many_in_several_statements_are_still_all_or_none(engine, monkeypatch):
    monkeypatch.setattr(intake, "BATCH", 3)
    keys = [f"k{n}" for n in range(8)]
    ids = enqueue_many([REQUEST] * 8, idempotency_keys=keys)
    assert len(set(ids)) == 8
    assert enqueue_many([REQUEST] * 8, idempotency_keys=keys) == ids
    other = {"content": [{"type": "text", "text": "a dog"}]}
    with pytest.raises(IdempotencyConflict):
        enqueue_many([REQUEST] * 7 + [other], idempotency_keys=["new", *keys[1:]])
    assert count(engine) == 8, "not even the first of them"


def test_a_conflict_among_many_leaves_nothing_of_them_in_the_callers_transaction(engine):
    other = {"content": [{"type": "text", "text": "a dog"}]}
    with Session(engine) as session, session.begin():
        first = enqueue(REQUEST, session=session, idempotency_key="k")
        with pytest.raises(IdempotencyConflict, match=f"'k'.*{first}"):
            enqueue_many([REQUEST, other], session=session, idempotency_keys=["new", "k"])
        enqueue(other, session=session, idempotency_key="k2")
    assert count(engine) == 2


def test_two_lists_with_the_same_keys_do_not_block_each_other(engine, monkeypatch):
    """Each takes its keys in an order of its own; over all its statements they are taken in one."""
    monkeypatch.setattr(intake, "BATCH", 1)
    for turn in range(5):
        keys = [f"{turn}-{n}" for n in range(40)]
        ready = threading.Barrier(2)

        def run(mine: list[str], ready: threading.Barrier = ready) -> list[uuid.UUID]:
            ready.wait(10)
            return enqueue_many([REQUEST] * len(mine), idempotency_keys=mine)

        with ThreadPoolExecutor(2) as pool:
            ahead, back = pool.map(run, (keys, keys[::-1]))
        assert ahead == back[::-1]
    assert count(engine) == 200


def _end_connections(engine: Engine) -> None:
    """As a restart of the server, or of what stands before it, does."""
    with engine.connect() as conn:
        ended = conn.execute(
            text(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
                " WHERE application_name = 'seedance-producer'"
            )
        ).scalars()
        assert list(ended) == [True]


def test_a_connection_that_died_fails_no_enqueue(engine, monkeypatch):
    monkeypatch.setattr(producer_database, "TRUSTED", 3600.0)  # it is not looked at before
    enqueue(REQUEST)
    _end_connections(engine)
    enqueue(REQUEST)
    _end_connections(engine)
    assert len(enqueue_many([REQUEST] * 3)) == 3
    assert count(engine) == 5


def test_one_that_was_idle_is_looked_at_before_it_is_used(engine, monkeypatch):
    monkeypatch.setattr(producer_database, "TRUSTED", 1e-9)
    generation_id = enqueue(REQUEST)
    _end_connections(engine)
    assert get(generation_id).status is Status.ACCEPTED, "a read is not tried again"


@pytest.mark.parametrize("budget", [False, True])
def test_stored_though_the_answer_was_lost_it_is_still_one(engine, budget):
    if budget:
        with engine.begin() as conn:
            conn.execute(text("INSERT INTO budgets VALUES ('default', 'day', 9, 'refuse')"))
    own = producer_database.engine()
    lost = []

    def lose(dbapi_connection: Any) -> None:
        if not lost:
            lost.append(1)
            dbapi_connection.close()
            raise psycopg.OperationalError("the connection is lost")

    def answered(conn, cursor, statement, parameters, context, many):
        if "INSERT INTO generations" in statement and not budget:
            lose(conn.connection.driver_connection)

    event.listen(own, "after_cursor_execute", answered)
    if budget:
        commit = own.dialect.do_commit

        def committed(dbapi_connection):
            commit(dbapi_connection)
            lose(dbapi_connection.driver_connection)

        own.dialect.do_commit = committed
    generation_id = enqueue(REQUEST, idempotency_key="k")
    assert lost
    assert count(engine) == 1
    assert get(generation_id).status is Status.ACCEPTED
    assert enqueue(REQUEST, idempotency_key="k") == generation_id
    with engine.begin() as conn:
        conn.execute(text("TRUNCATE budgets"))


def test_the_wrong_one_of_many_is_named_by_its_place(engine):
    with pytest.raises(InvalidRequest, match=r"requests\[2\]\.duration"):
        enqueue_many([REQUEST, REQUEST, {**REQUEST, "duration": 3}])
    with pytest.raises(InvalidRequest, match="one per request"):
        enqueue_many([REQUEST], idempotency_keys=["a", "b"])
    assert count(engine) == 0


def test_cancel_before_the_submission_ends_it(engine):
    generation_id = enqueue(REQUEST)
    assert cancel(generation_id).status is Status.CANCELLED
    assert cancel(generation_id).status is Status.CANCELLED, "asking again is no error"


def test_cancel_within_the_callers_transaction(engine):
    generation_id = enqueue(REQUEST)
    with Session(engine) as session:
        assert cancel(generation_id, session=session).status is Status.CANCELLED
        session.rollback()
    assert get(generation_id).status is Status.ACCEPTED


def test_cancel_of_a_running_one_keeps_the_wish(engine):
    with engine.begin() as conn:
        generation_id = rows.make(conn, Status.RUNNING)
    view = cancel(generation_id)
    assert view.status is Status.RUNNING
    assert view.cancel_requested_at is not None


def test_an_unknown_id_is_said_so(engine):
    for call in (get, cancel):
        with pytest.raises(UnknownGenerationError, match="there is no generation"):
            call(uuid.uuid4())


def test_without_an_address_it_says_which_variable(engine, monkeypatch):
    monkeypatch.delenv("SEEDANCE_DATABASE_URL")
    with pytest.raises(SettingsError, match="SEEDANCE_DATABASE_URL is not set"):
        enqueue(REQUEST)
    monkeypatch.setenv("SEEDANCE_DATABASE_URL", "mysql://u:secret@h/db")
    with pytest.raises(SettingsError, match="SEEDANCE_DATABASE_URL") as caught:
        enqueue(REQUEST)
    assert "secret" not in str(caught.value)


def test_one_key_is_not_a_key_for_each_request(engine):
    """Text is a sequence too: of its characters."""
    with pytest.raises(InvalidRequest, match="idempotency_keys is 'ab'; allowed: a list"):
        enqueue_many([REQUEST, REQUEST], idempotency_keys="ab")
    assert count(engine) == 0


def test_a_session_of_the_wrong_kind_is_named(engine):
    """Asked for its connection, an AsyncSession gives a coroutine that nobody awaits."""
    other = create_async_engine(engine.url)
    for wrong in (AsyncSession(other), other.connect(), engine, other, "session"):
        with pytest.raises(
            InvalidRequest, match=r"session is .*; allowed: a Session or Connection"
        ):
            enqueue(REQUEST, session=wrong)
    with (
        Session(engine) as own,
        pytest.raises(InvalidRequest, match=r"session is .*; allowed: an AsyncSession"),
    ):
        asyncio.run(aproducer.enqueue(REQUEST, session=own))
    assert count(engine) == 0


def test_a_scoped_session_is_a_session(engine):
    sessions = scoped_session(sessionmaker(engine))
    generation_id = enqueue(REQUEST, session=sessions)
    sessions.commit()
    sessions.remove()
    assert get(generation_id).id == generation_id
