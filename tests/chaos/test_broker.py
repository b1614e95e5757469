"""The broker lies, forgets, freezes and dies; two workers go on, and everything is done once."""

import os

from models.lifecycle import Status
from tests.chaos.conftest import Arena, wait_for


def _strike_amid(arena: Arena, strike: str, **details: object) -> None:
    """Strike while generations are at every stage; then everything ends, and holds."""
    before = len(arena.sim.submits())
    arena.ask_mixed(8)
    arena.submitted(before + 3)
    getattr(arena.strikes, strike)(**details)
    arena.ask_mixed(4)
    arena.at_rest()
    arena.check()


def test_every_message_is_delivered_twice(shared_arena: Arena):
    shared_arena.tap.twice = True
    shared_arena.ask_mixed(8)
    shared_arena.at_rest()
    shared_arena.tap.twice = False
    assert shared_arena.tap.repeated >= 8, "a submission each, at least"
    shared_arena.check()


def test_old_messages_are_replayed(shared_arena: Arena):
    shared_arena.ask_mixed(6)
    shared_arena.submitted(1)
    for _ in range(3):
        shared_arena.tap.replay()
    shared_arena.at_rest()
    # And once more, when everything has ended.
    assert shared_arena.tap.replay() >= 10
    shared_arena.ask(1)
    shared_arena.at_rest()
    shared_arena.check()


def test_flushall(shared_arena: Arena):
    _strike_amid(shared_arena, "flush_broker")


def test_killed_with_its_data(shared_arena: Arena):
    _strike_amid(shared_arena, "broker_dies")


def test_killed_and_its_data_lost(shared_arena: Arena):
    _strike_amid(shared_arena, "broker_loses_all")


def test_frozen_for_longer_than_every_timeout(shared_arena: Arena):
    """All of them are 5 s or less; `CHAOS_FREEZE=60` holds it for a minute."""
    seconds = float(os.environ.get("CHAOS_FREEZE", "8"))
    _strike_amid(shared_arena, "broker_freezes", seconds=seconds)


def test_a_message_of_a_bare_client_survives_the_broker_and_its_worker(shared_arena: Arena):
    """`seedance.generate` is acknowledged when its row is committed, not before."""
    import uuid

    from celery import Celery

    from tests.chaos.plan import Order, tag

    number = len(shared_arena.orders)
    request = {"content": [{"type": "text", "text": f"chaos {tag(number)}"}]}
    generation_id = uuid.uuid4()
    shared_arena.orders.append(Order(number, 0.0, request, "default", 0, by_celery=True))
    shared_arena.ids[number] = generation_id
    mark = shared_arena.fleet.crash_at(shared_arena.fleet.workers[0], "accept.before_commit")
    shared_arena.fleet.workers[1].once = dict(shared_arena.fleet.workers[0].once)
    shared_arena.strikes.kill_all_workers()
    with Celery("elsewhere", broker=shared_arena.broker_url) as app:
        app.send_task("seedance.generate", task_id=str(generation_id), kwargs={"request": request})
    wait_for(mark.exists, "a worker died of it")
    shared_arena.strikes.broker_dies()

    wait_for(
        lambda: shared_arena.sql("SELECT 1 FROM generations WHERE id = :id", id=generation_id),
        "the row is there",
    )
    shared_arena.at_rest()
    assert shared_arena.status(number).status == Status.COMPLETED
    shared_arena.check()
