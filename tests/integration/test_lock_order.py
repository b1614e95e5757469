"""Whoever changes many generations locks them in one order, or passes over what somebody has.

Observing, reconciling and operators go over the same rows at the same time: in different orders
two of them would wait for each other until the database ends one. And a producer's own transaction
may hold a row for long: what goes over all that runs must not wait for it.
"""

import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, text
from sqlalchemy.dialects import postgresql

from models import schedule, transitions, watch
from models.lifecycle import Observation, Status
from models.notices import delivery, reading
from models.observing import turns
from models.operating.actions import By
from models.transitions.core import LOCK_ORDER
from models.transitions.page import by_its_own
from tests.integration import rows
from tests.integration.invariants import in_background
from tests.waiting import wait_for
from worker.embedded_postgres import EmbeddedPostgres
from worker.settings import load_settings
from worker.stages import deliver
from worker.webhooks import Refused

FIRST, SECOND = "task_1", "task_2"
VIDEO = "https://videos.example/v.mp4"
BEFORE = datetime(2000, 1, 1, tzinfo=UTC)


@pytest.fixture
def engine(postgres: EmbeddedPostgres) -> Iterator[Engine]:
    with rows.fresh_database(postgres) as engine:
        yield engine


@pytest.fixture
def ids(engine: Engine) -> dict[str, uuid.UUID]:
    """Two running generations by remote task; the one that is made first comes second."""
    with engine.begin() as conn:
        return {
            task: rows.make(conn, Status.RUNNING, id=uuid.UUID(int=number), remote_task_id=task)
            for number, task in enumerate((SECOND, FIRST), start=1)
        }


def observe(*seen: Observation) -> Callable[[Connection, Any], object]:
    return lambda conn, _: transitions.apply_page(conn, seen, before=BEFORE)


def reconcile(*seen: Observation) -> Callable[[Connection, Any], object]:
    return lambda conn, _: watch.hold_against(conn, seen)


@pytest.mark.parametrize(
    "act",
    [
        lambda conn, ids: transitions.cancel_many(conn, list(ids.values())),
        lambda conn, ids: schedule.release(conn, [(one, 7) for one in ids.values()], seconds=2),
    ],
    ids=["cancel", "release"],
)
def test_who_waits_for_the_first_has_not_locked_the_second(engine, ids, act):
    def in_a_transaction() -> None:
        with engine.begin() as conn:
            act(conn, ids)

    with engine.connect() as other:
        assert lock(other, FIRST)
        with in_background(in_a_transaction):
            wait_for(lambda: waits(engine), "somebody waits for the lock")
            free = lock(other, SECOND)
            other.rollback()
    assert free


def ended(task: str) -> Observation:
    return Observation(task, "completed", video_url=VIDEO)


@pytest.mark.parametrize(
    "act",
    [
        observe(ended(SECOND), ended(FIRST)),
        observe(Observation(SECOND, "completed"), ended(FIRST)),
        observe(Observation(SECOND, "pending"), ended(FIRST)),
        reconcile(ended(SECOND), ended(FIRST)),
        reconcile(Observation(SECOND, "completed"), ended(FIRST)),
        reconcile(Observation(SECOND, "pending"), ended(FIRST)),
        lambda conn, ids: watch.look_at(conn, list(ids.values())),
        lambda conn, _: turns._hand_over(conn, every=5),
    ],
    ids=[
        *("observe", "observe without a video", "observe what is as it was"),
        *("reconcile", "reconcile without a video", "reconcile what is as it was"),
        *("look at", "hand over"),
    ],
)
def test_a_pass_over_the_list_waits_for_nobody(engine, ids, act):
    """A producer may hold a row for as long as its own transaction lasts."""
    with engine.begin() as conn:
        conn.execute(
            text(
                "UPDATE generations SET polls = 1, due_at = now() + interval '1 hour',"
                " submitted_at = now() - interval '1 hour'"
            )
        )
        before = rows.image(conn, ids[FIRST])
    with engine.connect() as other:
        assert lock(other, FIRST)
        with engine.begin() as conn:
            conn.execute(text("SET LOCAL lock_timeout = '1s'"))
            act(conn, ids)
        other.rollback()
    with engine.begin() as conn:
        assert rows.image(conn, ids[FIRST]) == before
        act(conn, ids)
        assert rows.image(conn, ids[FIRST]) != before, "the next pass finds it"


def test_beginning_and_leaving_over_what_somebody_has(engine, ids):
    """A pass puts hundreds of rows ahead: it waits for none of them."""
    with engine.begin() as conn:
        conn.execute(text("INSERT INTO observers (name, lease) VALUES ('task_list', 1)"))
    with engine.connect() as other, engine.begin() as conn:
        assert lock(other, FIRST)
        conn.execute(text("SET LOCAL lock_timeout = '5s'"))
        begun = turns.begin(conn, 1, list_lag=0, every=5, lease_seconds=60, stalled_after=86_400)
        assert begun is not None
        by_its_own(conn, list(ids.values()))
        failures = dict(
            conn.execute(text("SELECT remote_task_id, failures FROM generations")).all()
        )
        assert failures == {FIRST: 0, SECOND: 1}


# --- notices: those of a generation and target in the order in which they are told ---------------


@pytest.fixture
def told(engine: Engine) -> list[uuid.UUID]:
    """Three notices of one generation, the first to go first; stored the other way round."""
    with engine.begin() as conn:
        generation_id = rows.make(conn, Status.ACCEPTED, notify=HOOK)
        for number in (3, 2, 1):
            put_notice(conn, generation_id, number)
    return [uuid.UUID(int=number) for number in (1, 2, 3)]


HOOK = {"on": "change", "webhook": "https://shop.example/"}


def put_notice(conn: Connection, generation_id: uuid.UUID, number: int) -> None:
    conn.execute(
        text(
            "INSERT INTO notices (id, generation_id, target, sequence, type, receiver, data)"
            " VALUES (:id, :of, 'webhook', :number, 'x', 'https://shop.example', :data)"
        ),
        {"id": uuid.UUID(int=number), "of": generation_id, "number": number, "data": "{}"},
    )


def lock_notice(conn: Connection, notice_id: uuid.UUID) -> bool:
    query = "SELECT id FROM notices WHERE id = :id FOR UPDATE SKIP LOCKED"
    return conn.execute(text(query), {"id": notice_id}).first() is not None


def test_who_sends_again_waits_for_the_first_before_it_locks_the_next(engine, told):
    def again() -> None:
        with engine.begin() as conn:
            reading.resend(conn, [told[2], told[0]], by=By("me"))

    with engine.connect() as other:
        assert lock_notice(other, told[0])
        with in_background(again):
            wait_for(lambda: waits(engine), "somebody waits for the lock")
            free = [lock_notice(other, one) for one in told[1:]]
            other.rollback()
    assert free == [True, True], "what follows one that is sent again is changed as well"


def test_who_claims_passes_over_what_somebody_has(engine):
    with engine.begin() as conn:
        for number in (1, 2):
            put_notice(conn, rows.make(conn, Status.ACCEPTED, notify=HOOK), number)
    with engine.connect() as other, engine.begin() as conn:
        assert lock_notice(other, uuid.UUID(int=1))
        conn.execute(text("SET LOCAL lock_timeout = '5s'"))
        assert [one.id for one in delivery.claim_due(conn, 8, 60)] == [uuid.UUID(int=2)]


def test_a_failed_notice_is_put_off_before_its_receiver_is_judged(engine, told):
    """Who buries five hundred and then waits for its own would hold up who has its own."""
    with engine.begin() as conn:
        [claim] = delivery.claim_due(conn, 8, 60)
        notice = delivery.load(conn, claim)
    assert notice is not None
    assert notice.id == told[0]
    settings = load_settings({"SEEDANCE_API_KEY": "k", "SEEDANCE_DATABASE_URL": "postgresql://h/d"})
    failing = replace(notice, receiver_failures=9, receiver_failing=settings.notice_patience + 1)

    def fail() -> None:
        with engine.begin() as conn:
            deliver._record(conn, settings, failing, Refused("HTTP 500", alive=False))

    with engine.connect() as other:
        assert lock_notice(other, told[0])
        with in_background(fail):
            wait_for(lambda: waits(engine), "somebody waits for the lock")
            other.execute(text("SET LOCAL lock_timeout = '5s'"))
            delivery.leave_alone(other, notice.receiver, 1, "nobody else holds it")
            other.rollback()


def lock(conn: Connection, task: str) -> bool:
    """Lock the generation, if nobody else has it."""
    query = "SELECT id FROM generations WHERE remote_task_id = :task FOR UPDATE SKIP LOCKED"
    return conn.execute(text(query), {"task": task}).first() is not None


def waits(engine: Engine) -> bool:
    with engine.connect() as conn:
        return bool(
            conn.execute(
                text(
                    "SELECT count(*) FROM pg_stat_activity"
                    " WHERE datname = current_database() AND wait_event_type = 'Lock'"
                )
            ).scalar_one()
        )


def test_the_order_is_that_of_reconcile_whatever_the_databases_collation():
    """Python sorts by code points, and so does this one alone."""
    assert 'COLLATE "C"' in str(LOCK_ORDER[0].compile(dialect=postgresql.dialect()))
