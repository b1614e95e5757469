"""An operator's decisions on generations that the service can't decide itself.

protocol.md, "Operator": a decision names the attempt that it is about; one on an older attempt is
refused, and so is sending again before the attempt has settled. Who decided, and why, is kept.
"""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Engine, and_, func, or_, select, text, update

from api_client import Task
from models import callbacks, decisions, reads, schedule, transitions, watch
from models.base import table_of
from models.decisions import (
    OPERATOR_ADOPTING,
    Refusal,
    refuse_adoption,
    refuse_ending,
    refuse_resubmission,
)
from models.lifecycle import Note, Status
from models.marks import NOT_A_SEED
from models.operating import actions
from models.operating.actions import Action, By
from models.reads import GenerationView
from models.tables import OPEN_ATTEMPT_SQL, Generation, StrayTask, SubmitAttempt
from worker.runtime import Runtime
from worker.stages.common import observation

g = table_of(Generation).c
a = table_of(SubmitAttempt).c
s = table_of(StrayTask).c

NOT_OURS = "NOT_OURS"
"""Code of an attempt that an operator closed, because the tasks that look like it are another's."""


class DecisionRefused(Exception):
    """The decision can't be carried out; nothing was changed. The message says why."""


@dataclass(frozen=True)
class _Ground:
    """What a decision stands on: the row, locked, and its open attempts by seed."""

    status: Status
    attempt: int
    open_seeds: Mapping[int, int]
    settles_at: datetime | None
    settled: bool

    @property
    def facts(self) -> decisions.Ground:
        """What the decision is held against."""
        return decisions.Ground(self.status, self.attempt, self.settled)


def latest_attempt(engine: Engine, generation_id: uuid.UUID) -> int:
    """The attempt that a decision is about when none is named."""
    with engine.connect() as conn:
        number: int | None = conn.execute(
            select(g.attempt).where(g.id == generation_id)
        ).scalar_one_or_none()
    if number is None:
        raise DecisionRefused(f"there is no generation {generation_id}")
    if number == 0:
        raise DecisionRefused(
            f"generation {generation_id} was never submitted: there is nothing to decide"
        )
    return number


def adopt(
    rt: Runtime, generation_id: uuid.UUID, task_id: str, *, attempt: int, by: By
) -> GenerationView:
    """This remote task is the generation's: follow it.

    Raises DecisionRefused, and ApiError if the provider does not show the task.
    """
    # No transaction is open across the call.
    task = rt.client.get(task_id)
    with rt.engine.begin() as conn:
        ground = _ground(conn, generation_id)
        _carry_on(generation_id, ground, refuse_adoption(ground.facts, named=attempt), attempt)
        _check_free(conn, generation_id, task_id)
        of_attempt = _attempt_of(ground, task)
        adopted = watch.adopt_marked(
            conn, generation_id, of_attempt, observation(task), by=by.told, into=OPERATOR_ADOPTING
        )
        if not adopted:
            raise DecisionRefused(f"generation {generation_id} moved on meanwhile: look again")
        _record(conn, generation_id, by, "adopt", attempt=attempt, remote_task_id=task_id)
        schedule.wake(conn)
        return _view(conn, generation_id)


def resubmit(engine: Engine, generation_id: uuid.UUID, *, attempt: int, by: By) -> GenerationView:
    """No remote task of it exists: send it again (or end it, if its cancel was asked for).

    Remote tasks that look like its own are declared not to be, and so are callbacks of tasks that
    were not found: neither holds it up any longer. Raises DecisionRefused.
    """
    with engine.begin() as conn:
        ground = _ground(conn, generation_id)
        _carry_on(generation_id, ground, refuse_resubmission(ground.facts, named=attempt), attempt)
        disowned = _look_alikes(conn, generation_id, ground)
        uncalled = callbacks.disown(conn, generation_id)
        told: dict[str, Any] = {
            "by": by.told,
            **({"not_ours": disowned} if disowned else {}),
            **({"callbacks_not_ours": uncalled} if uncalled else {}),
        }
        if ground.status is Status.UNCERTAIN:
            # The bound on attempts is there for what nobody looks at.
            transitions.absent(conn, generation_id, attempt, max_attempts=attempt + 1, detail=told)
        elif disowned or uncalled:
            transitions.decided(conn, generation_id)
            transitions.note(conn, generation_id, Note.ATTENTION, attempt=attempt, detail=told)
        else:
            raise DecisionRefused(
                f"generation {generation_id} is {ground.status}: it is sent without a decision"
            )
        if disowned:
            conn.execute(
                update(StrayTask)
                .where(s.task_id.in_(disowned))
                .values(kind="foreign", generation_id=None, attempt=None)
            )
            for number in ground.open_seeds.values():
                transitions.close_attempt(
                    conn, generation_id, number, outcome="refused", code=NOT_OURS
                )
        _record(conn, generation_id, by, "resubmit", attempt=attempt)
        schedule.wake(conn)
        return _view(conn, generation_id)


def fail(engine: Engine, generation_id: uuid.UUID, *, attempt: int, by: By) -> GenerationView:
    """End it as failed. Should a remote task appear all the same, it is flagged. Raises
    DecisionRefused.
    """
    with engine.begin() as conn:
        ground = _ground(conn, generation_id)
        _carry_on(generation_id, ground, refuse_ending(ground.facts, named=attempt), attempt)
        # The attempt stays open, so that a task that appears all the same is recognised.
        transitions.give_up(conn, generation_id, attempt, actor=by.told)
        _record(conn, generation_id, by, "fail", attempt=attempt)
        return _view(conn, generation_id)


def _record(
    conn: Connection, generation_id: uuid.UUID, by: By, decision: str, **detail: Any
) -> None:
    """Who decided what, and why, in the transaction of the decision."""
    told = {"decision": decision, **detail}
    actions.record_of(conn, Action.RESOLVE, by, [generation_id], detail=told)


def _ground(conn: Connection, generation_id: uuid.UUID) -> _Ground:
    row = conn.execute(
        select(g.status, g.attempt).where(g.id == generation_id).with_for_update()
    ).one_or_none()
    if row is None:
        raise DecisionRefused(f"there is no generation {generation_id}")
    attempts = conn.execute(
        select(a.number, a.seed, a.settle_at, (a.settle_at <= func.now()).label("settled"))
        .where(a.generation_id == generation_id, text(OPEN_ATTEMPT_SQL))
        .order_by(a.number)
    ).all()
    return _Ground(
        Status(row.status),
        row.attempt,
        {one.seed: one.number for one in attempts},
        max((one.settle_at for one in attempts), default=None),
        all(one.settled for one in attempts),
    )


def _carry_on(
    generation_id: uuid.UUID, ground: _Ground, refusal: Refusal | None, named: int
) -> None:
    """Raise DecisionRefused with what an operator should do instead."""
    match refusal:
        case None:
            return
        case Refusal.STALE:
            raise DecisionRefused(
                f"the decision is about attempt {named}, and generation {generation_id} is at"
                f" attempt {ground.attempt}: look again (seedance show), then decide on that"
            )
        case Refusal.UNSETTLED:
            raise DecisionRefused(
                f"attempt {named} settles at {ground.settles_at:%H:%M:%S}Z: until then the"
                " provider may still make a task of it, and sending again could pay twice"
            )
        case Refusal.STATUS:
            hint = {
                Status.SUBMITTING: "its answer may still come, or its lease will end",
                Status.RUNNING: "it follows a remote task; `seedance cancel` ends that",
            }.get(ground.status, "it has ended")
            raise DecisionRefused(
                f"generation {generation_id} is {ground.status}; nothing to decide: {hint}"
            )


def _check_free(conn: Connection, generation_id: uuid.UUID, task_id: str) -> None:
    """Refuse a remote task that belongs to another generation."""
    owner = conn.execute(select(g.id).where(g.remote_task_id == task_id)).scalar_one_or_none()
    if owner is not None:
        raise DecisionRefused(f"remote task {task_id} is followed by generation {owner}")
    second_of = conn.execute(
        select(s.generation_id).where(s.task_id == task_id, s.kind == "second")
    ).scalar_one_or_none()
    if second_of not in (None, generation_id):
        raise DecisionRefused(f"remote task {task_id} is a second task of generation {second_of}")


def _attempt_of(ground: _Ground, task: Task) -> int:
    """The attempt whose task it is. A task that shows another seed is certainly not ours."""
    if not ground.open_seeds:
        raise DecisionRefused("no attempt of it is open: every POST has a definite answer")
    if task.seed in NOT_A_SEED:
        return max(ground.open_seeds.values())
    found = ground.open_seeds.get(int(task.seed or 0))
    if found is None:
        seeds = ", ".join(str(seed) for seed in ground.open_seeds)
        raise DecisionRefused(
            f"remote task {task.task_id} shows the seed {task.seed}, and it was sent with {seeds}:"
            " that task is another's"
        )
    return found


def _look_alikes(conn: Connection, generation_id: uuid.UUID, ground: _Ground) -> list[str]:
    """Remote tasks that nobody follows and that would keep it from being sent again."""
    found = conn.execute(
        select(s.task_id)
        .where(
            or_(
                and_(s.seed.in_(list(ground.open_seeds)), s.kind != "second"),
                s.generation_id == generation_id,
            ),
        )
        .order_by(s.task_id)
    )
    return list(found.scalars())


def _view(conn: Connection, generation_id: uuid.UUID) -> GenerationView:
    view = reads.get(conn, generation_id)
    assert view is not None, "its row is locked"
    return view
