"""Holding the task list against what we know: adopt, flag, ask, or count as foreign."""

from collections.abc import Iterator
from datetime import timedelta
from decimal import Decimal

import pytest
from sqlalchemy import Connection, Engine, func, select

from models import watch
from models.base import table_of
from models.decisions import ADOPTING
from models.lifecycle import IN_DOUBT, TERMINAL, Status
from models.tables import StrayTask
from tests.integration import rows
from tests.integration.rows import REQUEST, attempts, events, make, read, seen

S = Status
ECHO = {name: REQUEST[name] for name in ("model", "resolution", "ratio", "duration")} | {
    "generate_audio": True
}


@pytest.fixture
def conn(engine: Engine) -> Iterator[Connection]:
    """A connection whose changes are undone at the end."""
    with engine.connect() as conn:
        yield conn


def strays(conn: Connection) -> dict[str, str]:
    s = table_of(StrayTask).c
    return {row.task_id: row.kind for row in conn.execute(select(s.task_id, s.kind))}


def doubtful(conn: Connection, status: Status = S.UNCERTAIN, **attempt):
    """A generation with one open attempt; its id and the attempt's seed."""
    values = {"remote_task_id": "its-own"} if status in (S.RUNNING, S.COMPLETED) else {}
    generation_id = make(conn, status, attempt=1, attempts=0, fingerprint="f", **values)
    outcome = attempt.pop("outcome", "unknown")
    return generation_id, rows.attempt(
        conn, generation_id, 1, fingerprint="f", outcome=outcome, **attempt
    )


@pytest.mark.parametrize("status", sorted(ADOPTING))
def test_the_mark_of_a_waiting_generation_is_adopted_on_sight(conn, status):
    generation_id, seed = doubtful(conn, status)
    result = watch.hold_against(conn, [seen("t", "processing", seed=seed)])
    row = read(conn, generation_id)
    assert result.adopted == ["t"]
    assert (row.status, row.remote_task_id, row.remote_status) == (S.RUNNING, "t", "processing")
    assert attempts(conn, generation_id) == [(1, "adopted")]
    assert strays(conn) == {}


def test_a_task_that_has_ended_already_is_adopted_and_followed_to_its_end(conn):
    generation_id, seed = doubtful(conn)
    watch.hold_against(conn, [seen("t", "completed", seed=seed, credit_cost=Decimal(9))])
    row = read(conn, generation_id)
    assert (row.status, row.credit_cost) == (S.COMPLETED, Decimal(9))
    assert [event for event, _, _ in events(conn, generation_id)] == ["adopt", "complete"]


def test_while_its_answer_may_still_come_the_watch_leaves_it(conn):
    generation_id, seed = doubtful(conn, S.SUBMITTING, outcome=None)
    before = rows.image(conn, generation_id)
    result = watch.hold_against(conn, [seen("t", seed=seed)])
    assert (result.adopted, result.second, result.foreign) == ([], [], [])
    assert rows.image(conn, generation_id) == before
    assert strays(conn) == {}


def test_the_task_of_an_older_attempt_counts_for_the_row(conn):
    generation_id = make(conn, S.UNCERTAIN, attempt=2, attempts=0)
    old = rows.attempt(conn, generation_id, 1, outcome="absent")
    rows.attempt(conn, generation_id, 2, outcome="unknown")
    watch.hold_against(conn, [seen("t", seed=old)])
    assert read(conn, generation_id).remote_task_id == "t"
    assert attempts(conn, generation_id) == [(1, "adopted"), (2, "unknown")]


@pytest.mark.parametrize("status", [S.RUNNING, *sorted(TERMINAL)])
def test_a_further_task_of_a_generation_is_a_second_one_and_moves_nothing(conn, status):
    generation_id, seed = doubtful(conn, status)
    before = read(conn, generation_id)
    for remote in ("queued", "completed"):
        result = watch.hold_against(conn, [seen("t2", remote, seed=seed, credit_cost=Decimal(4))])
        assert result.second == ["t2"]
    assert read(conn, generation_id) == before
    assert strays(conn) == {"t2": "second"}
    # Told once; so is its charge, which the ledger has booked.
    assert [event for event, _, _ in events(conn, generation_id)] == ["second_task", "charged"]


@pytest.mark.parametrize("shown", ["pending", "queued", "processing", "completed", "failed", "new"])
@pytest.mark.parametrize("status", sorted(TERMINAL))
def test_nothing_seen_moves_a_terminal_row(conn, status, shown):
    generation_id = make(conn, status, remote_task_id="t", remote_status=str(status))
    before = read(conn, generation_id)
    watch.hold_against(conn, [seen("t", shown), seen("t", "cancelled")])
    assert read(conn, generation_id) == before


def test_the_drawn_seed_counts_whatever_else_is_shown(conn):
    generation_id, seed = doubtful(conn)
    odd = seen("t", "sleeping", seed=seed, model="other", ratio=None, duration=99)
    watch.hold_against(conn, [odd])
    assert read(conn, generation_id).remote_task_id == "t"


def fixed(conn: Connection, **values):
    generation_id = make(
        conn,
        S.UNCERTAIN,
        request={**REQUEST, "seed": 42},
        attempt=1,
        attempts=0,
        fingerprint="f",
        **values,
    )
    rows.attempt(
        conn, generation_id, 1, seed=42, seed_drawn=False, fingerprint="f", outcome="unknown"
    )
    return generation_id


def test_an_equal_task_of_a_fixed_seed_is_possible_and_never_adopted_by_the_watch(conn):
    generation_id = fixed(conn)
    result = watch.hold_against(conn, [seen("t", seed=42, **ECHO)])
    assert result.possible == ["t"]
    assert strays(conn) == {"t": "possible"}
    assert read(conn, generation_id).status == S.UNCERTAIN


@pytest.mark.parametrize(
    "other", [{"duration": 6}, {"ratio": "9:16"}, {"generate_audio": False}, {"model": None}]
)
def test_a_fixed_seed_with_other_fields_is_foreign(conn, other):
    fixed(conn)
    result = watch.hold_against(conn, [seen("t", seed=42, **{**ECHO, **other})])
    assert result.foreign == ["t"]


@pytest.mark.parametrize("seed", [None, -1, 7])
def test_what_carries_nothing_of_ours_is_foreign_and_counted_once(conn, seed):
    generation_id, _ = doubtful(conn)
    before = rows.image(conn, generation_id)
    for status in ("queued", "completed"):
        result = watch.hold_against(conn, [seen("t", status, seed=seed)])
        assert result.foreign == ["t"]
    assert strays(conn) == {"t": "foreign"}
    assert rows.image(conn, generation_id) == before


def test_a_foreign_task_whose_mark_shows_later_is_adopted_and_no_stray_any_more(conn):
    generation_id, seed = doubtful(conn)
    watch.hold_against(conn, [seen("t", seed=None)])
    assert strays(conn) == {"t": "foreign"}
    watch.hold_against(conn, [seen("t", seed=seed)])
    assert read(conn, generation_id).remote_task_id == "t"
    assert strays(conn) == {}


def test_two_tasks_with_one_mark_on_a_page(conn):
    generation_id, seed = doubtful(conn)
    result = watch.hold_against(conn, [seen("b", seed=seed), seen("a", seed=seed)])
    assert (result.adopted, result.second) == (["a"], ["b"])
    assert read(conn, generation_id).remote_task_id == "a"


def test_a_page_read_twice_changes_nothing_more(conn):
    generation_id, seed = doubtful(conn)
    page = [seen("t", seed=seed), seen("u", seed=3), seen("v", seed=None)]
    watch.hold_against(conn, page)
    before = rows.image(conn, generation_id)[1]
    again = watch.hold_against(conn, page)
    assert (again.adopted, again.second, again.changed) == ([], [], [])
    assert rows.image(conn, generation_id)[1] == before


def test_followed_knows_tasks_to_their_end_and_beyond(conn):
    make(conn, S.RUNNING, remote_task_id="r")
    make(conn, S.COMPLETED, remote_task_id="c")
    assert watch.followed(conn, ["r", "c", "x"]) == {"r", "c"}


# --- for the resolve stage ---------------------------------------------------------------------


@pytest.mark.parametrize("status", S)
def test_only_what_is_in_doubt_under_its_lease_is_resolved(conn, status):
    generation_id = make(conn, status)
    found = watch.in_doubt(conn, [(generation_id, 7)], key_exclusive=True)
    assert [one.case.generation_id for one in found] == [generation_id] * (status in IN_DOUBT)
    assert watch.in_doubt(conn, [(generation_id, 6)], key_exclusive=True) == []


def test_every_open_attempt_is_part_of_the_case_and_settled_with_the_last(conn):
    generation_id = make(conn, S.UNCERTAIN, attempt=3, attempts=0)
    for number, outcome, settle in ((1, "absent", -50), (2, "refused", 99), (3, "unknown", 20)):
        rows.attempt(
            conn,
            generation_id,
            number,
            outcome=outcome,
            settle_at=func.now() + timedelta(seconds=settle),
        )
    [found] = watch.in_doubt(conn, [(generation_id, 7)], key_exclusive=False)
    assert [attempt.number for attempt in found.case.attempts] == [1, 3]
    assert not found.settled
    assert found.settle_in == pytest.approx(20)


@pytest.mark.parametrize(
    ("outcome", "rival"),
    [(None, True), ("unknown", True), ("absent", True), ("given_up", True), ("refused", False)],
)
@pytest.mark.parametrize("status", [S.ACCEPTED, S.FAILED])
def test_an_open_attempt_of_another_with_this_fingerprint_is_a_rival_in_any_status(
    conn, status, outcome, rival
):
    generation_id = fixed(conn)
    other = make(conn, status)
    rows.attempt(conn, other, 1, seed=42, seed_drawn=False, fingerprint="f", outcome=outcome)
    [found] = watch.in_doubt(conn, [(generation_id, 7)], key_exclusive=True)
    assert found.case.rival is rival


def test_what_we_know_to_be_in_the_window(conn):
    now = rows.db_now(conn)
    generation_id = make(conn, S.UNCERTAIN, attempt=1, attempts=0)

    def at(number: int, started: float, decided: float, outcome: str) -> None:
        told = outcome in ("submitted", "adopted")
        rows.attempt(
            conn,
            generation_id,
            number,
            outcome=outcome,
            remote_task_id=f"t{number}" if told else None,
            started_at=now + timedelta(seconds=started),
            decided_at=now + timedelta(seconds=decided),
        )

    at(1, -100, -90, "submitted")
    at(2, -50, -40, "submitted")
    at(3, -30, -20, "adopted")
    at(4, -30, -20, "unknown")
    at(5, -10, -1, "submitted")
    known = watch.created_since(conn, now - timedelta(seconds=60), now - timedelta(seconds=10))
    assert known == {"t2", "t3"}, "the last may not show in the list yet"


def test_running_tasks_that_the_list_does_not_show(conn):
    shown = make(conn, S.RUNNING, submitted_at=func.now() - timedelta(seconds=99))
    missing = make(conn, S.RUNNING, submitted_at=func.now() - timedelta(seconds=99))
    make(conn, S.RUNNING)
    make(conn, S.COMPLETED, submitted_at=func.now() - timedelta(seconds=99))
    before = rows.db_now(conn) - timedelta(seconds=10)
    task_id = read(conn, shown).remote_task_id
    assert watch.running_unseen(conn, {task_id}, before=before) == [missing]
