"""The plan is a function of its seed."""

import random
from typing import get_args

import pytest

from simulator.config import Config
from simulator.faults import FaultBook, FaultOrder
from tests.chaos.plan import (
    ARRIVALS,
    CALLBACK_STRIKES,
    CALM,
    CALM_ORDERS,
    CONCURRENCY_LIMITS,
    CONCURRENCY_MODES,
    OPENING,
    PARTIAL_ORDERS,
    RATES,
    REFUSED_SHARES,
    STRIKES,
    Act,
    Plan,
    draw,
)
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


def test_the_first_stage_has_no_faults():
    plan = draw(601, 60)
    assert [act for act in plan.acts if act.at < CALM - 0.2] == [
        Act(0.0, "stage", {"name": "calm"})
    ]
    calm = [order for order in plan.orders if order.at < CALM]
    assert len(calm) == CALM_ORDERS
    assert all(order.healthy for order in calm)


@pytest.mark.parametrize("seed", range(8))
def test_the_second_stage_has_partial_faults_only(seed: int):
    plan = draw(seed, 60)
    acts = [act for act in plan.acts if act.at < OPENING]
    assert {act.kind for act in acts} == {"stage", "provider_fault"}
    faults = [act.args for act in acts if act.kind == "provider_fault"]
    assert {fault["endpoint"] for fault in faults} == {"submit"}
    assert all("match" in fault or fault["probability"] <= 0.5 for fault in faults)
    orders = [order for order in plan.orders if CALM <= order.at < OPENING]
    assert sum(order.healthy for order in orders) >= PARTIAL_ORDERS
    assert sum(order.poisoned for order in orders) >= 2
    assert max(order.at for order in orders) <= CALM + ARRIVALS


def test_four_seeds_show_every_share_of_refused_submits():
    shares = {
        act.args["probability"]
        for seed in range(4)
        for act in draw(seed, 60).acts
        if act.at == CALM and act.args.get("kind") == "service_busy"
    }
    assert shares == set(REFUSED_SHARES)


@pytest.mark.parametrize("n", [32, 60, 300])
def test_about_two_in_a_hundred_orders_are_poisoned_until_the_faults_end(n: int):
    plan = draw(601, n)
    poisoned = [order for order in plan.orders if order.poisoned]
    assert 0.01 <= len(poisoned) / len(plan.orders) <= 0.05
    assert any(order.at >= OPENING for order in poisoned)
    for order in poisoned:
        [fault] = [act for act in plan.acts if act.args.get("match") == order.tag]
        assert fault.at < order.at
        [end] = [act for act in plan.acts if act.kind == "provider_mends" and _same(act, fault)]
        assert order.at < end.at < plan.faults_end


@pytest.mark.parametrize("seed", range(4))
def test_rate_and_concurrency_limits_change_and_end(seed: int):
    plan = draw(seed, 60)
    rates, limits = _settings(plan, "rate_limit"), _settings(plan, "max_concurrent")
    assert sorted(settings["rate_limit"] for settings in rates) == sorted(RATES)
    assert {settings["retry_after"] for settings in rates} == {"1", None}
    assert [settings["max_concurrent"] for settings in limits] == list(CONCURRENCY_LIMITS) * 3
    assert {settings["concurrency_mode"] for settings in limits} == set(CONCURRENCY_MODES)
    left: set[str] = set()
    for act in plan.acts:
        if act.kind == "provider_habit":
            Config(**act.args["settings"])
            left |= act.args["settings"].keys()
        elif act.kind == "provider_habit_ends":
            left -= set(act.args["names"])
    assert not left


@pytest.mark.parametrize(("n", "seconds"), [(300, None), (60, None), (32, 15.0)])
def test_every_fault_of_the_plan_ends_before_the_faults_end(n: int, seconds: float | None):
    plan = draw(601, n, seconds=seconds)
    open_faults = set()
    book = FaultBook(random.Random(1))
    for act in plan.acts:
        assert act.at < plan.faults_end
        if act.kind == "provider_fault":
            order = {name: value for name, value in act.args.items() if name != "name"}
            book.order(FaultOrder.model_validate(order))
            open_faults.add(act.args["name"])
        elif act.kind == "provider_mends":
            open_faults.discard(act.args["name"])
    assert not open_faults


def test_the_summary_names_the_partial_faults():
    summary = draw(602, 60).summary()
    assert "25% of submits service_busy" in summary
    assert "2 poisoned requests" in summary


def _same(act: Act, fault: Act) -> bool:
    return bool(act.args["name"] == fault.args["name"])


def _settings(plan: Plan, name: str) -> list[dict]:
    acts = [act for act in plan.acts if act.kind == "provider_habit"]
    return [act.args["settings"] for act in acts if name in act.args["settings"]]
