"""Gates: what closes them, who still passes, what opens them; and what the balance says."""

from decimal import Decimal

import pytest

from models import gates
from models.gates import GateName
from models.lifecycle import Status
from tests.integration.conftest import text_request
from tests.integration.invariants import laboratory
from tests.integration.test_dispatcher import Messages, dispatcher
from tests.waiting import wait_for as until
from worker.stages import common
from worker.upkeep import balance


@pytest.fixture
def lab(make_runtime, sim, caplog):
    with laboratory(make_runtime, sim, caplog) as lab:
        yield lab


DEAR = {"resolution": "1080p", "duration": 15}  # 67.5 credits
CHEAP = {"resolution": "480p", "duration": 4}  # 3.6 credits


def ceiling(lab):
    with lab.rt.engine.connect() as conn:
        return gates.sending(conn).ceiling


def test_a_dear_row_waits_while_cheap_ones_pass(lab):
    lab.sim.change_account(lab.sim.api_key, credits=20)
    dear = lab.enqueue(text_request("dear", **DEAR), priority=9)
    one = dispatcher(lab, Messages(lab))
    one.tick()
    assert lab.get(dear).waits_for == "circuit breaker credit"
    assert lab.gates() == {"credit"}
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
    assert lab.gates() == set()
    lab.due_now(dear)
    one.tick()
    assert lab.get(dear).status is Status.RUNNING
    lab.end_tasks()


def test_until_the_balance_is_known_nobody_passes(lab):
    lab.sim.fault("submit", "error", code="INSUFFICIENT_CREDIT", times=1)
    lab.send(**DEAR)
    assert ceiling(lab) == -1
    cheap = lab.send("cheap", **CHEAP)
    assert lab.get(cheap).waits_for == "circuit breaker credit"
    assert lab.posts == 1


def test_a_402_in_spite_of_the_balance_lowers_what_passes(lab):
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


def test_running_tasks_are_followed_while_every_gate_is_closed(lab):
    generation_id = lab.send()
    for name in GateName:
        with lab.rt.engine.begin() as conn:
            gates.close(conn, name, "test", opens_in=60)
    lab.complete(generation_id)


def test_a_bad_key_holds_everything_and_fails_nothing(lab):
    running = lab.send("running")
    lab.sim.change_account(lab.sim.api_key, enabled=False)
    held = [lab.send(f"cat {n}") for n in range(3)]
    lab.run(lab.claim(running))

    assert {lab.get(i).status for i in held} == {Status.ACCEPTED}
    assert {lab.get(i).waits_for for i in held} == {"circuit breaker api_key"}
    assert lab.posts == 2, "one found out; the others were held"
    assert lab.get(running).status is Status.RUNNING
    assert balance.run(lab.rt) is None
    assert lab.gates() == {"api_key"}

    lab.sim.change_account(lab.sim.api_key, enabled=True)
    assert balance.run(lab.rt) is not None
    assert lab.gates() == set()
    for generation_id in held:
        lab.send_again(generation_id)
    assert {lab.get(i).status for i in held} == {Status.RUNNING}
    lab.end_tasks()


def test_the_backoff_gate_opens_by_its_time_alone(lab):
    lab.sim.fault("submit", "rate_limited", retry_after=0.5, times=1)
    generation_id = lab.send()
    assert lab.gates() == {"backoff"}
    balance.run(lab.rt)
    view = lab.until(generation_id, lambda view: view.status is Status.RUNNING)
    assert view.attempt == 2
    assert lab.posts == 2
    lab.complete(generation_id)


def test_a_longer_wait_is_not_shortened_by_a_shorter_one(lab):
    with lab.rt.engine.begin() as conn:
        assert gates.close(conn, GateName.BACKOFF, "long", opens_in=100) is True
        assert gates.close(conn, GateName.BACKOFF, "short", opens_in=1) is False
    assert lab.value("SELECT extract(epoch FROM opens_at - now()) FROM gates") > 90


def test_an_absurd_retry_after_is_capped(lab):
    lab.sim.fault("submit", "service_busy", retry_after=10**9, times=1)
    lab.send()
    assert lab.value("SELECT extract(epoch FROM opens_at - now()) FROM gates") <= 600


def test_a_probe_is_handed_out_once(lab):
    lab.sim.fault("submit", "error", code="INSUFFICIENT_CREDIT", times=1)
    lab.send()
    with lab.rt.engine.begin() as conn:
        assert gates.take_probe(conn, every=60) == [GateName.CREDIT]
        assert gates.take_probe(conn, every=60) == []


def test_the_balance_is_recorded_exactly(lab):
    generation_id = lab.send(model="seedance-2.0-fast", resolution="1080p", duration=8)
    view = lab.complete(generation_id)
    assert view.credit_cost == Decimal("26.50")
    found = balance.run(lab.rt)
    assert found is not None
    [row] = lab.sql("SELECT total_credits, used_credits, remain_credits FROM balance_snapshots")
    assert tuple(row) == (Decimal(10_000), Decimal("26.5"), Decimal("9973.5"))


@pytest.mark.parametrize("kind", ["error", "garbage", "drop_after", "null_result"])
def test_a_balance_that_cannot_be_read_changes_nothing(lab, kind):
    lab.sim.fault("balance", kind)
    assert balance.run(lab.rt) is None
    assert lab.value("SELECT count(*) FROM balance_snapshots") == 0
    assert lab.gates() == set()


def test_closing_is_logged_once(lab, caplog):
    lab.sim.change_account(lab.sim.api_key, enabled=False)
    for _ in range(3):
        balance.run(lab.rt)
    told = [r for r in caplog.records if r.name == common.log.name and "is closed" in r.message]
    assert len(told) == 1


def test_a_key_is_rotated_while_tasks_run(lab, make_runtime):
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
    assert lab.gates() == {"api_key"}
    lab.rt = workers["new"]
    balance.run(lab.rt)
    assert lab.gates() == set()
    assert {lab.complete(i).status for i in ids[1:]} == {Status.COMPLETED}
