"""Who is due, who gets to work on it, and who is let in."""

import uuid
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from decimal import Decimal

import pytest
from sqlalchemy import Connection, Engine, func, text, update

from models import schedule, transitions
from models.base import table_of
from models.flow_control import breakers
from models.flow_control.breakers import BreakerName
from models.lifecycle import LIVE, TERMINAL, Status
from models.schedule import Stage
from models.tables import Generation
from tests.brokers import broker_with
from tests.integration import rows
from tests.integration.rows import events, make, read
from worker.dispatcher import Dispatcher

S = Status
g = table_of(Generation).c


@pytest.fixture
def conn(engine: Engine) -> Iterator[Connection]:
    """A connection whose changes are undone at the end: each test finds an empty table."""
    with engine.connect() as conn:
        yield conn


@pytest.fixture
def shared(engine: Engine) -> Iterator[Engine]:
    """For tests with several connections, which must commit."""
    yield engine
    with engine.begin() as conn:
        conn.execute(text("TRUNCATE generations CASCADE"))


def in_(seconds: float):
    return func.now() + timedelta(seconds=seconds)


def claim(conn: Connection, limit: int = 100) -> list[schedule.Claim]:
    return schedule.claim_due(conn, limit, lease_seconds=60)


def admit(
    conn: Connection, limit: int = 1000, *, slots: int = 50, ceiling: Decimal | None = None
) -> list[uuid.UUID] | None:
    claims = schedule.admit(conn, limit, max_in_flight=slots, lease_seconds=60, ceiling=ceiling)
    return None if claims is None else [one.id for one in claims]


def wait_in_line(conn: Connection, n: int, **values) -> list[uuid.UUID]:
    """Generations that wait, created one after another."""
    start = values.pop("start", 0)
    return [
        make(conn, S.ACCEPTED, **{"created_at": in_(-1000 + start + i), **values}) for i in range(n)
    ]


# --- claiming ----------------------------------------------------------------------------------


def test_what_is_due_and_live_is_claimed_and_nothing_else(conn):
    due = {make(conn, status, due_at=in_(-1)) for status in LIVE}
    for status in S:
        make(conn, status, **({} if status in TERMINAL else {"due_at": in_(0.5)}))
    make(conn, S.ACCEPTED, due_at=in_(-1))
    assert {one.id for one in claim(conn)} == due


def test_a_claim_raises_the_lease_and_is_due_again_at_its_end(conn):
    generation_id = make(conn, S.RUNNING, due_at=in_(-1))
    [one] = claim(conn)
    row = read(conn, generation_id)
    assert (one.lease, one.tries, one.stage) == (8, 0, Stage.POLL), "a try begins with the work"
    assert row.lease == 8
    assert row.due_at - rows.db_now(conn) == timedelta(seconds=60)
    assert claim(conn) == []


def test_a_lost_message_is_made_good_when_the_lease_ends(conn):
    generation_id = make(conn, S.RUNNING, due_at=in_(-1))
    claim(conn)
    conn.execute(update(table_of(Generation)).values(due_at=in_(-0.001)))  # the lease has ended
    [again] = claim(conn)
    assert (again.id, again.lease, again.tries) == (generation_id, 9, 0)
    assert not transitions.reschedule(conn, generation_id, 8, seconds=1), "the first is fenced"
    assert transitions.reschedule(conn, generation_id, 9, seconds=1)


def test_the_longest_due_go_first(conn):
    late = {age: make(conn, S.RUNNING, due_at=in_(-age)) for age in (5, 50, 20, 1)}
    assert [one.id for one in claim(conn, 1)] == [late[50]]
    assert {one.id for one in claim(conn, 2)} == {late[20], late[5]}


def test_each_stage_by_status_and_references(conn):
    text_only = make(conn, S.UPLOADING, due_at=in_(-1))
    to_upload = make(conn, S.UPLOADING, due_at=in_(-1), has_sources=True)
    content = [{"type": "image_url", "image_url": "u/1.png"}]
    uploaded = make(conn, S.UPLOADING, due_at=in_(-1), has_sources=True, content=content)
    doubtful = make(conn, S.SUBMITTING, due_at=in_(-1))
    assert {one.id: one.stage for one in claim(conn)} == {
        text_only: Stage.SUBMIT,
        to_upload: Stage.UPLOAD,
        uploaded: Stage.SUBMIT,
        doubtful: Stage.RESOLVE,
    }


def test_two_dispatchers_share_without_waiting_and_without_overlap(shared):
    with shared.begin() as conn:
        made = {make(conn, S.RUNNING, due_at=in_(-1)) for _ in range(30)}
    with shared.connect() as first, shared.connect() as second:
        mine = {one.id for one in claim(first, 10)}
        second.execute(text("SET LOCAL lock_timeout = '200ms'"))
        yours = {one.id for one in claim(second, 100)}
        first.commit()
        second.commit()
    assert len(mine) == 10
    assert yours == made - mine


def test_a_claim_that_is_rolled_back_is_as_if_it_never_was(shared):
    with shared.begin() as conn:
        generation_id = make(conn, S.RUNNING, due_at=in_(-1))
    with shared.connect() as conn:
        claim(conn)
        conn.rollback()
        assert [(one.id, one.lease) for one in claim(conn)] == [(generation_id, 8)]


def test_a_released_claim_is_due_soon_and_burns_no_try(conn):
    generation_id = make(conn, S.RUNNING, due_at=in_(-1), tries=3)
    claims = claim(conn)
    schedule.release(conn, [claim.held for claim in claims], seconds=2)
    row = read(conn, generation_id)
    assert row.tries == 3
    assert row.due_at - rows.db_now(conn) == timedelta(seconds=2)


def test_a_release_comes_too_late_for_a_lease_that_was_taken_over(conn):
    generation_id = make(conn, S.RUNNING, due_at=in_(-1))
    stale = claim(conn)
    conn.execute(update(table_of(Generation)).values(lease=g.lease + 1))
    schedule.release(conn, [claim.held for claim in stale], seconds=2)
    assert read(conn, generation_id).due_at - rows.db_now(conn) == timedelta(seconds=60)


def test_the_next_due_is_known_so_that_nobody_polls(conn):
    assert schedule.next_due_in(conn) is None
    make(conn, S.ACCEPTED, due_at=in_(1))
    make(conn, S.COMPLETED)
    assert schedule.next_due_in(conn) is None
    make(conn, S.RUNNING, due_at=in_(7))
    make(conn, S.RUNNING, due_at=in_(3))
    assert schedule.next_due_in(conn) == pytest.approx(3)
    assert schedule.next_due_in(conn, within=4) == pytest.approx(3)
    assert schedule.next_due_in(conn, within=2) is None


# --- admission ---------------------------------------------------------------------------------


def test_only_free_slots_are_filled(conn):
    """One that is uncertain holds none: most likely there is no task of it."""
    for status in LIVE:
        make(conn, status, due_at=in_(60))
    waiting = wait_in_line(conn, 10)
    assert admit(conn, slots=6) == waiting[:3]
    assert admit(conn, slots=6) == []
    assert schedule.in_flight(conn) == 6
    assert admit(conn, 2, slots=50) == waiting[3:5], "no more than there is room for messages"


@pytest.mark.parametrize("status", [S.UPLOADING, S.SUBMITTING, S.RUNNING])
def test_generations_past_admission_hold_a_slot(conn, status):
    for _ in range(2):
        make(conn, status, due_at=in_(60))
    waiting = wait_in_line(conn, 3)
    assert admit(conn, slots=3) == waiting[:1]


def test_attention_and_ended_rows_hold_no_slot(conn):
    for status in LIVE:
        make(conn, status, due_at=in_(60), attention="look", attention_at=func.now())
    for status in TERMINAL:
        make(conn, status)
    assert len(admit(conn, slots=2) + wait_in_line(conn, 2)) == 2
    assert len(admit(conn, slots=2)) == 2


def test_an_admitted_row_has_its_lease_and_its_event(conn):
    [generation_id] = wait_in_line(conn, 1)
    [one] = schedule.admit(conn, 5, max_in_flight=5, lease_seconds=60, ceiling=None)
    row = read(conn, generation_id)
    assert (one.id, one.lease, one.stage) == (generation_id, row.lease, Stage.SUBMIT)
    assert row.status == S.UPLOADING
    assert events(conn, generation_id) == [("admit", "accepted", "uploading")]
    assert claim(conn) == [], "it was handed out with its admission"


def test_higher_priority_goes_first_and_older_within_it(conn):
    low, normal, high = (wait_in_line(conn, 2, priority=p) for p in (-5, 0, 5))
    assert admit(conn, 3) == [*high, normal[0]]
    assert admit(conn, 9) == [normal[1], *low]


def test_what_is_not_due_yet_waits(conn):
    make(conn, S.ACCEPTED, due_at=in_(5))
    assert admit(conn) == []


def test_tenants_take_turns(conn):
    big = wait_in_line(conn, 9, tenant="big")
    small = wait_in_line(conn, 2, tenant="small", start=100)
    assert admit(conn, slots=4) == [big[0], small[0], big[1], small[1]]


def test_who_is_busy_already_waits_for_its_turn(conn):
    for _ in range(3):
        make(conn, S.RUNNING, tenant="big", due_at=in_(60))
    big = wait_in_line(conn, 5, tenant="big")
    small = wait_in_line(conn, 5, tenant="small", start=100)
    assert admit(conn, slots=7) == [*small[:3], big[0]]


def test_ten_thousand_of_one_tenant_do_not_starve_five_of_another(conn):
    conn.execute(
        text(
            "INSERT INTO generations (id, status, request, tenant, estimated_cost, due_at,"
            " created_at) SELECT gen_random_uuid(), 'accepted', '{}', 'big', 9, now(),"
            " now() - interval '1 day' + n * interval '1 ms' FROM generate_series(1, 10000) n"
        )
    )
    small = wait_in_line(conn, 5, tenant="small", start=999)
    admitted = admit(conn, slots=10)
    assert len(admitted) == 10
    assert set(small) <= set(admitted)


@pytest.mark.parametrize("status", [S.UPLOADING, S.SUBMITTING, S.UNCERTAIN])
def test_an_equal_one_in_doubt_blocks_and_is_named(conn, status):
    holder = make(conn, status, fingerprint="same", due_at=in_(60))
    blocked, free = wait_in_line(conn, 1, fingerprint="same") + wait_in_line(conn, 1, start=9)
    assert admit(conn) == [free]
    row = read(conn, blocked)
    assert (row.status, row.blocked_by) == (S.ACCEPTED, holder)
    assert row.due_at - rows.db_now(conn) == timedelta(seconds=schedule.BLOCKED_RECHECK)
    assert events(conn, blocked) == [], "waiting is no event"


@pytest.mark.parametrize("status", [S.RUNNING, S.COMPLETED, S.FAILED])
def test_an_equal_one_that_is_no_longer_in_doubt_blocks_nobody(conn, status):
    make(conn, status, fingerprint="same")
    waiting = wait_in_line(conn, 1, fingerprint="same")
    assert admit(conn) == waiting


def test_of_equal_ones_the_oldest_goes_and_the_rest_wait_for_it(conn):
    waiting = wait_in_line(conn, 4, fingerprint="same")
    assert admit(conn) == waiting[:1]
    assert {read(conn, i).blocked_by for i in waiting[1:]} == {waiting[0]}


def test_equal_ones_go_one_after_another_as_each_leaves_doubt(conn):
    waiting = wait_in_line(conn, 3, fingerprint="same")
    went = []
    while len(went) < 3:
        [one] = schedule.admit(conn, 9, max_in_flight=9, lease_seconds=60, ceiling=None)
        went.append(one.id)
        assert admit(conn) == []
        number = len(went)
        assert transitions.intend(
            conn,
            transitions.Intending(one.id, one.lease, 1, "same", 1, seed_drawn=False),
            settle_seconds=90,
        )
        assert admit(conn) == []
        assert transitions.submitted(
            conn,
            transitions.Answered(
                one.id,
                1,
                remote_task_id=f"t{number}",
                remote_status="pending",
                credit_cost=9,
                look_in=5,
            ),
        )
    assert went == waiting


def test_a_crowd_of_equal_seeds_does_not_keep_a_slot_from_the_rest(conn):
    """One slot is free and hundreds are blocked ahead of one that is not."""
    make(conn, S.UNCERTAIN, fingerprint="same", due_at=in_(60))
    wait_in_line(conn, 300, fingerprint="same")
    [other] = wait_in_line(conn, 1, start=900)
    looks = [admit(conn, slots=2) for _ in range(3)]
    assert [other] in looks


def test_a_row_in_attention_gives_up_its_slot_and_keeps_the_lock(conn):
    make(
        conn,
        S.UNCERTAIN,
        fingerprint="same",
        due_at=in_(60),
        attention="look",
        attention_at=func.now(),
    )
    [blocked] = wait_in_line(conn, 1, fingerprint="same")
    [free] = wait_in_line(conn, 1, start=9)
    assert set(admit(conn, slots=1) + admit(conn, slots=1)) == {free}
    assert read(conn, blocked).blocked_by is not None


def test_a_deadline_that_passed_ends_it_before_admission_even_without_a_slot(conn):
    late = make(conn, S.ACCEPTED, deadline_at=in_(-1))
    in_time = make(conn, S.ACCEPTED, deadline_at=in_(5))
    assert admit(conn, slots=1) == [in_time]
    assert read(conn, late).status == S.EXPIRED
    assert read(conn, late).error_code == "DEADLINE_PASSED"
    later = make(conn, S.ACCEPTED, deadline_at=in_(-1), due_at=in_(60))
    assert admit(conn, slots=1) == []
    assert read(conn, later).status == S.EXPIRED


def test_deadline_passes_also_while_a_breaker_blocks_everything(rt):
    """Through the dispatcher, which once didn't look at what waited then."""
    with rt.engine.begin() as own:
        late = make(own, S.ACCEPTED, deadline_at=in_(-1))
        breakers.trip(own, BreakerName.API_KEY, "the key was refused", probe_in=60)
    handed_out: list[object] = []
    broker = broker_with(publish=lambda stage, claims: handed_out.append(claims))
    Dispatcher(rt, broker, slots=4).tick()
    assert not handed_out
    with rt.engine.connect() as own:
        assert read(own, late).status == S.EXPIRED


def test_under_a_credit_ceiling_only_the_affordable_go(conn):
    dear = wait_in_line(conn, 3, estimated_cost=Decimal("20.0001"))
    cheap = wait_in_line(conn, 3, estimated_cost=Decimal(20), start=100)
    assert admit(conn, slots=3, ceiling=Decimal(20)) == cheap
    assert admit(conn, slots=9, ceiling=Decimal(-1)) == []
    assert admit(conn, slots=9) == dear


def test_only_one_admits_at_a_time_and_the_other_does_not_wait(shared):
    with shared.begin() as conn:
        waiting = wait_in_line(conn, 4)
    with shared.connect() as first, shared.connect() as second:
        second.execute(text("SET LOCAL lock_timeout = '200ms'"))
        assert admit(first, slots=2) == waiting[:2]
        assert admit(second, slots=4) is None
        second.rollback()
        first.commit()
        assert admit(second, slots=4) == waiting[2:], "it counts what the first let in"


# --- waking dispatchers ------------------------------------------------------------------------


# --- claims --------------------------------------------------------------------------------------


def test_a_claim_ends_when_the_row_is_due_and_is_no_workers_yet(conn):
    generation_id = make(conn, S.RUNNING, due_at=in_(-1), claimed_by=5)
    [claim] = schedule.claim_due(conn, 9, lease_seconds=60)
    row = read(conn, generation_id)
    assert claim.lease == row.lease == 8
    assert row.leased_until == row.due_at == rows.db_now(conn) + timedelta(seconds=60)
    assert row.claimed_by is None


def test_an_admission_is_a_claim_that_is_no_workers_yet(conn):
    [generation_id] = wait_in_line(conn, 1)
    conn.execute(update(table_of(Generation)).values(claimed_by=5))
    assert admit(conn, slots=1) == [generation_id]
    row = read(conn, generation_id)
    assert row.leased_until == row.due_at
    assert row.claimed_by is None


def test_a_claim_that_is_given_back_ends_no_lease_of_its_own(conn):
    """It is due by itself, so the release of dead workers must leave it alone."""
    generation_id = make(conn, S.RUNNING, due_at=in_(-1))
    claims = schedule.claim_due(conn, 9, lease_seconds=60)
    schedule.release(conn, [claim.held for claim in claims], seconds=2)
    row = read(conn, generation_id)
    assert row.due_at == rows.db_now(conn) + timedelta(seconds=2)
    assert row.due_at != row.leased_until


def test_enqueuing_wakes_who_listens_at_the_commit(engine):
    with engine.connect() as listening, engine.connect() as other:
        listening.execute(text(f"LISTEN {schedule.CHANNEL}"))
        listening.commit()
        raw = listening.connection.driver_connection
        schedule.wake(other)
        assert list(raw.notifies(timeout=0.05)) == []
        other.commit()
        heard = Counter(n.channel for n in raw.notifies(timeout=5, stop_after=1))
        assert heard == {schedule.CHANNEL: 1}
