"""Each named transition: from its sources only, fenced, told exactly once, and won by one."""

import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from functools import partial
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, func, select, text, update
from sqlalchemy.exc import IntegrityError

from models import transitions
from models.base import table_of
from models.lifecycle import IN_DOUBT, LIVE, TERMINAL, TRANSITIONS, Event, Note, Status
from models.tables import Generation, SubmitAttempt
from models.transitions import Moved
from models.wait_reasons import REQUEST_RATE, retry
from tests.integration import rows
from tests.integration.rows import attempts, events, image, make, read, seen

S = Status
g = table_of(Generation).c


@pytest.fixture
def conn(engine: Engine) -> Iterator[Connection]:
    """A connection whose changes are undone at the end."""
    with engine.connect() as conn:
        yield conn


@dataclass(frozen=True)
class Fence:
    """What a caller names to be let through: the lease it got, and the attempt."""

    lease: int
    attempt: int


Call = Callable[[Connection, uuid.UUID, Fence], Any]


@dataclass(frozen=True)
class Named:
    """A transition function, and what it may do to a plain row."""

    call: Call
    moves: dict[Status, Event]
    fenced: str | None
    """By what a stale caller is told apart: "lease" or "attempt"."""
    outcome: str | None = None
    values: tuple[tuple[str, Any], ...] = ()
    """What the row must have for it to apply."""


def every(event: Event, *statuses: Status) -> dict[Status, Event]:
    return dict.fromkeys(statuses or TRANSITIONS[event].sources, event)


def _observed(status: str) -> Call:
    def call(c: Connection, i: uuid.UUID, f: Fence) -> Any:
        task_id = read(c, i).remote_task_id or "task-of-nobody"
        return transitions.apply_observation(c, seen(task_id, status))

    return call


WISH = (("cancel_requested_at", func.now()),)
ADOPTING = frozenset({S.ACCEPTED, S.UPLOADING, S.UNCERTAIN, S.SUBMITTING})

NAMED = {
    "admit": Named(
        lambda c, i, f: transitions.admit(c, [i], lease_seconds=9), every(Event.ADMIT), None
    ),
    "put_back": Named(
        lambda c, i, f: transitions.put_back(c, i, f.lease, wait=REQUEST_RATE, seconds=5),
        every(Event.PUT_BACK),
        "lease",
    ),
    "intend": Named(
        lambda c, i, f: transitions.intend(
            c, transitions.Intending(i, f.lease, 3, "f", 5, True), settle_seconds=90
        ),
        every(Event.INTEND),
        "lease",
    ),
    "reject": Named(
        lambda c, i, f: transitions.reject(c, i, f.lease, code="BAD", message="no such file"),
        every(Event.REJECT),
        "lease",
    ),
    "poison": Named(
        lambda c, i, f: transitions.poison(c, i, f.lease), every(Event.POISON), "lease"
    ),
    "lapse": Named(
        lambda c, i, f: transitions.lapse(c, g.id == i),
        every(Event.LAPSE),
        None,
        values=(("deadline_at", func.now()),),
    ),
    "submitted": Named(
        lambda c, i, f: transitions.submitted(
            c,
            transitions.Answered(
                i,
                f.attempt,
                remote_task_id=f"t-{i}",
                remote_status="pending",
                credit_cost=9,
                look_in=5,
            ),
        ),
        every(Event.SUBMIT),
        "attempt",
        "submitted",
    ),
    "adopt": Named(
        lambda c, i, f: transitions.adopt(
            c, i, 1, latest_attempt=f.attempt, seen=seen(f"t-{i}"), sources=ADOPTING, by="test"
        ),
        every(Event.ADOPT),
        "attempt",
        "adopted",
    ),
    "adopt, in doubt only": Named(
        lambda c, i, f: transitions.adopt(
            c, i, 1, latest_attempt=f.attempt, seen=seen(f"t-{i}"), sources=IN_DOUBT, by="test"
        ),
        every(Event.ADOPT, *IN_DOUBT),
        "attempt",
        "adopted",
    ),
    "doubt": Named(
        lambda c, i, f: transitions.doubt(c, i, f.attempt, why="time-out"),
        every(Event.DOUBT),
        "attempt",
        "unknown",
    ),
    "not_sent": Named(
        lambda c, i, f: transitions.not_sent(c, i, f.attempt, wait=retry("too late"), seconds=1),
        every(Event.NOT_SENT),
        "attempt",
        "not_sent",
    ),
    "not_sent, cancel asked": Named(
        lambda c, i, f: transitions.not_sent(c, i, f.attempt, wait=retry("too late"), seconds=1),
        every(Event.CANCEL, S.SUBMITTING),
        "attempt",
        "not_sent",
        WISH,
    ),
    "declined": Named(
        lambda c, i, f: transitions.declined(
            c, i, f.attempt, code="SERVICE_BUSY", wait=REQUEST_RATE, seconds=1
        ),
        every(Event.DECLINE),
        "attempt",
        "refused",
    ),
    "refused": Named(
        lambda c, i, f: transitions.refused(c, i, f.attempt, code="BAD", message="no"),
        every(Event.REFUSE),
        "attempt",
        "refused",
    ),
    "absent": Named(
        lambda c, i, f: transitions.absent(c, i, f.attempt, max_attempts=5, detail={}),
        every(Event.ABSENT),
        "attempt",
        "absent",
    ),
    "absent, attempts used up": Named(
        lambda c, i, f: transitions.absent(c, i, f.attempt, max_attempts=1, detail={}),
        every(Event.EXHAUST),
        "attempt",
        "absent",
    ),
    "absent, cancel asked": Named(
        lambda c, i, f: transitions.absent(c, i, f.attempt, max_attempts=1, detail={}),
        every(Event.CANCEL, S.UNCERTAIN),
        "attempt",
        "absent",
        WISH,
    ),
    "give_up": Named(
        lambda c, i, f: transitions.give_up(c, i, f.attempt, actor="op"),
        every(Event.GIVE_UP),
        "attempt",
        "given_up",
    ),
    "cancel": Named(
        lambda c, i, f: transitions.cancel(c, i),
        every(Event.CANCEL, S.ACCEPTED, S.UPLOADING),
        None,
    ),
    "complete": Named(_observed("completed"), every(Event.COMPLETE), None),
    "fail": Named(_observed("failed"), every(Event.FAIL), None),
    "end_cancelled": Named(_observed("cancelled"), every(Event.END_CANCELLED), None),
    "end_expired": Named(_observed("expired"), every(Event.END_EXPIRED), None),
}
"""Every named transition; its row has lease 7 and, so that stale ones exist, attempt 2."""

FENCE = Fence(lease=7, attempt=2)
STALE = {
    "lease": [Fence(6, 2), Fence(8, 2)],
    "attempt": [Fence(7, 1), Fence(7, 3)],
}


def row(conn: Connection, status: Status, named: Named) -> uuid.UUID:
    return make(conn, status, attempt=2, **dict(named.values))


def one(result: Any) -> Moved:
    [moved] = result if isinstance(result, list) else [result]
    return moved


def test_each_transition_of_the_table_has_its_function():
    assert {event for named in NAMED.values() for event in named.moves.values()} == set(TRANSITIONS)


@pytest.mark.parametrize("name", NAMED)
def test_moves_from_its_sources_and_from_nowhere_else(conn, name):
    named = NAMED[name]
    for status in S:
        generation_id = row(conn, status, named)
        before = image(conn, generation_id)
        lease = read(conn, generation_id).lease

        result = named.call(conn, generation_id, FENCE)

        if status not in named.moves:
            assert not isinstance(result, Moved)
            assert result in (None, [], Note.CONTRADICTION)
            after = image(conn, generation_id)
            if name == "cancel" and status in LIVE:
                assert [e[0] for e in events(conn, generation_id)] == [Note.CANCEL_ASKED]
            elif result is Note.CONTRADICTION:
                assert after[0] == before[0], "it is told, and not followed"
            elif name.startswith("not_sent"):
                assert after[:2] == before[:2]
            else:
                assert after == before, f"{name} changed a row that is {status}"
            assert read(conn, generation_id).status == status
            conn.rollback()
            continue
        moved = one(result)
        event = named.moves[status]
        now = read(conn, generation_id)
        assert moved.from_status is status
        assert moved.status is TRANSITIONS[event].target
        assert (now.status, now.lease, now.attempt) == (moved.status, moved.lease, moved.attempt)
        assert events(conn, generation_id) == [(event, status, now.status)]
        if named.outcome:
            number = 1 if event is Event.ADOPT else 2
            assert (number, named.outcome) in attempts(conn, generation_id)
        if event is not Event.DOUBT:
            assert now.lease > lease, "whoever had the row before must have lost it"
        conn.rollback()


@pytest.mark.parametrize("name", [name for name, named in NAMED.items() if named.fenced])
def test_a_stale_caller_changes_nothing(conn, name):
    named = NAMED[name]
    for status in named.moves:
        for stale in STALE[named.fenced or ""]:
            generation_id = row(conn, status, named)
            before = image(conn, generation_id)
            assert not named.call(conn, generation_id, stale)
            after = image(conn, generation_id)
            if name.startswith("not_sent"):  # it is sure of its attempt all the same
                assert after[:2] == before[:2]
            else:
                assert after == before
            conn.rollback()


@pytest.mark.parametrize("name", NAMED)
def test_undone_with_its_transaction(engine, name):
    named = NAMED[name]
    status = min(named.moves)
    with engine.begin() as conn:
        generation_id = row(conn, status, named)
        before = image(conn, generation_id)
    with engine.connect() as conn:
        assert one(named.call(conn, generation_id, FENCE))
        conn.rollback()
        assert image(conn, generation_id) == before


def race(engine: Engine, *calls: Callable[[Connection], Any]) -> list[Any]:
    """Run the calls at the same moment, each in its transaction; what each returned or raised."""
    ready = threading.Barrier(len(calls))

    def run(call: Callable[[Connection], Any]) -> Any:
        with engine.begin() as conn:
            conn.execute(func.now().select())
            ready.wait(5)
            return call(conn)

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(run, calls))


def _call(call: Call, generation_id: uuid.UUID, conn: Connection) -> Any:
    return call(conn, generation_id, FENCE)


RACES = [
    ("submitted", "absent", S.UNCERTAIN),
    ("submitted", "doubt", S.SUBMITTING),
    ("adopt", "submitted", S.UNCERTAIN),
    ("cancel", "put_back", S.UPLOADING),
    ("cancel", "admit", S.ACCEPTED),
    ("complete", "fail", S.RUNNING),
    ("complete", "complete", S.RUNNING),
    ("give_up", "adopt", S.UNCERTAIN),
    ("not_sent", "refused", S.SUBMITTING),
    ("lapse", "put_back", S.UPLOADING),
]


@pytest.mark.parametrize(("first", "second", "status"), RACES)
def test_of_two_at_once_the_winners_follow_one_another(engine, first, second, status):
    """Whoever comes second finds the row where the first left it; every move is told, once."""
    for _ in range(5):
        with engine.begin() as conn:
            values = dict(NAMED[first].values) | dict(NAMED[second].values)
            generation_id = make(conn, status, attempt=2, **values)
        calls = [NAMED[name].call for name in (first, second)]
        race(engine, *(partial(_call, call, generation_id) for call in calls))
        with engine.connect() as conn:
            told = [event for event in events(conn, generation_id) if event[2]]
            assert told, "somebody wins"
            place: str | None = status
            for event, source, target in told:
                assert source == place
                assert place in TRANSITIONS[Event(event)].sources
                place = target
            assert read(conn, generation_id).status == place
            assert [target for _, _, target in told if target in TERMINAL] in (
                [],
                [place],
            )


def test_of_eight_ends_at_once_one_wins(engine):
    with engine.begin() as conn:
        generation_id = make(conn, S.RUNNING)
        task_id = read(conn, generation_id).remote_task_id
    ends = ["completed", "failed", "cancelled", "expired"] * 2
    results = race(
        engine,
        *(
            lambda conn, end=end: transitions.apply_observation(conn, seen(task_id, end))
            for end in ends
        ),
    )
    assert sum(isinstance(result, Moved) for result in results) == 1
    with engine.connect() as conn:
        assert [target for _, _, target in events(conn, generation_id) if target] == [
            read(conn, generation_id).status
        ]


# --- what the moves write ----------------------------------------------------------------------


def test_a_late_answer_counts_after_the_lease_was_lost(conn):
    generation_id = make(conn, S.UNCERTAIN, lease=99, attempt=1)
    moved = NAMED["submitted"].call(conn, generation_id, Fence(7, 1))
    assert moved.status is S.RUNNING
    assert attempts(conn, generation_id) == [(1, "submitted")]


def test_a_definite_outcome_is_never_overwritten(conn):
    generation_id = make(conn, S.RUNNING)
    for outcome in ("unknown", "absent", "refused", "not_sent", "given_up"):
        assert not transitions.close_attempt(conn, generation_id, 1, outcome=outcome)
    assert attempts(conn, generation_id) == [(1, "submitted")]


def test_a_wish_to_cancel_makes_a_submitted_task_due_at_once(conn):
    generation_id = make(conn, S.SUBMITTING, cancel_requested_at=func.now())
    NAMED["submitted"].call(conn, generation_id, Fence(7, 1))
    assert read(conn, generation_id).due_at == rows.db_now(conn)


def test_an_intent_is_refused_once_cancel_is_asked(conn):
    generation_id = make(conn, S.UPLOADING, cancel_requested_at=func.now())
    assert not NAMED["intend"].call(conn, generation_id, FENCE)


def test_only_a_completed_task_is_charged(conn):
    for status, cost in (("completed", 8), ("failed", 0), ("cancelled", 0), ("expired", 0)):
        generation_id = make(conn, S.RUNNING, credit_cost=9)
        task_id = read(conn, generation_id).remote_task_id
        shown = seen(task_id, status, credit_cost=Decimal(8), video_url="https://v")
        transitions.apply_observation(conn, shown)
        assert read(conn, generation_id).credit_cost == cost


def test_a_completed_task_that_tells_no_cost_keeps_the_one_of_its_submission(conn):
    generation_id = make(conn, S.RUNNING, credit_cost=9)
    transitions.apply_observation(conn, seen(read(conn, generation_id).remote_task_id, "completed"))
    assert read(conn, generation_id).credit_cost == 9


def test_a_failure_without_a_code_gets_one(conn):
    generation_id = make(conn, S.RUNNING)
    transitions.apply_observation(conn, seen(read(conn, generation_id).remote_task_id, "failed"))
    assert read(conn, generation_id).error_code == "UNSPECIFIED"


def test_progress_is_told_once_and_a_stale_sighting_not_at_all(conn):
    generation_id = make(conn, S.RUNNING)
    task_id = read(conn, generation_id).remote_task_id
    for status in ("queued", "queued", "processing", "queued", "pending", "paused", "processing"):
        transitions.apply_observation(conn, seen(task_id, status))
    told = [event for event, _, _ in events(conn, generation_id)]
    assert told == ["progress", "progress", "unknown_status"]
    assert read(conn, generation_id).remote_status == "processing"


def test_a_contradiction_is_told_once_and_changes_nothing(conn):
    generation_id = make(conn, S.RUNNING)
    task_id = read(conn, generation_id).remote_task_id
    transitions.apply_observation(conn, seen(task_id, "cancelled"))
    ended = read(conn, generation_id)
    for _ in range(3):
        again = transitions.apply_observation(conn, seen(task_id, "completed"))
        assert again is Note.CONTRADICTION
    assert read(conn, generation_id) == ended
    assert [event for event, _, _ in events(conn, generation_id)] == [
        "end_cancelled",
        "contradiction",
        "charged",
    ]


@pytest.mark.parametrize("status", S)
def test_cancel_keeps_the_wish_where_it_cannot_be_carried_out_yet(conn, status):
    generation_id = make(conn, status)
    transitions.cancel(conn, generation_id)
    transitions.cancel(conn, generation_id)
    now = read(conn, generation_id)
    if status in (S.ACCEPTED, S.UPLOADING):
        assert now.status == S.CANCELLED
        assert len(events(conn, generation_id)) == 1
    elif status in TERMINAL:
        assert now.cancel_requested_at is None
        assert events(conn, generation_id) == []
    else:
        assert now.status == status
        assert now.cancel_requested_at is not None
        assert events(conn, generation_id) == [(Note.CANCEL_ASKED, None, None)]


def test_a_wish_in_doubt_does_not_bring_the_resolving_forward(conn):
    settle = rows.db_now(conn).replace(year=2100)
    generation_id = make(conn, S.UNCERTAIN, due_at=settle)
    transitions.cancel(conn, generation_id)
    assert read(conn, generation_id).due_at == settle


def test_the_fingerprint_lock_wakes_the_oldest_waiter_when_it_is_released(conn):
    holder = make(conn, S.UNCERTAIN, fingerprint="same")
    now = rows.db_now(conn)
    waiting = {
        age: make(
            conn,
            S.ACCEPTED,
            fingerprint="same",
            blocked_by=holder,
            wait_reason="equal_generation",
            due_at=now.replace(year=2100),
            created_at=now.replace(year=2000 + age),
        )
        for age in (3, 1, 2)
    }
    NAMED["absent"].call(conn, holder, Fence(7, 1))
    woken = [age for age, i in waiting.items() if read(conn, i).due_at == now]
    assert woken == [1]
    assert read(conn, waiting[1]).blocked_by is None
    assert read(conn, waiting[2]).blocked_by == holder


def test_an_intent_stores_its_attempt_in_the_same_statement(conn):
    generation_id = make(conn, S.UPLOADING, attempt=2)
    intending = transitions.Intending(generation_id, 7, 3, "mark", 11, True, b"\x00digest")
    assert transitions.intend(conn, intending, settle_seconds=90)
    a = table_of(SubmitAttempt).c
    stored = conn.execute(
        select(
            a.seed, a.seed_drawn, a.fingerprint, a.callback_digest, a.settle_at, a.outcome
        ).where(a.generation_id == generation_id, a.number == 3)
    ).one()
    settles = rows.db_now(conn) + timedelta(seconds=90)
    assert tuple(stored) == (11, True, "mark", b"\x00digest", settles, None)
    assert read(conn, generation_id).due_at == settles


def test_an_intent_that_is_refused_stores_no_attempt(conn):
    generation_id = make(conn, S.UPLOADING, attempt=2)
    before = attempts(conn, generation_id)
    assert NAMED["intend"].call(conn, generation_id, Fence(6, 2)) is None
    assert attempts(conn, generation_id) == before


@pytest.mark.parametrize(("due_in", "expected"), [(90, 2), (1, 1)])
def test_doubt_brings_the_search_forward_and_never_delays_it(conn, due_in, expected):
    now = rows.db_now(conn)
    generation_id = make(conn, S.SUBMITTING, due_at=now + timedelta(seconds=due_in))
    assert transitions.doubt(conn, generation_id, 1, why="time-out", search_in=2)
    assert read(conn, generation_id).due_at == now + timedelta(seconds=expected)


def test_doubt_without_a_search_leaves_the_row_due_as_it_was(conn):
    due = rows.db_now(conn) + timedelta(seconds=90)
    generation_id = make(conn, S.SUBMITTING, due_at=due)
    assert transitions.doubt(conn, generation_id, 1, why="the worker is gone")
    assert read(conn, generation_id).due_at == due


PROVIDER_OK: dict[str, tuple[Call, bool | None]] = {
    "submitted": (NAMED["submitted"].call, True),
    "refused": (NAMED["refused"].call, True),
    "refused for too long": (
        lambda c, i, f: transitions.refused(
            c, i, f.attempt, code="SERVICE_BUSY", message="no", provider_ok=False
        ),
        False,
    ),
    "declined": (NAMED["declined"].call, None),
    "declined, the provider fails": (
        lambda c, i, f: transitions.declined(
            c, i, f.attempt, code="BUSY", wait=REQUEST_RATE, seconds=1, provider_ok=False
        ),
        False,
    ),
    "doubt": (NAMED["doubt"].call, None),
    "doubt, the provider fails": (
        lambda c, i, f: transitions.doubt(c, i, f.attempt, why="500", provider_ok=False),
        False,
    ),
    "not_sent": (NAMED["not_sent"].call, None),
    "not_sent, unreachable": (
        lambda c, i, f: transitions.not_sent(
            c, i, f.attempt, wait=retry("x"), seconds=1, code="UNREACHABLE"
        ),
        False,
    ),
}


@pytest.mark.parametrize("name", PROVIDER_OK)
def test_an_attempt_records_whether_its_answer_shows_the_provider_well(conn, name):
    call, expected = PROVIDER_OK[name]
    generation_id = make(conn, S.SUBMITTING, attempt=2)
    assert call(conn, generation_id, FENCE)
    assert answer(conn, generation_id) == (True, expected)


@pytest.mark.parametrize("first", [False, None])
def test_a_search_does_not_change_how_the_provider_answered(conn, first):
    generation_id = make(conn, S.SUBMITTING, attempt=2)
    assert transitions.doubt(conn, generation_id, 2, why="500", provider_ok=first)
    assert NAMED["absent"].call(conn, generation_id, FENCE)
    assert attempts(conn, generation_id)[-1] == (2, "absent")
    assert answer(conn, generation_id) == (True, first)


def test_a_late_answer_counts_as_a_success_of_its_own_time(conn):
    generation_id = make(conn, S.SUBMITTING, attempt=2)
    assert transitions.doubt(conn, generation_id, 2, why="time-out", provider_ok=False)
    conn.execute(text("UPDATE submit_attempts SET answered_at = now() - interval '1 hour'"))
    assert NAMED["submitted"].call(conn, generation_id, FENCE)
    assert answer(conn, generation_id) == (True, True)
    a = table_of(SubmitAttempt).c
    answered = select(a.answered_at >= func.now()).where(
        a.generation_id == generation_id, a.number == 2
    )
    assert conn.execute(answered).scalar_one()


def answer(conn: Connection, generation_id: uuid.UUID) -> tuple[bool, bool | None]:
    """Return whether attempt 2 was answered, and whether that showed the provider well."""
    a = table_of(SubmitAttempt).c
    query = select(a.answered_at.is_not(None), a.provider_ok)
    row = conn.execute(query.where(a.generation_id == generation_id, a.number == 2)).one()
    return tuple(row)


def test_admission_leaves_the_claim_to_no_worker_until_one_begins(conn):
    generation_id = make(conn, S.ACCEPTED, claimed_by=5)
    assert transitions.admit(conn, [generation_id], lease_seconds=9)
    row = read(conn, generation_id)
    assert (row.claimed_by, row.leased_until) == (None, row.due_at)


def test_two_of_one_fingerprint_are_never_in_doubt_together(conn):
    make(conn, S.UNCERTAIN, fingerprint="f")
    other = make(conn, S.UPLOADING)
    with pytest.raises(IntegrityError, match="uq_generations_in_doubt"):
        NAMED["intend"].call(conn, other, FENCE)


def test_attention_is_told_once_for_each_reason_and_an_end_lifts_it(conn):
    generation_id = make(conn, S.UNCERTAIN, attempt=2)
    assert transitions.need_attention(conn, generation_id, "look")
    assert not transitions.need_attention(conn, generation_id, "look")
    assert transitions.need_attention(conn, generation_id, "look again")
    assert len(events(conn, generation_id)) == 2
    NAMED["give_up"].call(conn, generation_id, FENCE)
    assert read(conn, generation_id).attention is None
    assert not transitions.need_attention(conn, generation_id, "too late")


def test_reschedule_is_for_whoever_has_the_lease_of_a_live_row(conn):
    for status in S:
        generation_id = make(conn, status)
        assert not transitions.reschedule(conn, generation_id, 6, seconds=5)
        assert transitions.reschedule(conn, generation_id, 7, seconds=5) == (status in LIVE)


def test_a_remote_task_is_followed_by_one_generation_only(conn):
    first, second = make(conn, S.UNCERTAIN, attempt=2), make(conn, S.UNCERTAIN, attempt=2)
    NAMED["adopt"].call(conn, first, FENCE)
    task_id = read(conn, first).remote_task_id
    with pytest.raises(IntegrityError, match="remote_task_id"):
        transitions.adopt(
            conn, second, 2, latest_attempt=2, seen=seen(task_id), sources=IN_DOUBT, by="test"
        )


def test_calm_lifts_attention(conn):
    generation_id = make(conn, S.RUNNING, attention="x", attention_at=func.now())
    transitions.calm(conn, generation_id)
    assert read(conn, generation_id).attention is None


def test_the_tables_refuse_what_the_functions_would_never_write(conn):
    """A terminal row stays terminal even for an UPDATE by hand that forgets its due time."""
    generation_id = make(conn, S.COMPLETED)
    with pytest.raises(IntegrityError):
        conn.execute(
            update(table_of(Generation)).where(g.id == generation_id).values(status="running")
        )
