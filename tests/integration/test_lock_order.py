"""Whoever changes many generations locks them in one order, or passes over what somebody has.

Observing, reconciling and operators go over the same rows at the same time: in different orders
two of them would wait for each other until the database ends one.
"""

import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, text
from sqlalchemy.dialects import postgresql

from models import transitions, watch
from models.lifecycle import Observation, Status
from models.observing import turns
from models.transitions.core import LOCK_ORDER
from models.transitions.page import by_its_own
from tests.integration import rows
from tests.integration.invariants import in_background
from tests.waiting import wait_for
from worker.embedded_postgres import EmbeddedPostgres

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


ENDED = [Observation(task, "completed", video_url=VIDEO) for task in (SECOND, FIRST)]
BARE = [Observation(SECOND, "completed"), ENDED[1]]


@pytest.mark.parametrize(
    "act",
    [
        observe(*ENDED),
        observe(*BARE),
        reconcile(*ENDED),
        lambda conn, ids: transitions.cancel_many(conn, list(ids.values())),
    ],
    ids=["observe", "observe without a video", "reconcile", "cancel"],
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
