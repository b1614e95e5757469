"""The database dies, hangs up, gives up statements, refuses commits: nothing is lost or twice."""

import pytest

from tests.chaos import database_faults
from tests.chaos.conftest import Arena, MakeArena
from tests.chaos.invariants import TABLE_LOCKED


def test_immediate_shutdown_and_restart_under_load(shared_arena: Arena):
    before = len(shared_arena.sim.submits())
    shared_arena.ask_mixed(12)
    for count in (2, 6):
        shared_arena.submitted(before + count)
        shared_arena.strikes.database_dies()
    shared_arena.at_rest()
    shared_arena.check()


def test_connections_are_cut_again_and_again(shared_arena: Arena):
    before = len(shared_arena.sim.submits())
    shared_arena.ask_mixed(8)
    cut = 0
    for count in range(1, 6):
        shared_arena.submitted(before + count)
        cut += database_faults.cut_connections(shared_arena.url)
    assert cut >= 10
    shared_arena.at_rest()
    shared_arena.check()


@pytest.mark.parametrize(
    ("how", "share", "error"),
    [("statements", 0.1, "QueryCanceled"), ("commits", 0.05, "SerializationFailure")],
)
def test_writes_fail(how: str, share: float, error: str, shared_arena: Arena):
    """By `statement_timeout`, and by a serialisation failure that shows at COMMIT."""

    def errors() -> int:
        return sum(worker.text().count(error) for worker in shared_arena.fleet.workers)

    before = len(shared_arena.sim.submits())
    with database_faults.failing(shared_arena.url, how, share):
        _ask_stubbornly(shared_arena, 8)
        shared_arena.submitted(before + 3)
        while errors() < 3:
            _ask_stubbornly(shared_arena, 1)
    shared_arena.at_rest()
    shared_arena.check()


def _ask_stubbornly(arena: Arena, count: int) -> None:
    """Producers try again, too."""
    from sqlalchemy.exc import OperationalError

    for _ in range(count):
        while True:
            try:
                arena.ask(1)
                break
            except OperationalError:
                arena.orders.pop()


def test_a_statement_that_waits_too_long_is_given_up(make_arena: MakeArena):
    """A lock that somebody holds for longer than `lock_timeout`: work waits, and goes on."""
    arena = make_arena()
    arena.workers(1)
    arena.ask_mixed(6)
    arena.submitted(2)
    with (
        arena.strikes.journal.lasting(TABLE_LOCKED),
        database_faults.connect(arena.url) as conn,
        conn.transaction(),
    ):
        conn.execute("LOCK TABLE generations IN ACCESS EXCLUSIVE MODE")
        conn.execute("SELECT pg_sleep(11)")
    arena.at_rest()
    assert "LockNotAvailable" in arena.fleet.workers[0].text()
    arena.check()


def test_a_worker_whose_transactions_are_serializable(make_arena: MakeArena):
    arena = make_arena()
    serializable = database_faults.add_serializable_user(arena.url)
    for _ in range(2):
        arena.fleet.add_worker(SEEDANCE_DATABASE_URL=serializable)
    arena.workers(1)
    arena.ask_mixed(16)
    arena.at_rest()
    arena.check()
