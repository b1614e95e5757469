"""Which request gets a fault, and what each kind does to an answer."""

import json
import random

import pytest
from pydantic import ValidationError

from simulator.answers import bare, success
from simulator.effects import KINDS, build
from simulator.faults import FaultBook, FaultOrder, Subject
from simulator.wishes import MAIN_PARAM, from_directive


def book(seed=1):
    return FaultBook(random.Random(seed))


def order(endpoint="get", kind="drop_before", **fields):
    return FaultOrder.model_validate({"endpoint": endpoint, "kind": kind, **fields})


def hits(faults, subjects):
    return [faults.pick(subject) is not None for subject in subjects]


def test_times_and_after_count_matching_requests_only():
    faults = book()
    faults.order(order(times=2, after=1))
    seen = [Subject("get"), Subject("list"), Subject("get"), Subject("get"), Subject("get")]
    assert hits(faults, seen) == [False, False, True, True, False]


def test_a_fault_may_ask_for_text_key_and_age():
    faults = book()
    faults.order(order("*", match="unicorn", api_key="a", younger_than=5))
    assert hits(
        faults,
        [
            Subject("get", "a", "a unicorn", "t", 1),
            Subject("get", "a", "a horse", "t", 1),
            Subject("get", "b", "a unicorn", "t", 1),
            Subject("get", "a", "a unicorn", "t", 6),
            Subject("submit", "a", "a unicorn"),
        ],
    ) == [True, False, False, False, False]


def test_first_counts_for_each_task():
    faults = book()
    faults.order(order(kind="not_found", first=1))
    seen = [Subject("get", task_id=task_id) for task_id in ("a", "b", "a", "b", "c")]
    assert hits(faults, seen) == [True, True, False, False, True]


def test_probability_is_replayable():
    def run():
        faults = book(seed=7)
        faults.order(order(probability=0.3))
        return hits(faults, [Subject("get")] * 200)

    first = run()
    assert first == run()
    assert 30 < sum(first) < 90


def test_the_first_order_that_applies_wins_and_orders_can_go():
    faults = book()
    one = faults.order(order(times=1))
    two = faults.order(order(kind="drop_after"))
    assert faults.pick(Subject("get")) is one
    assert faults.pick(Subject("get")) is two
    assert [fault["hits"] for fault in faults.view()] == [1, 1]
    assert faults.clear(two.fault_id) == 1
    assert faults.pick(Subject("get")) is None
    assert faults.clear() == 1
    assert not faults


def test_parameters_may_lie_flat():
    assert order(kind="delay_after", seconds=3).params == {"seconds": 3}


@pytest.mark.parametrize("wrong", [{"kind": "meteor"}, {"endpoint": "moon"}, {"probability": 2}])
def test_a_wrong_order_is_refused(wrong):
    with pytest.raises(ValidationError):
        order(**wrong)


def test_a_wrong_parameter_is_refused():
    with pytest.raises(ValueError, match="mode"):
        book().order(order("submit", "concurrency", mode="maybe"))


def reshaped(kind, result, **params):
    effect = build(kind, params)
    return effect.reshape(success(result))


TASK = {"task_id": "t", "status": "completed", "video_url": "u", "created_at": "c"}


def test_answers_are_bent_as_ordered():
    assert reshaped("null_result", TASK).envelope["result"] is None
    assert "task_id" not in reshaped("no_task_id", dict(TASK)).envelope["result"]
    assert reshaped("int_code", TASK).envelope["code"] == 200
    assert reshaped("unknown_status", dict(TASK)).envelope["result"]["status"] == "post_processing"
    assert "queue_position" in reshaped("unknown_fields", dict(TASK)).envelope["result"]
    back = reshaped("backwards", dict(TASK)).envelope["result"]
    assert (back["status"], back["video_url"]) == ("pending", None)
    assert reshaped("cut_json", TASK, connection=True).cut_connection == 0.5
    for kind in ("cut_json", "garbage"):
        with pytest.raises((json.JSONDecodeError, UnicodeDecodeError)):
            json.loads(reshaped(kind, TASK).body())


def test_a_page_is_bent_item_by_item():
    page = {"data": [dict(TASK), "a string"], "total": 2}
    assert reshaped("unknown_status", page).envelope["result"]["data"][0]["status"] != "completed"
    assert reshaped("empty_list", page).envelope["result"] == {"data": [], "total": 2}


def test_errors_carry_retry_after_and_a_status_of_choice():
    effect = build("rate_limited", {"retry_after": 7})
    answer = effect.reshape(success({}))
    assert not effect.process
    assert (answer.status, answer.headers) == (429, {"Retry-After": "7"})
    assert build("error", {"code": "X", "status": 418}).reshape(success({})).status == 418
    assert build("error_after", {}).process
    assert build("error_after", {}).reshape(success({})).status == 500


def test_bare_answers_have_no_envelope():
    assert build("bare", {}).reshape(success({})).status == 502
    assert not build("bare", {}).process
    assert build("bare_after", {}).reshape(success({})).status == 503
    assert build("bare_after", {}).process
    assert b"<html>" in bare(502).body()
    assert build("redirect", {}).reshape(success({})).headers["Location"]


def test_directives_name_kinds():
    effect, times = from_directive("delay_before:2.5*3")
    assert (effect.delay_before, times) == (2.5, 3)
    assert from_directive("lost")[0].drop
    assert from_directive("bare:504")[0].reshape(success({})).status == 504
    for wrong in ("meteor", "lost*many", "delay_after:soon", "bare:soon"):
        with pytest.raises(ValueError, match=wrong.split("*")[0]):
            from_directive(wrong)


def test_every_kind_says_what_it_does():
    assert all(kind.__doc__ for kind in KINDS.values())
    assert set(MAIN_PARAM) <= set(KINDS)
    for kind in KINDS:
        build(kind, {})
