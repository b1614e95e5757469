"""The plan is a function of its seed."""

from typing import get_args

from tests.chaos.plan import CALLBACK_STRIKES, STRIKES, draw
from tests.chaos.strikes import Strikes
from worker.crash_points import CrashPoint
from worker.requests import new_generation


def test_the_same_seed_gives_the_same_plan():
    assert draw(7, 120) == draw(7, 120)
    assert draw(7, 120).acts != draw(8, 120).acts


def test_a_long_plan_has_every_strike_and_every_crash_point():
    for seed in range(5):
        acts = draw(seed, 300).acts
        assert {act.kind for act in acts} >= STRIKES.keys()
        assert {act.kind for act in acts}.issuperset(CALLBACK_STRIKES) == draw(seed, 300).callbacks
        points = {act.args["point"] for act in acts if act.kind == "crash_at"}
        assert points == set(get_args(CrashPoint))


def test_every_act_can_be_carried_out():
    for act in draw(3, 300).acts:
        assert callable(getattr(Strikes, act.kind)), act


def test_every_order_is_a_request_that_would_be_accepted():
    for order in draw(5, 300).orders:
        new_generation(order.request, tenant=order.tenant, priority=order.priority)
        assert order.tag in str(order.request)


def test_few_seeds_show_every_trait():
    plans = [draw(seed, 300) for seed in range(12)]
    assert {plan.beats for plan in plans} == {0, 1, 2}
    assert {plan.serializable for plan in plans} == {True, False}
    assert {plan.debug for plan in plans} == {True, False}
    assert {plan.callbacks for plan in plans} == {True, False}
    assert any(plan.clock_shift > 60 for plan in plans)
    assert any(plan.clock_shift < -60 for plan in plans)
    assert {pool for plan in plans for pool in plan.pools} == {"threads", "prefork"}
    kinds = {key for plan in plans for order in plan.orders for key in _kinds(order)}
    assert kinds == {"deadline", "cancel", "celery", "seed", "references", "change", "end"}


def _kinds(order):
    yield from ["deadline"] if order.deadline is not None else []
    yield from ["cancel"] if order.cancel_after is not None else []
    yield from ["celery"] if order.by_celery else []
    yield from ["seed"] if order.seed is not None else []
    yield from ["references"] if order.references else []
    yield from [order.notify] if order.notify else []
