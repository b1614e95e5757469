"""Random days of the service: real stages on the real database, against the simulator.

Hypothesis draws what happens: requests, faults of the provider, deaths in mid-stage, old messages,
cancels, operators, another program with the same key. After each step no request has two remote
tasks; once faults have ended everything comes to its end, and both sides' records agree.
`make model` runs more and longer days, drawn anew each time.
"""

import os
import uuid
from collections.abc import Callable
from contextlib import suppress

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from hypothesis.stateful import run_state_machine_as_test as run_machine

from api_client import ApiError
from models import transitions
from models.base import Base
from models.lifecycle import TERMINAL
from models.operating.actions import By
from models.schedule import Claim
from simulator import Simulator
from tests.integration.conftest import text_request
from tests.integration.invariants import Lab
from worker import operator
from worker.runtime import Runtime
from worker.stages import poll, resolve, submit, upload

LONG = os.environ.get("MODEL_BOUNDS") == "wide"
DAYS = settings(
    max_examples=int(os.environ.get("MODEL_DAYS", "300")) if LONG else 12,
    stateful_step_count=60 if LONG else 25,
    derandomize=not LONG,
    database=None,
    deadline=None,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
    # Making a failing day shorter takes many days more.
    phases=list(Phase) if LONG else [Phase.generate],
)
pytestmark = pytest.mark.timeout(7200 if LONG else 300)

FIXED_SEED = 7
PLACES = (
    "submit.before_intent",
    "submit.after_intent",
    "submit.after_post",
    "submit.after_result",
    "resolve.after_reading",
    "resolve.after_decision",
    "poll.after_get",
)
FAULTS = {
    "submit": (
        ("lost", {}),
        ("drop_before", {}),
        ("error", {}),
        ("error_after", {}),
        ("bare", {"processed": False}),
        ("bare_after", {}),
        ("rate_limited", {}),
        ("service_busy", {}),
        ("concurrency", {"mode": "created"}),
        ("concurrency", {"mode": "created_with_id"}),
        ("null_result", {}),
        ("no_task_id", {}),
        ("cut_json", {}),
    ),
    "list": (("empty_list", {}), ("bare", {}), ("garbage", {}), ("backwards", {}), ("error", {})),
    "get": (("not_found", {}), ("backwards", {}), ("cut_json", {}), ("service_busy", {})),
    "cancel": (("lost", {}), ("error", {}), ("drop_before", {})),
}
ORDERS = ("created_desc", "created_asc", "updated_desc", "random")
MOST = 4
"""Generations of one day."""


class Died(BaseException):
    """The process ended here: no handler of the stages sees it, and nothing more is written."""


class Death:
    """Takes the place of `worker.crash_points.reached` in the stages."""

    def __init__(self) -> None:
        self.at: str | None = None

    def reached(self, place: str) -> None:
        if place == self.at:
            self.at = None
            raise Died(place)


class Day(RuleBasedStateMachine):
    def __init__(self, lab: Lab, death: Death) -> None:
        super().__init__()
        self.lab, self.death = lab, death
        self.ids: list[uuid.UUID] = []
        self.fixed: set[uuid.UUID] = set()
        self.given_up: set[uuid.UUID] = set()
        self.messages: list[Claim] = []
        death.at = None
        # The ledger's trigger refuses to forget; a new day begins all the same.
        emptied = ";".join(f"DELETE FROM {table}" for table in Base.metadata.tables)
        lab.sql(f"SET LOCAL session_replication_role = replica; {emptied}")
        lab.sim.reset(random_seed=1, speed=0)

    # --- what producers and processes do --------------------------------------------------------

    @precondition(lambda self: len(self.ids) < MOST)
    @rule(seed=st.sampled_from([None, None, FIXED_SEED]))
    def enqueue(self, seed: int | None) -> None:
        fields = {} if seed is None else {"seed": seed}
        generation_id = self.lab.enqueue(text_request(f"day {len(self.ids)}", **fields))
        self.ids.append(generation_id)
        if seed is not None:
            self.fixed.add(generation_id)

    @rule(place=st.sampled_from([None, None, *PLACES]))
    def work(self, place: str | None) -> None:
        """A worker takes what is due, and dies if it comes to this place."""
        claims = self.lab.due() + self.lab.admit()
        self.messages += claims
        self.death.at = place
        for claim in claims:
            self.deliver(claim)
        self.death.at = None

    def deliver(self, claim: Claim) -> None:
        with suppress(Died):
            self.lab.run(claim)

    @precondition(lambda self: self.messages)
    @rule(which=st.integers(0, 10**6))
    def an_old_message_again(self, which: int) -> None:
        self.deliver(self.messages[which % len(self.messages)])

    @rule()
    def time_passes(self) -> None:
        """Leases end, attempts settle, breakers close."""
        self.lab.calm()
        self.lab.sql("UPDATE submit_attempts SET settle_at = now() WHERE settle_at > now()")
        self.lab.sql("UPDATE generations SET due_at = now() WHERE due_at IS NOT NULL")

    @rule()
    def reconcile(self) -> None:
        # Where the list can't be read just now, the beat tries again later.
        with suppress(ApiError):
            self.lab.reconcile()

    # --- what goes wrong ------------------------------------------------------------------------

    @rule(
        fault=st.sampled_from([(e, kind, order) for e in FAULTS for kind, order in FAULTS[e]]),
        times=st.integers(1, 2),
    )
    def the_provider_fails(self, fault: tuple[str, str, dict[str, object]], times: int) -> None:
        endpoint, kind, order = fault
        self.lab.sim.fault(endpoint, kind, times=times, **order)

    @rule(order=st.sampled_from(ORDERS))
    def the_list_has_another_order(self, order: str) -> None:
        self.lab.sim.configure(list_order=order)

    @rule()
    def another_program_makes_an_equal_task(self) -> None:
        self.lab.sim.inject(seed=FIXED_SEED)

    @rule()
    def remote_tasks_end(self) -> None:
        self.lab.end_tasks()

    # --- what people do -------------------------------------------------------------------------

    @precondition(lambda self: self.ids)
    @rule(which=st.integers(0, MOST - 1))
    def cancel(self, which: int) -> None:
        with self.lab.rt.engine.begin() as conn:
            transitions.cancel(conn, self.ids[which % len(self.ids)])

    @precondition(lambda self: self.ids)
    @rule(which=st.integers(0, MOST - 1), kind=st.sampled_from(["decide", "decide", "fail"]))
    def an_operator_decides(self, which: int, kind: str) -> None:
        """They know a task of their own by its prompt; what can't be carried out is refused."""
        rt, number = self.lab.rt, which % len(self.ids)
        generation_id = self.ids[number]
        own = self.made().get(f"day {number}", [])
        with suppress(operator.DecisionRefused, ApiError):
            attempt = operator.latest_attempt(rt.engine, generation_id)
            if kind == "fail":
                operator.fail(rt.engine, generation_id, attempt=attempt, by=By("test"))
                self.given_up.add(generation_id)
            elif own:
                operator.adopt(rt, generation_id, own[0], attempt=attempt, by=By("test"))
            else:
                operator.resubmit(rt.engine, generation_id, attempt=attempt, by=By("test"))

    # --- what must hold -------------------------------------------------------------------------

    def made(self) -> dict[str, list[str]]:
        """The remote tasks that came of submits, by prompt."""
        found: dict[str, list[str]] = {}
        for task in self.lab.sim.tasks(origin="submit"):
            found.setdefault(task["body"]["content"][0]["text"], []).append(task["task_id"])
        return found

    @invariant()
    def no_request_has_two_remote_tasks(self) -> None:
        assert all(len(tasks) == 1 for tasks in self.made().values()), self.made()

    @invariant()
    def nobody_follows_anothers_task(self) -> None:
        made = self.made()
        for number, generation_id in enumerate(self.ids):
            task = self.lab.get(generation_id).remote_task_id
            assert task is None or [task] == made.get(f"day {number}")

    def teardown(self) -> None:
        """Faults end; everything comes to its end, or says why it waits for an operator."""
        self.lab.sim.clear_faults()
        self.lab.sim.configure(list_order="created_desc")
        for _ in range(25):
            self.time_passes()
            self.lab.reconcile()
            self.lab.end_tasks()
            self.work(None)
            if all(self.rests(generation_id) for generation_id in self.ids):
                break
        waiting = set()
        for generation_id in self.ids:
            view = self.lab.get(generation_id)
            told = (view, self.lab.history(generation_id))
            assert self.rests(generation_id), told
            if view.status not in TERMINAL:
                assert generation_id in self.fixed, told
                waiting.add(generation_id)
        self.lab.reconcile()
        self.check_the_books(waiting)

    def rests(self, generation_id: uuid.UUID) -> bool:
        view = self.lab.get(generation_id)
        if view.blocked_by is not None:
            view = self.lab.get(view.blocked_by)
        return view.status in TERMINAL or view.attention is not None

    def check_the_books(self, waiting: set[uuid.UUID]) -> None:
        """Every task of ours is followed, or on record for an operator; credits are equal."""
        made = self.made()
        strays = {stray.task_id: stray.kind for stray in self.lab.strays()}
        self.lab.second = self.lab.unfollowed = 0
        for number, generation_id in enumerate(self.ids):
            for task_id in made.get(f"day {number}", []):
                view = self.lab.get(generation_id)
                if view.remote_task_id == task_id:
                    continue
                told = (view, self.lab.history(generation_id), strays)
                assert generation_id in waiting | self.given_up, told
                assert strays.get(task_id) in ("second", "possible"), told
                if strays[task_id] == "second":
                    self.lab.second += 1
                else:
                    self.lab.unfollowed += 1
        self.lab.check()


def test_the_promise_holds_on_random_days(
    make_runtime: Callable[..., Runtime], sim: Simulator, monkeypatch: pytest.MonkeyPatch
):
    death = Death()
    for stage in (upload, submit, resolve, poll):
        monkeypatch.setattr(stage, "reached", death.reached, raising=False)
    monkeypatch.setattr(resolve, "ATTENTION_AFTER", 2)
    lab = Lab(make_runtime(), sim, make_runtime)
    run_machine(lambda: Day(lab, death), settings=DAYS)
