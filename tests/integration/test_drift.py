"""The task list changes while it is read: in no order does that make a lost task seem absent.

The lost task stands where a change hides it best: first on the second page, so that whatever leaves
the first page, which was read already, pulls it up unseen.
"""

from dataclasses import replace

import pytest

from models.lifecycle import Status
from tests.integration.invariants import Lab, laboratory
from worker.stages.resolve import Outcome

ORDERS = ["created_desc", "created_asc", "updated_desc", "updated_asc", "random"]
PAGE = 100
LONG_AGO = 7_200.0


@pytest.fixture
def lab(make_runtime, sim, caplog):
    with laboratory(make_runtime, sim, caplog) as lab:
        yield lab


class Drifting:
    """The real client; before each further page of a reading something in the list changes."""

    def __init__(self, lab: Lab, lost: str, order: str, change: str, *, times: int = 99) -> None:
        self._lab, self._lost, self._change, self._left = lab, lost, change, times
        self._newest_first = order.endswith("desc")
        self._by_update = order.startswith("updated")
        self._first_page: list[str] = []
        self._behind = False

    def __getattr__(self, name):
        return getattr(self._lab.rt.client, name)

    def list_tasks(self, number, size):
        if number == 1 and self._behind:
            self._ahead_of_the_lost()
            self._behind = False
        elif number == 2 and self._left:
            self._left -= 1
            self._drift()
        page = self._lab.rt.client.list_tasks(number, size)
        if number == 1:
            self._first_page = [t.task_id for t in page.data if t.task_id != self._lost]
        return page

    def _drift(self) -> None:
        sim = self._lab.sim
        if "insert" in self._change and "delete" not in self._change:
            self._ahead_of_the_lost()
        if "delete" in self._change:
            sim.forget(next(i for i in self._first_page if sim.task(i)["origin"] == "injected"))
            self._behind = True
        if "insert" in self._change and "delete" in self._change:
            # Behind it, so that `total` says nothing and as many are seen.
            sim.inject(age=2 * LONG_AGO if self._newest_first else 0)
        if self._change == "update":
            moved = self._lost if self._newest_first else self._first_page[0]
            sim.change(moved, updated_at=sim.task(self._lost)["created_at"] + 60)

    def _ahead_of_the_lost(self) -> None:
        self._lab.sim.inject(age=0 if self._newest_first else 2 * LONG_AGO)


def lost_at_the_head_of_page_two(lab: Lab, order: str):
    """A generation in doubt whose task is the first of the second page; and that task."""
    lab.sim.configure(list_order=order)
    newest_first = order.endswith("desc")
    older = {"age": LONG_AGO, "status": "completed"}
    lab.sim.inject(count=250 if newest_first else PAGE, **older)
    generation_id = lab.in_doubt()
    [task] = lab.submitted_tasks()
    # One of ours that the list must show, long enough ago for its lag.
    lab.send("an answered one")
    lab.sql(
        "UPDATE submit_attempts SET decided_at = now() - interval '5 s' WHERE decided_at < now()"
    )
    lab.sim.inject(count=PAGE - 1 if newest_first else 150)
    if order != "random":
        first = lab.rt.client.list_tasks(2, PAGE).data[0]
        assert first.task_id == task["task_id"]
    return generation_id, task["task_id"]


@pytest.mark.parametrize("change", ["insert", "delete", "update"])
@pytest.mark.parametrize("order", ORDERS)
def test_a_lost_task_is_never_taken_for_absent(lab, order, change):
    generation_id, task_id = lost_at_the_head_of_page_two(lab, order)
    drifting = replace(lab.rt, client=Drifting(lab, task_id, order, change))

    for _ in range(3):
        if lab.get(generation_id).status is Status.RUNNING:
            break
        assert lab.resolve(generation_id, drifting) is not Outcome.ABSENT

    for _ in range(30):  # in random order each page may leave it out
        if lab.get(generation_id).status is Status.RUNNING:
            break
        assert lab.resolve(generation_id) is not Outcome.ABSENT
    assert lab.get(generation_id).remote_task_id == task_id
    assert lab.posts == 2
    lab.complete(generation_id)


@pytest.mark.parametrize("order", ["created_desc", "created_asc"])
def test_an_insertion_that_makes_up_for_a_deletion(lab, order):
    """`total` stands still and as many tasks are seen: one reading is fooled, two are not."""
    generation_id, task_id = lost_at_the_head_of_page_two(lab, order)
    fooled = Drifting(lab, task_id, order, "insert and delete", times=1)

    outcome = lab.resolve(generation_id, replace(lab.rt, client=fooled))

    assert outcome is Outcome.ADOPTED
    assert lab.get(generation_id).remote_task_id == task_id
    lab.complete(generation_id)


def test_a_deletion_that_is_made_up_for_in_both_readings(lab):
    """Both counts are right, both missed it; but what the first counted is gone in the second."""
    generation_id, task_id = lost_at_the_head_of_page_two(lab, "created_asc")
    fooled = Drifting(lab, task_id, "created_asc", "insert and delete")

    assert lab.resolve(generation_id, replace(lab.rt, client=fooled)) is Outcome.UNDECIDED

    assert lab.resolve(generation_id) is Outcome.ADOPTED
    assert lab.get(generation_id).remote_task_id == task_id
    lab.complete(generation_id)


@pytest.mark.parametrize("change", ["insert", "delete", "update"])
@pytest.mark.parametrize("order", ORDERS[:-1])
def test_what_never_came_through_is_sent_again_once_the_list_stands_still(lab, order, change):
    lab.sim.configure(list_order=order)
    lab.sim.inject(count=250, age=LONG_AGO, status="completed")
    generation_id = lab.in_doubt(kind="drop_before")
    [any_task] = lab.sim.tasks(limit=1)
    drifting = Drifting(lab, any_task["task_id"], order, change)

    assert lab.resolve(generation_id, replace(lab.rt, client=drifting)) in (
        Outcome.UNDECIDED,
        Outcome.ABSENT,
    )
    if lab.get(generation_id).status is Status.UNCERTAIN:
        assert lab.resolve(generation_id) is Outcome.ABSENT
    assert lab.send_again(generation_id).status is Status.RUNNING
    assert lab.posts == 2
    lab.complete(generation_id)
