"""Following generations from code: wait, wait_many, events; threads and coroutines alike."""

import asyncio
import inspect
import threading
import time
import typing
import uuid
from collections.abc import Iterator
from decimal import Decimal

import psycopg
import pytest
from sqlalchemy import Engine, text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from models import budgets, telling, transitions
from models.budgets import BudgetView, Period, Policy
from models.lifecycle import Observation, Status
from tests.integration import rows
from tests.integration.invariants import in_background
from worker import aproducer, follower, producer, producer_database
from worker.embedded_postgres import EmbeddedPostgres
from worker.producer import (
    InvalidRequest,
    RetryRefused,
    StillRunningError,
    UnknownGenerationError,
)

REQUEST = {"content": [{"type": "text", "text": "a cat"}]}
LONG = 60.0


@pytest.fixture(scope="module")
def database(postgres: EmbeddedPostgres) -> Iterator[Engine]:
    with rows.fresh_database(postgres) as engine:
        yield engine


@pytest.fixture
def engine(database: Engine, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    monkeypatch.setenv("SEEDANCE_DATABASE_URL", database.url.render_as_string(hide_password=False))
    yield database
    for own in producer_database._engines.values():
        own.dispose()
    producer_database._engines.clear()
    with database.begin() as conn:
        conn.execute(text("TRUNCATE generations CASCADE"))


@pytest.fixture
def told_only(monkeypatch):
    """Nothing is found by reading: only by being told."""
    monkeypatch.setattr(follower, "LOOK_EVERY", 10_000.0)


def running(engine: Engine) -> uuid.UUID:
    with engine.begin() as conn:
        return rows.make(conn, Status.RUNNING)


def end(engine: Engine, generation_id: uuid.UUID, status: str = "completed") -> None:
    with engine.begin() as conn:
        seen = Observation(f"task-{generation_id.hex}", status, video_url="https://v/1")
        assert transitions.apply_observation(conn, seen) is not None


def waited_for(engine: Engine, count: int = 1) -> None:
    """Wait until so many generations are waited for, as the rows say."""
    deadline = time.monotonic() + LONG
    query = text("SELECT count(*) FROM generations WHERE waited_until > now()")
    while True:
        with engine.connect() as conn:
            if conn.execute(query).scalar_one() >= count:
                return
        assert time.monotonic() < deadline
        time.sleep(0.02)


# --- telling ------------------------------------------------------------------------------------


def notifications(engine: Engine, act) -> list[str]:
    url = engine.url.set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute(f"LISTEN {telling.CHANNEL}")
        act()
        conn.execute(f"NOTIFY {telling.CHANNEL}, 'end'")
        told = []
        for one in conn.notifies(timeout=LONG):
            if one.payload == "end":
                break
            told.append(one.payload)
        return told


def test_a_transition_is_told_only_where_somebody_waits(engine):
    waited, other = running(engine), running(engine)
    with engine.begin() as conn:
        telling.wait_for(conn, [waited, other], seconds=60)
        conn.execute(
            text("UPDATE generations SET waited_until = now() - interval '1 s' WHERE id = :id"),
            {"id": other},
        )
    assert notifications(engine, lambda: (end(engine, waited), end(engine, other))) == [str(waited)]


def test_a_transition_that_is_rolled_back_is_not_told(engine):
    generation_id = running(engine)

    def act():
        with engine.connect() as conn:
            telling.wait_for(conn, [generation_id], seconds=60)
            conn.commit()
            transitions.apply_observation(conn, Observation(f"task-{generation_id.hex}", "failed"))
            conn.rollback()

    assert notifications(engine, act) == []


def test_a_row_that_is_being_changed_is_not_waited_for_with_a_lock(engine):
    generation_id = running(engine)
    with engine.begin() as busy:
        busy.execute(text("UPDATE generations SET polls = polls + 1"))
        with engine.begin() as conn:
            conn.execute(text("SET LOCAL lock_timeout = '1ms'"))
            telling.wait_for(conn, [generation_id], seconds=60)


# --- threads ------------------------------------------------------------------------------------


def test_wait_is_told_of_the_end(engine, told_only):
    generation_id = running(engine)
    with in_background(lambda: (waited_for(engine), end(engine, generation_id))):
        view = producer.wait(generation_id, timeout=LONG)
    assert (view.status, view.video_url) == (Status.COMPLETED, "https://v/1")


def test_what_has_ended_is_there_at_once(engine):
    generation_id = running(engine)
    end(engine, generation_id, "failed")
    assert producer.wait(generation_id, timeout=0).status is Status.FAILED
    assert producer_database._followers.get(producer_database.engine()) is None, "nobody listened"


def test_time_that_is_up_is_told_with_the_state(engine):
    generation_id = running(engine)
    with pytest.raises(StillRunningError, match=f"generation {generation_id} is running") as caught:
        producer.wait(generation_id, timeout=0.2)
    assert caught.value.views[generation_id].status is Status.RUNNING
    assert isinstance(caught.value, TimeoutError)


def test_nobody_waits_for_what_is_not_there(engine):
    for act in (producer.wait, lambda one: list(producer.events(one))):
        with pytest.raises(UnknownGenerationError):
            act(uuid.uuid4())


def test_many_are_waited_for_over_one_connection(engine, told_only):
    ids = [running(engine) for _ in range(20)]
    with engine.connect() as conn:
        start = rows.db_now(conn)
    ends: list[uuid.UUID] = []

    def one(generation_id):
        producer.wait(generation_id, timeout=LONG)
        ends.append(generation_id)

    threads = [threading.Thread(target=one, args=(generation_id,)) for generation_id in ids]
    for thread in threads:
        thread.start()
    waited_for(engine, 20)
    listening = text(
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'seedance-follower'"
        " AND datname = current_database() AND backend_start >= :start"
    )
    with engine.connect() as conn:
        assert conn.execute(listening, {"start": start}).scalar_one() == 1
    for generation_id in ids:
        end(engine, generation_id)
    for thread in threads:
        thread.join(LONG)
    assert sorted(ends) == sorted(ids)


def test_wait_many_gives_them_in_order_and_says_who_is_late(engine):
    ids = [running(engine) for _ in range(3)]
    with pytest.raises(StillRunningError, match="is running") as caught:
        producer.wait_many([*ids, ids[0]], timeout=0.1)
    assert list(caught.value.views) == ids
    end(engine, ids[1])
    with in_background(lambda: [end(engine, one, "cancelled") for one in (ids[0], ids[2])]):
        views = producer.wait_many(ids, timeout=LONG)
    assert [view.status for view in views.values()] == ["cancelled", "completed", "cancelled"]
    assert producer.get_many([*ids, uuid.uuid4()]).keys() == set(ids)


def test_what_nobody_tells_is_found_by_reading(engine, monkeypatch):
    """A proxy that passes no notifications on, a row that was locked: nothing is told."""
    monkeypatch.setattr(follower, "LOOK_EVERY", 0.2)
    monkeypatch.setattr(telling, "wait_for", lambda *args, **options: None)
    generation_id = running(engine)
    with in_background(lambda: end(engine, generation_id)):
        assert producer.wait(generation_id, timeout=LONG).status is Status.COMPLETED


def test_a_listener_that_is_cut_off_listens_again(engine, told_only):
    generation_id = running(engine)

    def act():
        waited_for(engine)
        with engine.begin() as conn:
            cut = conn.execute(
                text(
                    "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
                    " WHERE application_name = 'seedance-follower'"
                    " AND datname = current_database()"
                )
            )
            assert cut.scalar_one() >= 1
        end(engine, generation_id)

    with in_background(act):
        assert producer.wait(generation_id, timeout=LONG).status is Status.COMPLETED


def test_events_tells_what_was_and_what_comes(engine, told_only):
    generation_id = producer.enqueue(REQUEST)
    seen: list[str] = []
    going = producer.events(generation_id, timeout=LONG)
    seen.append(next(going).event)

    def act():
        waited_for(engine)
        producer.cancel(generation_id)

    with in_background(act):
        seen += [event.event for event in going]
    assert seen == ["accept", "cancel"]
    assert [event.event for event in producer.events(generation_id, skip=1)] == ["cancel"]


def test_events_ends_with_the_state_when_the_time_is_up(engine):
    generation_id = producer.enqueue(REQUEST)
    going = producer.events(generation_id, timeout=0.2)
    assert next(going).event == "accept"
    with pytest.raises(StillRunningError, match="is accepted"):
        next(going)


# --- coroutines ---------------------------------------------------------------------------------


def test_hundreds_of_coroutines_wait_at_once(engine, told_only):
    ids = [running(engine) for _ in range(200)]

    async def all_of_them():
        waits = [asyncio.create_task(aproducer.wait(one, timeout=LONG)) for one in ids]
        await asyncio.to_thread(waited_for, engine, 200)
        await asyncio.to_thread(lambda: [end(engine, one) for one in ids])
        return await asyncio.gather(*waits)

    views = asyncio.run(all_of_them())
    assert [view.id for view in views] == ids
    assert {view.status for view in views} == {"completed"}


def test_a_coroutine_that_is_cancelled_leaves_nothing_behind(engine):
    generation_id = running(engine)

    async def given_up():
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(aproducer.wait(generation_id), 0.3)
        assert producer_database.follower()._pokes == {}

    asyncio.run(given_up())


def test_the_asynchronous_names_do_what_the_others_do(engine):
    async def story():
        first, second = await aproducer.enqueue_many([REQUEST, REQUEST], tenant="acme")
        third = await aproducer.enqueue(REQUEST, idempotency_key="k")
        assert third == await aproducer.enqueue(REQUEST, idempotency_key="k")
        assert (await aproducer.get(first)).tenant == "acme"
        assert (await aproducer.get_many([first, second])).keys() == {first, second}
        assert (await aproducer.cancel(first)).status is Status.CANCELLED
        assert [event.event async for event in aproducer.events(first)] == ["accept", "cancel"]
        with pytest.raises(StillRunningError):
            await aproducer.wait(second, timeout=0.1)
        with pytest.raises(UnknownGenerationError):
            await aproducer.get(uuid.uuid4())

    asyncio.run(story())


def test_an_async_session_of_the_caller_decides_on_what_is_stored(engine):
    url = engine.url.render_as_string(hide_password=False)

    async def story():
        own = create_async_engine(url)
        async with AsyncSession(own) as session:
            undone = await aproducer.enqueue(REQUEST, session=session)
            await session.rollback()
            kept = await aproducer.enqueue(REQUEST, session=session)
            assert kept not in await aproducer.get_many([kept]), "nobody else sees it yet"
            await session.commit()
        assert (await aproducer.get_many([undone, kept])).keys() == {kept}
        await own.dispose()

    asyncio.run(story())


# --- a connection of another framework ----------------------------------------------------------


def test_a_psycopg_connection_of_the_caller_decides_on_what_is_stored(engine):
    url = engine.url.set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(url) as owned:
        owned.execute("CREATE TEMP TABLE orders (generation uuid)")
        owned.commit()
        with producer.joined(owned) as session:
            undone = producer.enqueue(REQUEST, session=session)
        owned.execute("INSERT INTO orders VALUES (%s)", [undone])
        owned.rollback()
        with producer.joined(owned) as session:
            kept = producer.enqueue(REQUEST, session=session)
            assert producer.get(kept, session=session).status is Status.ACCEPTED
        owned.execute("INSERT INTO orders VALUES (%s)", [kept])
        assert producer.get_many([kept]) == {}
        owned.commit()
        assert owned.execute("SELECT generation FROM orders").fetchall() == [(kept,)]
        assert not owned.closed
    assert producer.get_many([undone, kept]).keys() == {kept}


def test_an_id_may_be_text_as_celery_and_notices_give_it(engine, told_only):
    """`sent.id` of a bare Celery client, `notice["data"]["id"]` of a notice."""
    generation_id = running(engine)
    named = str(generation_id)
    with in_background(lambda: (waited_for(engine), end(engine, generation_id))):
        assert producer.wait(named, timeout=LONG).id == generation_id
    assert producer.get(named).id == generation_id
    assert producer.wait(named.upper(), timeout=1).id == generation_id
    assert producer.wait_many([named, generation_id]).keys() == {generation_id}
    assert producer.get_many([named]).keys() == {generation_id}
    assert [event.event for event in producer.events(named, timeout=1)][-1] == "complete"
    assert producer.cancel(named).status is Status.COMPLETED
    with pytest.raises(RetryRefused):
        producer.retry(named)

    async def story():
        assert (await aproducer.wait(named, timeout=1)).id == generation_id
        assert (await aproducer.wait_many([named])).keys() == {generation_id}
        assert [event.event async for event in aproducer.events(named)][-1] == "complete"

    asyncio.run(story())


@pytest.mark.parametrize("wrong", ["order-4711", "", None, 7, b"x"])
def test_what_is_no_id_is_named(engine, wrong):
    calls = [
        producer.get,
        producer.cancel,
        producer.retry,
        producer.wait,
        lambda one: next(producer.events(one)),
        lambda one: producer.get_many([one]),
        lambda one: producer.wait_many([one]),
        lambda one: asyncio.run(aproducer.wait(one)),
        lambda one: asyncio.run(anext(aproducer.events(one))),
    ]
    for call in calls:
        with pytest.raises(InvalidRequest, match=r"generation_id is .*; allowed: a UUID"):
            call(wrong)


def test_both_producers_have_the_same_names_and_options():
    names = set(producer.__all__) - {"joined"}  # for frameworks whose connection is not awaited
    assert set(aproducer.__all__) == names
    for name in names:
        ours, awaited = getattr(producer, name), getattr(aproducer, name)
        if ours is awaited:
            continue
        assert _options(awaited).keys() == _options(ours).keys(), name


def _options(call) -> dict[str, object]:
    """Its parameters by name, those of `**options` spelt out."""
    parameters = inspect.signature(call).parameters.values()
    named = {one.name: one for one in parameters if one.kind is not one.VAR_KEYWORD}
    for one in parameters:
        if one.kind is one.VAR_KEYWORD:
            named |= typing.get_type_hints(typing.get_args(one.annotation)[0])
    return named


def test_budgets_may_be_awaited(engine):
    with engine.begin() as conn:
        budgets.put(conn, BudgetView("acme", Period.DAY, Decimal(20), Policy.REFUSE))
    (room,) = asyncio.run(aproducer.budgets_of("acme"))
    assert (room.budget.tenant, room.left) == ("acme", Decimal(20))
