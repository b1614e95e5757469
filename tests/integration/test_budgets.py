"""Budgets: refused at the door or made to wait, with the figures, and not to be raced past."""

import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from sqlalchemy import Connection, event, func, text
from sqlalchemy.orm import Session

from models import budgets, credit, intake, schedule, transitions
from models.budgets import BudgetExceeded, Period, Policy
from models.credit import Purse
from models.lifecycle import Status
from models.wait_reasons import WaitReason, sentence
from tests.integration import rows
from tests.integration.conftest import text_request
from tests.integration.rows import make, read, seen
from worker import producer
from worker.requests import new_budget, new_generation
from worker.stages import accept

S = Status


def allow(conn: Connection, amount: object, period: str = "day", policy: str = "refuse") -> None:
    budgets.put(conn, new_budget("acme", period, str(amount), policy))


def enqueue(conn: Connection, tenant: str = "acme", **options: object) -> uuid.UUID:
    return intake.accept(conn, new_generation(text_request(), tenant=tenant, **options)).id


def count(conn: Connection) -> int:
    return conn.execute(text("SELECT count(*) FROM generations")).scalar_one()


def spend(conn: Connection, amount: object, *, tenant: str = "acme", ago: str = "0 s") -> None:
    conn.execute(
        text(
            "INSERT INTO ledger_entries (at, kind, amount, generation_id, attempt,"
            " remote_task_id, event, tenant) VALUES (now() - CAST(:ago AS interval), 'charged',"
            " :amount, :id, 1, :task, 'complete', :tenant)"
        ),
        {
            "ago": ago,
            "amount": amount,
            "id": uuid.uuid4(),
            "task": uuid.uuid4().hex,
            "tenant": tenant,
        },
    )


def admit(conn: Connection) -> list[uuid.UUID]:
    claims = schedule.admit(
        conn,
        50,
        max_in_flight=50,
        lease_seconds=60,
        ceiling=None,
        open_purse=lambda conn: Purse(credit.funds(conn)),
    )
    return [claim.id for claim in claims]


# --- at the door --------------------------------------------------------------------------------


def test_what_is_over_budget_is_refused_with_the_figures_and_leaves_nothing(conn):
    allow(conn, 20)
    spend(conn, 9)
    enqueue(conn)
    with pytest.raises(BudgetExceeded) as caught:
        enqueue(conn)
    assert str(caught.value) == (
        "over budget: 9 needed, and tenant 'acme' may spend 20 a day: 9 are charged and 9 under"
        " way, which leaves 2"
    )
    assert count(conn) == 1, "the transaction goes on, without what was refused"
    assert not conn.execute(
        text("SELECT 1 FROM ledger_entries WHERE kind = 'estimated' OFFSET 1")
    ).all()


def test_the_last_credit_of_a_budget_may_be_spent(conn):
    allow(conn, 18)
    enqueue(conn)
    enqueue(conn)
    assert count(conn) == 2


def test_others_budgets_do_not_matter(conn):
    allow(conn, 0)
    enqueue(conn, tenant="other")
    assert count(conn) == 1


def test_what_ended_without_a_charge_leaves_the_budget_as_it_was(conn):
    allow(conn, 9)
    generation_id = enqueue(conn)
    with pytest.raises(BudgetExceeded):
        enqueue(conn)
    transitions.cancel(conn, generation_id)
    enqueue(conn)


def test_a_repeated_request_is_not_refused(conn):
    allow(conn, 9)
    first = enqueue(conn, idempotency_key="k")
    assert enqueue(conn, idempotency_key="k") == first


def test_a_batch_is_stored_as_a_whole_or_not_at_all(conn):
    allow(conn, 20)
    with pytest.raises(BudgetExceeded, match="27 needed"):
        producer.enqueue_many([text_request()] * 3, session=conn, tenant="acme")
    assert count(conn) == 0
    assert len(producer.enqueue_many([text_request()] * 2, session=conn, tenant="acme")) == 2


def test_a_caller_who_commits_all_the_same_stores_nothing(engine):
    with engine.begin() as conn:
        allow(conn, 5)
    with Session(engine) as session, session.begin(), pytest.raises(BudgetExceeded):
        producer.enqueue(text_request(), session=session, tenant="acme")
    with engine.begin() as conn:
        assert count(conn) == 0
        budgets.remove(conn, "acme", Period.DAY)


@pytest.mark.parametrize(
    ("period", "ago", "counts"),
    [
        ("total", "1000 days", True),
        ("month", "62 days", False),
        ("day", "25 h", False),
        ("day", "0 s", True),
        ("month", "0 s", True),
    ],
)
def test_a_period_counts_what_was_charged_in_it(conn, period, ago, counts):
    allow(conn, 10, period)
    spend(conn, 9, ago=ago)
    [room] = budgets.rooms(conn, ["acme"])
    assert room.charged == (9 if counts else 0)
    assert room.left == 10 - room.charged


def test_periods_begin_at_midnight_in_utc_whatever_the_session_says(conn):
    conn.execute(text("SET LOCAL TimeZone = 'Pacific/Kiritimati'"))
    allow(conn, 10, "day")
    allow(conn, 10, "month")
    day, month = budgets.rooms(conn, ["acme"])
    now = rows.db_now(conn).astimezone(UTC)
    assert day.since == datetime(now.year, now.month, now.day, tzinfo=UTC)
    assert month.since == datetime(now.year, now.month, 1, tzinfo=UTC)
    assert 0 < day.ends_in <= 86_400
    assert day.ends_in <= month.ends_in <= 31 * 86_400


def test_of_requests_at_the_same_moment_only_as_many_as_fit_are_stored(engine):
    with engine.begin() as conn:
        allow(conn, 27)
    ready = threading.Barrier(8)

    def one(_: int) -> bool:
        with engine.connect() as conn:
            conn.execute(func.now().select())
            ready.wait(20)
            try:
                enqueue(conn)
            except BudgetExceeded:
                conn.rollback()
                return False
            conn.commit()
            return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(one, range(8))) == 3
    with engine.begin() as conn:
        assert count(conn) == 3
        conn.execute(text("DELETE FROM generations"))
        budgets.remove(conn, "acme", Period.DAY)


def test_a_message_over_budget_ends_as_a_failed_generation_that_says_so(rt, steps):
    with rt.engine.begin() as conn:
        allow(conn, 5)
    generation_id = uuid.uuid4()
    for _ in range(2):
        accept.run(rt, str(generation_id), [], {"request": text_request(), "tenant": "acme"})
    view = steps.get(generation_id)
    assert (view.status, view.error_code, view.tenant) == (S.FAILED, "BUDGET_EXCEEDED", "acme")
    assert "9 needed, and tenant 'acme' may spend 5 a day" in view.error_message
    assert steps.history(generation_id) == ["reject"]


def test_who_has_no_budget_pays_no_statement_for_it(conn):
    statements = []

    def listen(conn, cursor, statement, parameters, context, executemany):
        statements.append(statement)

    event.listen(conn, "before_cursor_execute", listen)
    enqueue(conn)
    event.remove(conn, "before_cursor_execute", listen)
    assert len(statements) == 1, "budgets, the row with event and entry, the wake-up"
    assert sum("budgets" in statement for statement in statements) == 1


# --- waiting ------------------------------------------------------------------------------------


def test_what_is_over_a_budget_that_waits_is_stored_and_waits(conn):
    allow(conn, 20, "day", "wait")
    ids = [enqueue(conn) for _ in range(4)]
    assert len(admit(conn)) == 2
    assert admit(conn) == []
    waiting = [row for row in (read(conn, i) for i in ids) if row.status == S.ACCEPTED]
    assert len(waiting) == 2
    for row in waiting:
        assert row.wait_reason == "budget"
        assert sentence(WaitReason.BUDGET, row.wait_detail) == (
            "budget: 9 needed, and tenant 'acme' may spend 20 a day: 0 are charged and 18 under"
            " way, which leaves 2"
        )
        assert row.due_at > rows.db_now(conn)


def test_a_tenant_over_budget_does_not_hold_up_the_others(conn):
    allow(conn, 0, "total", "wait")
    for _ in range(30):
        make(conn, S.ACCEPTED, tenant="acme", priority=9)
    other = make(conn, S.ACCEPTED, tenant="other")
    assert admit(conn) == [other]


def test_an_older_equal_one_over_budget_does_not_hold_up_another_tenants(conn):
    """It may wait until the month is over."""
    allow(conn, 0, "total", "wait")
    earlier = rows.db_now(conn) - timedelta(seconds=9)
    over = make(conn, S.ACCEPTED, tenant="acme", fingerprint="same", created_at=earlier)
    other = make(conn, S.ACCEPTED, tenant="other", fingerprint="same")
    assert admit(conn) == [], "which is over budget is known once it is looked at"
    assert read(conn, over).wait_reason == "budget"
    conn.execute(text("UPDATE generations SET due_at = now() WHERE id = :id"), {"id": other})
    assert admit(conn) == [other]


def test_a_raised_budget_lets_go_on_at_once(conn):
    allow(conn, 0, "day", "wait")
    waiting = enqueue(conn)
    assert admit(conn) == []
    allow(conn, 9, "day", "wait")
    assert admit(conn) == [waiting]


def test_a_removed_budget_lets_go_on_at_once(conn):
    allow(conn, 0, "day", "wait")
    waiting = enqueue(conn)
    assert admit(conn) == []
    assert budgets.remove(conn, "acme", Period.DAY)
    assert not budgets.remove(conn, "acme", Period.DAY)
    assert admit(conn) == [waiting]


def test_what_waits_is_looked_at_when_the_period_is_over(conn):
    allow(conn, 0, "day", "wait")
    waiting = enqueue(conn)
    admit(conn)
    [room] = budgets.rooms(conn, ["acme"], Policy.WAIT)
    seconds = (read(conn, waiting).due_at - rows.db_now(conn)).total_seconds()
    assert seconds == pytest.approx(min(budgets.RECHECK, room.ends_in), abs=1)


def test_what_cost_less_than_estimated_leaves_room_for_more(conn):
    allow(conn, 17, "day", "wait")
    first, second = enqueue(conn), enqueue(conn)
    assert admit(conn) == [first]
    conn.execute(
        text("UPDATE generations SET status = 'running', remote_task_id = 'T1' WHERE id = :id"),
        {"id": first},
    )
    transitions.apply_observation(conn, seen("T1", "completed", credit_cost=Decimal(8)))
    conn.execute(text("UPDATE generations SET due_at = now() WHERE status = 'accepted'"))
    assert admit(conn) == [second]


def test_the_demand_of_what_is_in_the_same_admission_counts(conn):
    allow(conn, 10, "month", "wait")
    make(conn, S.ACCEPTED, tenant="acme", estimated_cost=6, priority=1)
    make(conn, S.ACCEPTED, tenant="acme", estimated_cost=6)
    make(conn, S.ACCEPTED, tenant="acme", estimated_cost=4)
    assert len(admit(conn)) == 2


def test_what_is_left_is_told_from_python(rt, conn):
    with rt.engine.begin() as own:
        allow(own, 20)
        enqueue(own)
        [room] = producer.budgets_of("acme", session=own)
        assert (room.budget.amount, room.under_way, room.left) == (20, 9, 11)
        assert producer.budgets_of("nobody", session=own) == []


def test_an_estimate_asks_nobody():
    assert producer.estimate(text_request()) == 9
    assert producer.estimate(text_request(model="seedance-2.0-fast", duration=8)) == Decimal(
        "11.52"
    )
