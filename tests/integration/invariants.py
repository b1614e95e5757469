"""What holds after every test of the stages, and a laboratory that checks it when it closes.

The laboratory is `Steps` with a provider whose time stands still (`end_tasks` moves it on) and with
the means to move a row in the schedule instead of sleeping.
"""

import logging
import re
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import Row, text

import simulator
from api_client import GenerationRequest, SeedanceClient, Submitted
from models import reads, watch
from models.flow_control import breakers
from models.flow_control import state as flow_state
from models.flow_control.state import FlowState
from models.ledger import reading
from models.lifecycle import RESERVED, TERMINAL, TRANSITIONS, Event, Note, Status
from models.reads import AttemptView, GenerationView, StrayView
from models.schedule import Claim
from tests.integration.conftest import Steps, text_request
from worker import logs
from worker.runtime import Runtime
from worker.stages import resolve, submit
from worker.stages.resolve import Outcome
from worker.upkeep import reconcile

_BIRTHS = {Event.ACCEPT: Status.ACCEPTED, Event.REJECT: Status.FAILED}
_SIGNED = re.compile(r"[?&](X-Amz-\w+|token|expires|signature)=[^…]", re.IGNORECASE)
_OTHERS = ("aiohttp", "asyncio", "simulator")


class Lab(Steps):
    """The service one step at a time, with what it left behind checked by `check`."""

    def __init__(
        self, rt: Runtime, sim: simulator.Simulator, make_runtime: Callable[..., Runtime]
    ) -> None:
        super().__init__(rt)
        self.sim = sim
        self.make_runtime = make_runtime
        self.second = 0
        """How many remote tasks the test means to be second ones, known and flagged."""
        self.unfollowed = 0
        """How many it leaves behind that are ours and that nobody has decided about."""

    # --- moving on ------------------------------------------------------------------------------

    def start(self, request: Mapping[str, Any] | None = None, **options: Any) -> Claim:
        """Enqueue and admit: the claim under which its upload or submit stage runs."""
        generation_id = self.enqueue(request, **options)
        return next(claim for claim in self.admit() if claim.id == generation_id)

    def send(self, prompt: str = "a cat", **fields: Any) -> uuid.UUID:
        """A generation as it is after its first submit stage."""
        claim = self.start(text_request(prompt, **fields))
        submit.run(self.rt, [(claim.id, claim.lease)])
        return claim.id

    def send_again(self, generation_id: uuid.UUID) -> GenerationView:
        """Admit a generation that was put back, and run its submit stage."""
        claim = self.readmit(generation_id)
        submit.run(self.rt, [(claim.id, claim.lease)])
        return self.get(generation_id)

    def readmit(self, generation_id: uuid.UUID) -> Claim:
        """Admit a generation that was put back."""
        self.due_now(generation_id)
        return next(claim for claim in self.admit() if claim.id == generation_id)

    def in_doubt(self, prompt: str = "a cat", kind: str = "lost", **fields: Any) -> uuid.UUID:
        """A generation whose submit had this fault and left it `uncertain`."""
        self.sim.fault("submit", kind, times=1)
        generation_id = self.send(prompt, **fields)
        assert self.get(generation_id).status is Status.UNCERTAIN
        return generation_id

    def due_now(self, generation_id: uuid.UUID) -> None:
        self.sql(
            "UPDATE generations SET due_at = now() WHERE id = :id AND due_at IS NOT NULL",
            id=generation_id,
        )

    def claim(self, generation_id: uuid.UUID) -> Claim:
        """Claim one generation as the dispatcher would once it is due."""
        self.due_now(generation_id)
        return next(claim for claim in self.due() if claim.id == generation_id)

    def settle(self, generation_id: uuid.UUID) -> None:
        """Let the time pass after which an outcome may be resolved."""
        self.sql(
            "UPDATE submit_attempts SET settle_at = now() WHERE generation_id = :id"
            " AND settle_at > now()",
            id=generation_id,
        )

    def resolve(self, generation_id: uuid.UUID, rt: Runtime | None = None) -> Outcome | None:
        """Settle, claim, and run the resolve stage."""
        self.settle(generation_id)
        claim = self.claim(generation_id)
        return resolve.run(rt or self.rt, [(claim.id, claim.lease)]).get(claim.id)

    def reconcile(self) -> reconcile.Report:
        return reconcile.run(self.rt)

    def end_tasks(self) -> None:
        """Every remote task that is at work ends."""
        self.sim.advance(3_600)

    def complete(self, generation_id: uuid.UUID) -> GenerationView:
        """End the remote task and follow the generation to its end."""
        self.end_tasks()
        if self.get(generation_id).status is Status.RUNNING:
            self.run(self.claim(generation_id))
        view = self.get(generation_id)
        assert view.status is Status.COMPLETED, (view, self.history(generation_id))
        return view

    # --- looking --------------------------------------------------------------------------------

    def sql(self, statement: str, **values: Any) -> list[Row[Any]]:
        with self.rt.engine.begin() as conn:
            result = conn.execute(text(statement), values)
            return list(result.all()) if result.returns_rows else []

    def value(self, statement: str, **values: Any) -> Any:
        [row] = self.sql(statement, **values)
        return row[0]

    def attempts(self, generation_id: uuid.UUID) -> list[AttemptView]:
        with self.rt.engine.connect() as conn:
            return reads.attempts(conn, generation_id)

    def outcomes(self, generation_id: uuid.UUID) -> list[str | None]:
        return [attempt.outcome for attempt in self.attempts(generation_id)]

    def strays(self, generation_id: uuid.UUID | None = None) -> list[StrayView]:
        with self.rt.engine.connect() as conn:
            return reads.strays(conn, generation_id=generation_id)

    def kinds(self) -> list[str]:
        return sorted(stray.kind for stray in self.strays())

    def breakers(self) -> set[str]:
        """Return the names of the open breakers."""
        with self.rt.engine.connect() as conn:
            return {str(one.name) for one in breakers.read(conn).open}

    def flow(self) -> FlowState:
        """Return the account's flow control."""
        with self.rt.engine.connect() as conn:
            return flow_state.read(conn)

    def calm(self) -> None:
        """Forget what was found out about the account: breakers closed, nothing limited."""
        self.sql("DELETE FROM breakers")
        self.sql("DELETE FROM flow_control")
        self.rt.flow.update(FlowState())

    @property
    def posts(self) -> int:
        """How many submits the provider has received."""
        return self.sim.received("submit")

    def submitted_tasks(self) -> list[dict[str, Any]]:
        """Remote tasks that came of submits, the oldest first."""
        tasks = self.sim.tasks(origin="submit")
        return sorted(tasks, key=lambda task: (task["created_at"], task["task_id"]))

    # --- what must hold -------------------------------------------------------------------------

    def check(self) -> None:
        """Check everything that holds whatever happened."""
        ids = [row.id for row in self.sql("SELECT id FROM generations")]
        views = [self.get(generation_id) for generation_id in ids]
        for view in views:
            self._check_history(view)
            self._check_credits(view)
        self._check_tasks(views)
        self._check_ledger(views)
        assert self.sim.requests()["key_leaks"] == 0

    def _check_history(self, view: GenerationView) -> None:
        with self.rt.engine.connect() as conn:
            history = reads.events(conn, view.id)
        at: Status | None = None
        for event in history:
            told = (view.id, [e.event for e in history])
            if event.event in set(Note):
                assert event.from_status is None, told
                assert event.to_status is None, told
                continue
            name, target = Event(event.event), Status(event.to_status or "")
            if at is None:
                assert event.from_status is None, told
                assert _BIRTHS[name] is target, told
            else:
                assert at not in TERMINAL, told
                assert event.from_status == at, told
                assert at in TRANSITIONS[name].sources, told
                assert TRANSITIONS[name].target is target, told
            at = target
        assert at is view.status, (view.id, [e.event for e in history])

    def _completed_unlike_told(self, view: GenerationView) -> bool:
        """Told as failed, then seen completed: charged, beside a generation that stays failed."""
        return (
            view.status is not Status.COMPLETED
            and "contradiction" in self.history(view.id)
            and self.sim.task(view.remote_task_id)["status"] == "completed"
        )

    def _check_credits(self, view: GenerationView) -> None:
        if not view.ended or self._completed_unlike_told(view):
            return
        charged = Decimal(0)
        if view.remote_task_id is not None:
            charged = Decimal(self.sim.task(view.remote_task_id)["charged"])
        assert (view.credit_cost or 0) == charged, view

    def _check_ledger(self, views: list[GenerationView]) -> None:
        """What is under way is reserved, nothing else; each task is charged as it was there."""
        with self.rt.engine.connect() as conn:
            assert reading.imbalances(conn) == []
            reserved = reading.outstanding(conn)
            booked = {
                entry.remote_task_id: entry.amount
                for view in views
                for entry in reading.entries(conn, view.id)
                if entry.kind == "charged"
            }
        assert reserved == sum(v.estimated_cost for v in views if v.status in RESERVED)
        seen_to_end = {v.remote_task_id for v in views if v.status is Status.COMPLETED}
        seen_to_end |= {
            s.task_id for s in self.strays() if s.kind == "second" and s.status == "completed"
        }
        seen_to_end |= {v.remote_task_id for v in views if self._completed_unlike_told(v)}
        assert booked == {task: Decimal(self.sim.task(task)["charged"]) for task in seen_to_end}

    def _check_tasks(self, views: list[GenerationView]) -> None:
        """Each remote task of ours is followed by one generation, or flagged as a second one."""
        followed = {v.remote_task_id for v in views if v.remote_task_id is not None}
        strays = {stray.task_id: stray for stray in self.strays()}
        assert not followed & strays.keys(), "a followed task is no stray"
        made = {task["task_id"]: task for task in self.sim.tasks(origin="submit")}
        assert followed <= made.keys()
        second = {t for t in made if t in strays and strays[t].kind == "second"}
        unfollowed = made.keys() - followed - second
        assert len(second) == self.second, (second, self.second)
        assert len(unfollowed) == self.unfollowed, (unfollowed, self.unfollowed)
        for task_id in second:
            assert strays[task_id].generation_id is not None
            assert strays[task_id].credit_cost == Decimal(made[task_id]["cost"])
        with self.rt.engine.connect() as conn:
            assert watch.followed(conn, list(made)) == followed


@contextmanager
def laboratory(
    make_runtime: Callable[..., Runtime],
    sim: simulator.Simulator,
    caplog: pytest.LogCaptureFixture,
    **settings: Any,
) -> Iterator[Lab]:
    """A laboratory; what must hold is checked when its test has passed."""
    caplog.set_level(logging.DEBUG)
    sim.configure(speed=0)
    lab = Lab(make_runtime(**settings), sim, make_runtime)
    yield lab
    lab.check()
    check_logs(caplog, sim.api_key)


def check_logs(caplog: pytest.LogCaptureFixture, api_key: str) -> None:
    """No log line shows the key or the query of a signed address.

    Ours don't by themselves; those of urllib3 go through the formatter that every process has.
    """
    plain, redacting = logging.Formatter(), logs.formatter()
    for record in caplog.get_records("call"):
        if record.name.startswith(_OTHERS):
            continue
        line = (redacting if record.name.startswith("urllib3") else plain).format(record)
        assert api_key not in line, f"{record.name} shows the key: {line}"
        assert not _SIGNED.search(line), f"{record.name} shows a signed address: {line}"


# --- pausing at a place in between --------------------------------------------------------------


class PausedClient:
    """The real client, with a pause of the worker around the check just before the POST."""

    def __init__(
        self,
        client: SeedanceClient,
        *,
        before_check: Callable[[], None] = lambda: None,
        after_check: Callable[[], None] = lambda: None,
    ) -> None:
        self._client, self._before, self._after = client, before_check, after_check

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def submit(
        self, request: GenerationRequest, *, before_send: Callable[[], None], **options: Any
    ) -> Submitted:
        def check() -> None:
            before_send()
            self._after()

        self._before()
        return self._client.submit(request, before_send=check, **options)


def paused(rt: Runtime, **pauses: Callable[[], None]) -> Runtime:
    """The runtime of a worker that pauses there."""
    return replace(rt, client=PausedClient(rt.client, **pauses))  # type: ignore[arg-type]


class HeldAnswer:
    """A runtime whose client keeps back what one of its methods was answered, until `go`."""

    def __init__(self, rt: Runtime, method: str) -> None:
        self._client, self._method = rt.client, method
        self.came, self.go = threading.Event(), threading.Event()
        self.rt = replace(rt, client=self)  # type: ignore[arg-type]

    def __getattr__(self, name: str) -> Any:
        asked = getattr(self._client, name)
        if name != self._method:
            return asked

        def held(*args: Any, **options: Any) -> Any:
            answer = asked(*args, **options)
            self.came.set()
            assert self.go.wait(30)
            return answer

        return held


@contextmanager
def in_background(act: Callable[[], object]) -> Iterator[threading.Thread]:
    """Run it in a thread; it must have ended well by the end of the block."""
    failures: list[BaseException] = []

    def target() -> None:
        try:
            act()
        except BaseException as error:  # noqa: BLE001  (handed to the test's thread)
            failures.append(error)

    thread = threading.Thread(target=target, daemon=True)
    thread.start()
    yield thread
    thread.join(20)
    assert not thread.is_alive()
    if failures:
        raise failures[0]
