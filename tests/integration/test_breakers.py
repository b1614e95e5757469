"""Circuit breakers: what opens them, what still passes, what closes them, and the balance."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from decimal import Decimal

import pytest
from sqlalchemy import Connection, func, select, text, update

from models.base import table_of
from models.flow_control import breakers
from models.flow_control.breakers import BreakerName, Breakers
from models.flow_control.table import Breaker
from models.lifecycle import Status
from tests.integration.conftest import text_request
from tests.integration.invariants import laboratory
from tests.integration.test_dispatcher import Messages, dispatcher
from tests.waiting import wait_for as until
from worker import flow
from worker.upkeep import balance


@pytest.fixture
def lab(make_runtime, sim, caplog):
    with laboratory(make_runtime, sim, caplog) as lab:
        yield lab


DEAR = {"resolution": "1080p", "duration": 15}  # 67.5 credits
CHEAP = {"resolution": "480p", "duration": 4}  # 3.6 credits


breaker = table_of(Breaker)


def ceiling(lab):
    with lab.rt.engine.connect() as conn:
        return breakers.read(conn).ceiling


def test_expensive_generation_waits_while_cheap_ones_pass(lab):
    lab.sim.change_account(lab.sim.api_key, credits=20)
    dear = lab.enqueue(text_request("dear", **DEAR), priority=9)
    one = dispatcher(lab, Messages(lab))
    one.tick()
    assert lab.get(dear).waits_for == "circuit breaker credit"
    assert lab.breakers() == {"credit"}
    until(lambda: one.tick() or ceiling(lab) == 20)  # probes, once in a tick's time
    cheap = [lab.enqueue(text_request(f"cheap {n}", **CHEAP)) for n in range(3)]

    lab.due_now(dear)
    for _ in range(3):
        one.tick()

    assert {lab.get(i).status for i in cheap} == {Status.RUNNING}
    assert lab.get(dear).status is Status.ACCEPTED
    assert lab.history(dear).count("intend") == 1
    assert lab.posts == 4

    lab.sim.change_account(lab.sim.api_key, credits=500)
    balance.run(lab.rt)
    assert lab.breakers() == set()
    lab.due_now(dear)
    one.tick()
    assert lab.get(dear).status is Status.RUNNING
    lab.end_tasks()


def test_nothing_passes_until_the_balance_is_known(lab):
    lab.sim.fault("submit", "error", code="INSUFFICIENT_CREDIT", times=1)
    lab.send(**DEAR)
    assert ceiling(lab) == -1
    cheap = lab.send("cheap", **CHEAP)
    assert lab.get(cheap).waits_for == "circuit breaker credit"
    assert lab.posts == 1


def test_402_in_spite_of_the_balance_lowers_the_ceiling(lab):
    """The provider counts otherwise than its balance says: what was refused bounds the rest."""
    lab.sim.fault("submit", "error", code="INSUFFICIENT_CREDIT", times=2)
    lab.send(**DEAR)
    lab.sim.change_account(lab.sim.api_key, credits=30)
    balance.run(lab.rt)
    assert ceiling(lab) == 30
    middle = lab.send("middle", duration=5)  # 9 credits, refused as well
    assert lab.get(middle).waits_for == "circuit breaker credit"
    assert ceiling(lab) < 9
    cheap = lab.send("cheap", **CHEAP)
    assert lab.get(cheap).status is Status.RUNNING
    lab.complete(cheap)


def test_running_tasks_are_followed_while_every_breaker_is_open(lab):
    generation_id = lab.send()
    for name in BreakerName:
        with lab.rt.engine.begin() as conn:
            breakers.trip(conn, name, "test", probe_in=60)
    lab.complete(generation_id)


def test_rejected_key_blocks_everything_and_fails_nothing(lab):
    running = lab.send("running")
    lab.sim.change_account(lab.sim.api_key, enabled=False)
    held = [lab.send(f"cat {n}") for n in range(3)]
    lab.run(lab.claim(running))

    assert {lab.get(i).status for i in held} == {Status.ACCEPTED}
    assert {lab.get(i).waits_for for i in held} == {"circuit breaker api_key"}
    assert lab.posts == 2, "one found out; the others were held"
    assert lab.get(running).status is Status.RUNNING
    assert balance.run(lab.rt) is None
    assert lab.breakers() == {"api_key"}

    lab.sim.change_account(lab.sim.api_key, enabled=True)
    assert balance.run(lab.rt) is not None
    assert lab.breakers() == set()
    for generation_id in held:
        lab.due_now(generation_id)
    for claim in lab.admit():
        lab.run(claim)
    assert {lab.get(i).status for i in held} == {Status.RUNNING}
    lab.end_tasks()


def test_probe_after_a_402_is_given_out_once(lab):
    lab.sim.fault("submit", "error", code="INSUFFICIENT_CREDIT", times=1)
    lab.send()
    with lab.rt.engine.begin() as conn:
        assert breakers.take_probe(conn, every=60) == [BreakerName.CREDIT]
        assert breakers.take_probe(conn, every=60) == []


def test_the_balance_is_recorded_exactly(lab):
    generation_id = lab.send(model="seedance-2.0-fast", resolution="1080p", duration=8)
    view = lab.complete(generation_id)
    assert view.credit_cost == Decimal("26.50")
    found = balance.run(lab.rt)
    assert found is not None
    [row] = lab.sql("SELECT total_credits, used_credits, remain_credits FROM balance_snapshots")
    assert tuple(row) == (Decimal(10_000), Decimal("26.5"), Decimal("9973.5"))


@pytest.mark.parametrize("kind", ["error", "garbage", "drop_after", "null_result"])
def test_balance_that_cannot_be_read_changes_nothing(lab, kind):
    lab.sim.fault("balance", kind)
    assert balance.run(lab.rt) is None
    assert lab.value("SELECT count(*) FROM balance_snapshots") == 0
    assert lab.breakers() == set()


def test_opening_is_logged_once(lab, caplog):
    lab.sim.change_account(lab.sim.api_key, enabled=False)
    for _ in range(3):
        balance.run(lab.rt)
    logged = [r for r in caplog.records if r.name == flow.log.name and "is open" in r.message]
    assert len(logged) == 1


def test_key_is_rotated_while_tasks_run(lab, make_runtime):
    """Two keys of one account, workers with either; then the old one is revoked."""
    old = lab.sim.api_key
    lab.sim.change_account(old, keys=[old, "the-new-key"])
    workers = {"old": lab.rt, "new": make_runtime(api_key="the-new-key")}
    ids = [lab.send(f"cat {n}") for n in range(2)]
    lab.rt = workers["new"]
    ids.append(lab.send("cat of the new key"))
    assert lab.complete(ids[0]).credit_cost == 9

    lab.sim.change_account(old, keys=["the-new-key"])
    # A worker that was forgotten holds everything back, and loses nothing.
    lab.rt = workers["old"]
    lab.run(lab.claim(ids[1]))
    assert lab.get(ids[1]).status is Status.RUNNING
    assert lab.breakers() == {"api_key"}
    lab.rt = workers["new"]
    balance.run(lab.rt)
    assert lab.breakers() == set()
    assert {lab.complete(i).status for i in ids[1:]} == {Status.COMPLETED}


# --- the database -------------------------------------------------------------------------------


def opened(conn: Connection) -> set[BreakerName]:
    return {one.name for one in breakers.read(conn).open}


def earlier(conn: Connection, seconds: float) -> None:
    """Let that many seconds pass."""
    shift = timedelta(seconds=seconds)
    names = ("opened_at", "probe_at", "closed_at")
    conn.execute(update(breaker).values({name: breaker.c[name] - shift for name in names}))


def trip(conn: Connection, name: BreakerName, reason: str = "why", **values) -> bool:
    return breakers.trip(conn, name, reason, **{"probe_in": 30.0} | values)


def record(conn: Connection, remain: str) -> Sequence[BreakerName]:
    return breakers.record_balance(
        conn, total=Decimal(100), used=Decimal(0), remain=Decimal(remain)
    )


def trips(conn: Connection, name: BreakerName) -> int:
    return conn.execute(select(breaker.c.trips).where(breaker.c.name == str(name))).scalar_one()


def test_breakers_are_closed_at_first(conn):
    assert breakers.read(conn) == Breakers()
    assert not conn.execute(select(breakers.any_open())).scalar_one()
    assert not breakers.close(conn, BreakerName.CREDIT)


@pytest.mark.parametrize("name", BreakerName)
def test_tripping_and_closing_report_a_change_once(conn, name):
    assert trip(conn, name, "first")
    assert not trip(conn, name, "second")
    assert opened(conn) == {name}
    assert conn.execute(select(breakers.any_open())).scalar_one()
    assert breakers.read(conn).open[0].reason == "second"
    assert breakers.close(conn, name)
    assert not breakers.close(conn, name)
    assert opened(conn) == set()
    assert not conn.execute(select(breakers.any_open())).scalar_one()


def test_breaker_stays_open_however_long_it_takes(conn):
    trip(conn, BreakerName.API_KEY)
    earlier(conn, 1_000_000)
    assert opened(conn) == {BreakerName.API_KEY}


def test_many_refusals_of_one_moment_are_one_trip(conn):
    for _ in range(5):
        trip(conn, BreakerName.CREDIT)
    assert trips(conn, BreakerName.CREDIT) == 1
    breakers.close(conn, BreakerName.CREDIT)
    trip(conn, BreakerName.CREDIT)
    assert trips(conn, BreakerName.CREDIT) == 2


def test_trips_are_forgotten_once_closed_for_long_enough(conn):
    trip(conn, BreakerName.CREDIT)
    breakers.close(conn, BreakerName.CREDIT)
    earlier(conn, 59)
    breakers.forget_trips(conn, after=60)
    assert trips(conn, BreakerName.CREDIT) == 1
    earlier(conn, 2)
    breakers.forget_trips(conn, after=60)
    assert trips(conn, BreakerName.CREDIT) == 0


def test_forgetting_trips_closes_no_breaker(conn):
    for name in BreakerName:
        trip(conn, name)
        breakers.close(conn, name)
        trip(conn, name)
    earlier(conn, 1000)
    breakers.forget_trips(conn, after=1)
    assert opened(conn) == set(BreakerName)
    assert {trips(conn, name) for name in BreakerName} == {2}


def test_each_probe_is_given_out_once(conn):
    trip(conn, BreakerName.API_KEY)
    assert breakers.take_probe(conn, every=30) == []
    earlier(conn, 30)
    assert breakers.take_probe(conn, every=30) == [BreakerName.API_KEY]
    assert breakers.take_probe(conn, every=30) == []
    earlier(conn, 30)
    assert breakers.take_probe(conn, every=30) == [BreakerName.API_KEY]


@pytest.mark.parametrize(
    ("open_for", "pause"), [(0, 30), (119, 30), (200, 50), (1_200, 300), (100_000, 300)]
)
def test_breaker_is_probed_less_and_less_often(conn, open_for, pause):
    trip(conn, BreakerName.API_KEY, probe_in=0)
    earlier(conn, open_for)
    assert breakers.take_probe(conn, every=30) == [BreakerName.API_KEY]
    seconds = conn.execute(
        select(func.extract("epoch", breaker.c.probe_at - func.now()))
    ).scalar_one()
    assert float(seconds) == pytest.approx(pause, abs=0.1)


def test_further_refusals_do_not_delay_the_probe(conn):
    trip(conn, BreakerName.API_KEY)
    earlier(conn, 20)
    trip(conn, BreakerName.API_KEY)
    earlier(conn, 10)
    assert breakers.take_probe(conn, every=30) == [BreakerName.API_KEY]


def test_closed_breaker_is_not_probed(conn):
    trip(conn, BreakerName.API_KEY, probe_in=0)
    breakers.close(conn, BreakerName.API_KEY)
    assert breakers.take_probe(conn, every=30) == []


def test_two_workers_share_a_probe(engine):
    with engine.begin() as conn:
        trip(conn, BreakerName.CREDIT, probe_in=-1)
    with engine.connect() as first, engine.connect() as second:
        taken = breakers.take_probe(first, every=30)
        first.commit()
        assert taken + breakers.take_probe(second, every=30) == [BreakerName.CREDIT]
    with engine.begin() as conn:
        conn.execute(breaker.delete())


def test_two_workers_that_trip_it_together_log_it_once(engine):
    def act() -> bool:
        with engine.begin() as conn:
            return trip(conn, BreakerName.CREDIT)

    with ThreadPoolExecutor(6) as threads:
        first = list(threads.map(lambda _: act(), range(6)))
    with engine.begin() as conn:
        assert sum(first) == 1
        assert trips(conn, BreakerName.CREDIT) == 1
        conn.execute(breaker.delete())


def test_answered_balance_shows_that_the_key_is_valid(conn):
    trip(conn, BreakerName.API_KEY)
    trip(conn, BreakerName.CREDIT, refused_estimate=Decimal(5))
    assert record(conn, "0") == [BreakerName.API_KEY]
    assert opened(conn) == {BreakerName.CREDIT}


@pytest.mark.parametrize(("remain", "closes"), [("19.9999", False), ("20", True), ("500", True)])
def test_credits_for_the_refused_estimate_close_the_breaker(conn, remain, closes):
    trip(conn, BreakerName.CREDIT, refused_estimate=Decimal(20))
    assert record(conn, remain) == [BreakerName.CREDIT] * closes
    assert (BreakerName.CREDIT in opened(conn)) is not closes


@pytest.mark.parametrize(
    ("before", "open_for", "closes"),
    [(2, 9, False), (2, 11, True), (9, 299, False), (9, 301, True)],
)
def test_credit_breaker_that_trips_again_and_again_stays_open_for_longer(
    conn, before, open_for, closes
):
    for _ in range(before):
        trip(conn, BreakerName.CREDIT, refused_estimate=Decimal(5))
        breakers.close(conn, BreakerName.CREDIT)
    conn.execute(update(breaker).values(trips=before - 1))
    trip(conn, BreakerName.CREDIT, refused_estimate=Decimal(5))
    earlier(conn, open_for)
    assert record(conn, "100") == [BreakerName.CREDIT] * closes


def test_cheapest_refused_estimate_counts(conn):
    for estimate in (20, 5, 50):
        trip(conn, BreakerName.CREDIT, refused_estimate=Decimal(estimate))
    assert breakers.read(conn).open[0].refused_estimate == 5


def test_closed_breaker_forgets_the_refused_estimate(conn):
    trip(conn, BreakerName.CREDIT, refused_estimate=Decimal(5))
    breakers.close(conn, BreakerName.CREDIT)
    trip(conn, BreakerName.CREDIT, refused_estimate=Decimal(50))
    [one] = breakers.read(conn).open
    assert one.refused_estimate == 50
    assert trips(conn, BreakerName.CREDIT) == 2


def test_remaining_credits_are_those_of_the_latest_balance(engine):
    with engine.begin() as conn:
        trip(conn, BreakerName.CREDIT, refused_estimate=Decimal(50))
    for remain in ("40", "30"):
        with engine.begin() as conn:
            record(conn, remain)
    with engine.begin() as conn:
        assert breakers.read(conn).remaining == 30
        conn.execute(breaker.delete())
        conn.execute(text("DELETE FROM balance_snapshots"))


def test_breakers_of_another_account_block_nothing(conn):
    trip(conn, BreakerName.API_KEY, account="other")
    assert breakers.read(conn) == Breakers()
    assert [one.name for one in breakers.read(conn, account="other").open] == [BreakerName.API_KEY]
