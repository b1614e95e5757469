"""Credits before a submission: what is not there is not spent, and who waits says so."""

import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from decimal import Decimal

import pytest
from sqlalchemy import Connection, func, text

from models import credit, schedule, transitions
from models.credit import Purse, Senior
from models.flow_control import breakers
from models.ledger import reading
from models.ledger.drift import drift
from models.lifecycle import LIVE, Status
from models.schedule import Stage
from models.tables import BalanceSnapshot
from models.wait_reasons import WaitReason, sentence
from tests.brokers import broker_with
from tests.integration import rows
from tests.integration.conftest import text_request
from tests.integration.rows import make, read, seen
from worker.dispatcher import Dispatcher
from worker.upkeep import balance, prune

S = Status


def told(conn: Connection, remain: object, *, used: object = 0, ago: float = 0) -> None:
    """The provider told the balance so many seconds ago."""
    breakers.record_balance(
        conn,
        total=Decimal(1000),
        used=Decimal(str(used)),
        remain=Decimal(str(remain)),
        asked_at=rows.db_now(conn) - timedelta(seconds=ago),
    )


def admit(conn: Connection, senior: Senior | None = None, limit: int = 50) -> list[uuid.UUID]:
    claims = schedule.admit(
        conn,
        limit,
        max_in_flight=50,
        lease_seconds=60,
        ceiling=None,
        open_purse=lambda conn: Purse(credit.funds(conn), senior),
    )
    return [claim.id for claim in claims or ()]


def charged(conn: Connection, amount: object) -> None:
    """Something completed just now and cost that."""
    generation_id = make(conn, S.RUNNING, credit_cost=amount, estimated_cost=amount)
    task = read(conn, generation_id).remote_task_id
    transitions.apply_observation(conn, seen(task, "completed", credit_cost=Decimal(str(amount))))


# --- what is free -------------------------------------------------------------------------------


def test_what_is_free_is_the_balance_less_what_happened_since_and_what_may_happen(conn):
    told(conn, 100, ago=60)
    conn.execute(text("SELECT 1"))
    charged(conn, 8)
    for status in LIVE:
        make(conn, status, estimated_cost=3)
    make(conn, S.ACCEPTED, estimated_cost=50)
    make(conn, S.RUNNING, estimated_cost=5, credit_cost=6, attention="?", attention_at=func.now())
    known = credit.funds(conn)
    assert (known.charged, known.under_way, known.stuck) == (8, 4 * 3 + 6, 6)
    assert known.free == 100 - 8 - 18
    assert known.in_the_end == 100 - 8 - 6
    assert known.age >= 60


def test_a_charge_from_before_the_balance_was_asked_for_is_in_it_already(conn):
    charged(conn, 8)
    conn.execute(text("SELECT 1"))
    told(conn, 100, ago=-1)
    assert credit.funds(conn).free == 100


def test_a_second_task_that_runs_may_be_charged_as_well(conn):
    told(conn, 100, ago=1)
    conn.execute(
        text(
            "INSERT INTO stray_tasks (task_id, kind, generation_id, status, credit_cost)"
            " VALUES ('T2', 'second', gen_random_uuid(), 'processing', 7)"
        )
    )
    assert credit.funds(conn).free == 93


def test_with_no_balance_told_nothing_is_known(conn):
    make(conn, S.RUNNING)
    assert credit.funds(conn).free is None
    ids = [make(conn, S.ACCEPTED) for _ in range(3)]
    assert sorted(admit(conn)) == sorted(ids)


@pytest.fixture
def environment(environment: dict[str, str]) -> dict[str, str]:
    return environment | {"SEEDANCE_CHECK_BALANCE": "true"}


def test_what_a_stage_reserves_is_what_the_check_counts(rt, steps, sim):
    """The operational sum and the ledger's agree while something is on its way."""
    sim.configure(speed=0)
    balance.run(rt)
    for _ in range(3):
        steps.enqueue()
    steps.once()
    with rt.engine.connect() as conn:
        assert credit.funds(conn).under_way == reading.outstanding(conn) == 27


# --- who is let in ------------------------------------------------------------------------------


def test_no_more_is_let_in_than_the_account_covers(conn):
    told(conn, 20, ago=1)
    ids = [make(conn, S.ACCEPTED, estimated_cost=9) for _ in range(5)]
    assert len(admit(conn)) == 2
    assert admit(conn) == []
    credit.tell(conn)
    waiting = [read(conn, i) for i in ids if read(conn, i).status == S.ACCEPTED]
    assert len(waiting) == 3
    assert {row.wait_reason for row in waiting} == {"credits"}
    for row in waiting:
        assert row.wait_detail == {
            "needed": "9",
            "free": "2",
            "on_account": "20",
            "under_way": "18",
        }
        assert sentence(WaitReason.CREDITS, row.wait_detail) == (
            "credits: 9 needed, 2 free (20 on the account, 18 reserved for generations under way)"
        )
    assert all(row.attention is None and row.finished_at is None for row in waiting)


def test_the_last_credit_may_be_spent(conn):
    told(conn, 18, ago=1)
    for _ in range(2):
        make(conn, S.ACCEPTED, estimated_cost=9)
    assert len(admit(conn)) == 2


def test_a_cheap_one_passes_a_dear_one_that_waits(conn):
    told(conn, 10, ago=1)
    dear = make(conn, S.ACCEPTED, estimated_cost=40, priority=9)
    cheap = make(conn, S.ACCEPTED, estimated_cost=4)
    assert admit(conn) == [cheap]
    credit.tell(conn)
    row = read(conn, dear)
    assert row.wait_reason == "credits"
    assert (row.wait_detail["needed"], row.wait_detail["free"]) == ("40", "6")


def test_many_dear_ones_do_not_hide_a_cheap_one(conn):
    told(conn, 10, ago=1)
    for _ in range(30):
        make(conn, S.ACCEPTED, estimated_cost=40, priority=9)
    cheap = make(conn, S.ACCEPTED, estimated_cost=4)
    assert admit(conn, limit=5) == [cheap]


def test_for_a_dear_one_that_has_waited_long_credits_are_saved_up(conn):
    told(conn, 50, ago=1)
    running = make(conn, S.RUNNING, estimated_cost=30)
    long_ago = rows.db_now(conn) - timedelta(seconds=credit.FAIR_AFTER + 1)
    dear = make(conn, S.ACCEPTED, estimated_cost=40, created_at=long_ago, wait_reason="credits")
    cheap = make(conn, S.ACCEPTED, estimated_cost=4, priority=9)
    senior = credit.tell(conn).senior
    assert senior == Senior(dear, Decimal(40))
    assert admit(conn, senior) == [], "the cheap one would take what the dear one needs"
    task = read(conn, running).remote_task_id
    transitions.apply_observation(conn, seen(task, "failed"))
    assert set(admit(conn, senior)) == {dear, cheap}, "10 are left beside it"
    assert credit.tell(conn).senior is None


def test_what_nobody_can_pay_holds_nobody_up(conn):
    told(conn, 50, ago=1)
    long_ago = rows.db_now(conn) - timedelta(seconds=credit.FAIR_AFTER + 1)
    make(conn, S.ACCEPTED, estimated_cost=60, created_at=long_ago, wait_reason="credits")
    # 40 of the 50 are stuck with an operator: 20 may never be there either.
    make(conn, S.RUNNING, estimated_cost=40, attention="?", attention_at=func.now())
    make(conn, S.ACCEPTED, estimated_cost=20, created_at=long_ago, wait_reason="credits")
    cheap = make(conn, S.ACCEPTED, estimated_cost=4)
    senior = credit.tell(conn).senior
    assert senior is None
    assert admit(conn, senior) == [cheap]


def test_who_waits_no_longer_for_credits_does_not_say_so(conn):
    told(conn, 5, ago=2)
    waiting = make(conn, S.ACCEPTED)
    assert admit(conn) == []
    assert credit.tell(conn).anybody
    told(conn, 500, ago=1)
    assert not credit.tell(conn).anybody
    row = read(conn, waiting)
    assert (row.wait_reason, row.wait_detail) == (None, None)


def test_of_admissions_at_the_same_moment_none_spends_what_another_has_taken(engine):
    """Real connections, all at once, again and again: the account is never overdrawn."""
    with engine.begin() as conn:
        told(conn, 45, ago=1)
        for _ in range(20):
            make(conn, S.ACCEPTED, estimated_cost=9, tenant="race")
    ready = threading.Barrier(6)

    def admitter(_: int) -> int:
        got = 0
        for _ in range(5):
            ready.wait(20)
            with engine.begin() as conn:
                got += len(admit(conn, limit=2))
        return got

    with ThreadPoolExecutor(6) as pool:
        admitted = sum(pool.map(admitter, range(6)))
    assert admitted == 5
    with engine.begin() as conn:
        assert credit.funds(conn).free == 0
        conn.execute(text("DELETE FROM generations"))
        conn.execute(text("DELETE FROM balance_snapshots"))


# --- the dispatcher -----------------------------------------------------------------------------


class Desk:
    """A dispatcher whose messages and probes are kept."""

    def __init__(self, rt):
        self.published: list[uuid.UUID] = []
        self.probes = 0
        self.dispatcher = Dispatcher(rt, self._broker(), slots=20)

    def _broker(self):
        def publish(stage: Stage, claims):
            self.published += [claim.id for claim in claims]

        def probe():
            self.probes += 1

        return broker_with(publish=publish, probe=probe)


def test_on_a_fresh_install_the_balance_is_read_first(rt, steps):
    desk = Desk(rt)
    steps.enqueue()
    desk.dispatcher.tick()
    assert (desk.published, desk.probes) == ([], 1)
    balance.run(rt)
    desk.dispatcher.tick()
    assert len(desk.published) == 1


def test_a_provider_that_does_not_tell_its_balance_stops_nothing(rt, steps, monkeypatch):
    monkeypatch.setattr("worker.dispatcher.FIRST_BALANCE", 0.05)
    desk = Desk(rt)
    generation_id = steps.enqueue()
    desk.dispatcher.tick()
    threading.Event().wait(0.1)
    desk.dispatcher.tick()
    assert desk.published == [generation_id]


def test_where_credits_are_short_the_balance_is_read_again_sparingly(make_runtime, steps, sim):
    rt = make_runtime(probe_every=30.0)
    sim.change_account(sim.api_key, credits="5")
    balance.run(rt)
    steps.enqueue()
    desk = Desk(rt)
    for _ in range(3):
        desk.dispatcher.tick()
    assert (desk.published, desk.probes) == ([], 0), "it was just read"
    with rt.engine.begin() as conn:
        conn.execute(text("UPDATE balance_snapshots SET at = at - interval '31 seconds'"))
    desk.dispatcher._told = -1e9
    desk.dispatcher.tick()
    desk.dispatcher._told = -1e9
    desk.dispatcher.tick()
    assert desk.probes == 1


def test_turned_off_nothing_is_asked(make_runtime, steps, sim):
    rt = make_runtime(check_balance=False)
    sim.change_account(sim.api_key, credits="5")
    balance.run(rt)
    generation_id = steps.enqueue()
    desk = Desk(rt)
    desk.dispatcher.tick()
    assert desk.published == [generation_id]


@pytest.mark.parametrize("check", [True, False])
def test_parallel_work_overdraws_the_account_only_without_the_check(
    make_runtime, steps, sim, check
):
    """The provider refuses what one task costs too much, and never what many cost together."""
    rt = make_runtime(check_balance=check)
    sim.configure(speed=0)
    sim.change_account(sim.api_key, credits="20")
    balance.run(rt)
    ids = [steps.enqueue(text_request(f"cat {n}")) for n in range(6)]
    desk = Desk(rt)
    for _ in range(3):
        desk.dispatcher.tick()
        for claim in [(i, steps) for i in desk.published]:
            claim[1].run(schedule.Claim(claim[0], read_lease(rt, claim[0]), Stage.SUBMIT, 0))
        desk.published.clear()
    sim.advance(3_600)
    for generation_id in ids:
        if steps.get(generation_id).status is Status.RUNNING:
            with rt.engine.begin() as conn:
                conn.execute(text("UPDATE generations SET due_at = now() WHERE status = 'running'"))
            for claim in steps.due():
                steps.run(claim)
    used = Decimal(str(sim.accounts()[0]["used"]))
    waiting = [i for i in ids if steps.get(i).status is Status.ACCEPTED]
    with rt.engine.connect() as conn:
        assert reading.charged(conn) == used
        assert reading.imbalances(conn) == []
    if check:
        assert (used, len(waiting)) == (18, 4)
        assert all(steps.get(i).waits_for.startswith("credits: 9 needed") for i in waiting)
    else:
        assert used == 54, "34 more than there were"


def read_lease(rt, generation_id):
    with rt.engine.connect() as conn:
        return read(conn, generation_id).lease


# --- drift --------------------------------------------------------------------------------------


def test_without_two_readings_there_is_no_drift_to_tell(conn):
    assert drift(conn) is None
    told(conn, 100)
    assert drift(conn) is None


def test_what_the_provider_took_and_the_ledger_has_are_equal(conn):
    told(conn, 100, used=0, ago=5)
    charged(conn, 9)
    told(conn, 91, used=9, ago=-1)
    apart = drift(conn)
    assert (apart.provider, apart.ledger, apart.credits) == (9, 9, 0)
    assert not apart.large
    assert apart.explain().endswith("no drift")


def test_a_foreign_task_explains_a_drift(conn):
    told(conn, 100, used=0, ago=5)
    conn.execute(
        text(
            "INSERT INTO stray_tasks (task_id, kind, status, credit_cost)"
            " VALUES ('F', 'foreign', 'completed', 9)"
        )
    )
    told(conn, 91, used=9, ago=-1)
    apart = drift(conn)
    assert (apart.credits, apart.unexplained) == (9, 0)
    assert "foreign tasks (1, up to 9)" in apart.explain()


def test_a_drift_that_nothing_explains_is_large(conn):
    told(conn, 100, used=0, ago=5)
    charged(conn, 9)
    told(conn, 50, used=50, ago=-1)
    apart = drift(conn)
    assert (apart.credits, apart.large) == (41, True)
    assert apart.unexplained == Decimal("40.995"), "a charge may be rounded"
    assert "40.995 unexplained" in apart.explain()


def test_the_first_balance_is_never_pruned(rt):
    with rt.engine.begin() as conn:
        for ago in (400, 300, 1):
            told(conn, 100, ago=ago * 86_400)
    assert prune.run(rt) == 1
    with rt.engine.connect() as conn:
        assert len(conn.execute(BalanceSnapshot.__table__.select()).all()) == 2
