"""Holding what the task list shows against what we know: protocol.md, "Watching".

A remote task is known if a generation follows it. An unknown one is a lost answer (adopted), a
second task of a generation (flagged), possibly one of ours (an operator decides), or foreign
(counted and shown; never cancelled, never adopted).
"""

import uuid
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import (
    Connection,
    exists,
    func,
    literal,
    literal_column,
    or_,
    select,
    text,
    update,
)

from models import submission, transitions
from models.base import among, not_among, table_of
from models.decisions import (
    ADOPTING,
    LATE,
    Candidate,
    Claimed,
    Sighting,
    claimed,
    settled,
    shows_seed,
    sighting,
    whose,
)
from models.lifecycle import Observation, Status
from models.marks import ECHOED
from models.resolution import UNKNOWN_SKEW, Attempt, Case
from models.tables import LIVE_SQL, OPEN_ATTEMPT_SQL, Generation, StrayTask, SubmitAttempt

g = table_of(Generation).c
a = table_of(SubmitAttempt).c


@dataclass
class Sightings:
    """What a pass over the list did, by task id."""

    changed: list[str] = field(default_factory=list)
    adopted: list[str] = field(default_factory=list)
    second: list[str] = field(default_factory=list)
    possible: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)


def followed(conn: Connection, task_ids: Sequence[str]) -> set[str]:
    """Those of the remote tasks that a generation follows, or followed to its end."""
    return set(
        conn.execute(select(g.remote_task_id).where(among(g.remote_task_id, task_ids))).scalars()
    )


def hold_against(
    conn: Connection, seen: Sequence[Observation], *, forgotten: datetime | None = None
) -> Sightings:
    """Apply a page of the list: observe what is known, judge what is not.

    `forgotten`: tasks from before then that match no attempt may have been of generations that
    were pruned since, and are passed over instead of being taken for foreign.
    """
    result = Sightings()
    known, new = transitions.told_by(conn, seen)
    # One order for every pass: two over the same stray tasks can't deadlock.
    for task in sorted(seen, key=lambda task: task.task_id):
        if task.task_id in known:
            if task.task_id not in new:
                continue
            if task.status == "completed" and task.video_url is None:
                _look_at(conn, task.task_id)
            elif isinstance(transitions.apply_observation(conn, task), transitions.Moved):
                result.changed.append(task.task_id)
        else:
            _judge_unknown(conn, task, result, forgotten)
    _no_longer_stray(conn, known)
    return result


def _look_at(conn: Connection, task_id: str) -> None:
    """It has completed, and the list does not show its video: its own GET does."""
    conn.execute(
        update(Generation)
        .where(g.remote_task_id == task_id, g.status == Status.RUNNING)
        .values(due_at=func.least(g.due_at, func.now()))
    )


def _no_longer_stray(conn: Connection, known: set[str]) -> None:
    """A task that was seen before its answer came was taken for a stray; it is followed now."""
    if known:
        conn.execute(
            table_of(StrayTask).delete().where(among(table_of(StrayTask).c.task_id, known))
        )


def _judge_unknown(
    conn: Connection, task: Observation, result: Sightings, forgotten: datetime | None
) -> None:
    match = whose(task, _candidates(conn, task))
    kind = sighting(task, match)
    if match is None or kind is Sighting.FOREIGN:
        if forgotten is not None and task.created_at is not None and task.created_at < forgotten:
            return
        result.foreign.append(task.task_id)
        submission.upsert_stray(conn, kind="foreign", **stray_values(task))
        return
    generation_id, number = match.sent.generation_id, match.sent.number
    if kind is Sighting.POSSIBLE:
        result.possible.append(task.task_id)
        submission.upsert_stray(
            conn,
            kind="possible",
            generation_id=generation_id,
            attempt=number,
            **stray_values(task),
        )
        return
    row = conn.execute(
        select(g.status, g.attempt, g.remote_task_id).where(g.id == generation_id).with_for_update()
    ).one()
    match claimed(Status(row.status), follows=row.remote_task_id, task_id=task.task_id):
        case Claimed.ADOPT:
            if _adopt(conn, generation_id, number, row.attempt, task, by="watch", into=ADOPTING):
                result.adopted.append(task.task_id)
        case Claimed.SECOND:
            flag_second(conn, generation_id, number, task)
            result.second.append(task.task_id)
        case Claimed.WAIT:
            pass


def _candidates(conn: Connection, task: Observation) -> list[Candidate]:
    """The attempts that the task could be of, as far as an index finds them."""
    if shows_seed(task):
        near = [a.seed == task.seed, or_(a.seed_drawn, text(OPEN_ATTEMPT_SQL))]
    elif task.created_at is not None:
        near = [
            a.started_at.between(task.created_at - LATE, task.created_at + UNKNOWN_SKEW),
            literal_column(OPEN_ATTEMPT_SQL),
            # Narrowed here, decided there: in a storm many are in doubt.
            g.request["model"].astext == task.model,
            g.remote_task_id.is_(None),
        ]
    else:
        return []
    rows = conn.execute(
        select(*submission.SENT, g.request, g.remote_task_id)
        .join(Generation, g.id == a.generation_id)
        .where(*near)
    )
    return [Candidate(submission.sent(row), row.request, row.remote_task_id) for row in rows]


def adopt_marked(
    conn: Connection,
    generation_id: uuid.UUID,
    attempt: int,
    task: Observation,
    *,
    by: str,
    into: frozenset[Status],
    latest: int | None = None,
) -> bool:
    """Adopt a remote task for the generation, and apply what it shows. False if not possible.

    `latest`: the attempt that must still be the generation's latest.
    """
    row = conn.execute(
        select(g.attempt, g.status).where(g.id == generation_id).with_for_update()
    ).one()
    if Status(row.status) not in into or latest not in (None, row.attempt):
        return False
    return _adopt(conn, generation_id, attempt, row.attempt, task, by=by, into=into)


def _adopt(
    conn: Connection,
    generation_id: uuid.UUID,
    attempt: int,
    latest: int,
    task: Observation,
    *,
    by: str,
    into: frozenset[Status],
) -> bool:
    moved = transitions.adopt(
        conn,
        generation_id,
        attempt,
        latest_attempt=latest,
        seen=task,
        sources=into,
        by=by,
    )
    if moved is None:
        return False
    conn.execute(
        text("DELETE FROM stray_tasks WHERE task_id = :task_id"), {"task_id": task.task_id}
    )
    transitions.apply_observation(conn, task)
    return True


def flag_second(
    conn: Connection, generation_id: uuid.UUID, attempt: int, task: Observation
) -> None:
    """Record a second remote task of a generation."""
    values = stray_values(task)
    submission.flag_second_task(
        conn,
        generation_id,
        attempt,
        task_id=values.pop("task_id"),
        status=values.pop("status"),
        credit_cost=values.pop("credit_cost"),
        seed=values.pop("seed"),
        created_at=values.pop("remote_created_at"),
        shown=values,
    )


def stray_values(task: Observation) -> dict[str, Any]:
    """A task as `stray_tasks` keeps it."""
    return {
        "task_id": task.task_id,
        "status": task.status,
        "credit_cost": task.credit_cost,
        "seed": task.seed,
        "remote_created_at": task.created_at,
        **{name: getattr(task, name) for name in ECHOED},
    }


# --- what the resolve stage needs to know -------------------------------------------------------


@dataclass(frozen=True)
class InDoubt:
    """A generation to be resolved, as it was read."""

    case: Case
    status: Status
    lease: int
    latest: int
    settled: bool
    """Whether `settle_at` of all its open attempts has passed."""
    settle_in: float
    """Seconds until it does; negative once it has."""
    uncertain_for: float
    """Seconds since its latest attempt was answered without a definite outcome, or given up on."""
    failures: int


def in_doubt(
    conn: Connection, claims: Sequence[tuple[uuid.UUID, int]], *, key_exclusive: bool
) -> list[InDoubt]:
    """The claimed generations that are still in doubt under their lease, with open attempts."""
    found = []
    for generation_id, lease in claims:
        row = conn.execute(
            select(g.status, g.request, g.attempt, g.fingerprint, g.failures).where(
                g.id == generation_id,
                g.lease == lease,
                g.status.in_([Status.SUBMITTING, Status.UNCERTAIN]),
            )
        ).one_or_none()
        if row is None:
            continue
        attempts = conn.execute(
            select(
                a.number,
                a.seed,
                a.seed_drawn,
                a.started_at,
                a.settle_at,
                func.extract("epoch", a.settle_at - func.now()).label("settle_in"),
                func.extract("epoch", func.now() - a.answered_at).label("answered_ago"),
            )
            .where(a.generation_id == generation_id, text(OPEN_ATTEMPT_SQL))
            .order_by(a.number)
        ).all()
        rival = _rival(
            conn,
            generation_id,
            row.fingerprint,
            since=min((attempt.started_at for attempt in attempts), default=None),
        )
        settle_in = [float(attempt.settle_in) for attempt in attempts]
        case = Case(
            generation_id,
            row.request,
            tuple(
                Attempt(r.number, r.seed, r.seed_drawn, r.started_at, r.settle_at) for r in attempts
            ),
            key_exclusive=key_exclusive,
            rival=rival,
        )
        found.append(
            InDoubt(
                case,
                Status(row.status),
                lease,
                row.attempt,
                settled(settle_in),
                max(settle_in, default=0.0),
                float(attempts[-1].answered_ago or 0) if attempts else 0.0,
                row.failures,
            )
        )
    return found


def _rival(
    conn: Connection, generation_id: uuid.UUID, fingerprint: str, *, since: datetime | None
) -> bool:
    """Whether another generation has an open attempt that a task could just as well be of.

    One that ended, and whose attempt had settled long before `since`, can't have a task made so
    late.
    """
    other = exists().where(g.id == a.generation_id, g.finished_at.is_(None))
    lately = literal(True) if since is None else a.settle_at > since - submission.FORGOTTEN
    return conn.execute(
        select(
            exists().where(
                a.fingerprint == fingerprint,
                a.generation_id != generation_id,
                text(OPEN_ATTEMPT_SQL),
                or_(other, lately),
            )
        )
    ).scalar_one()


def created_since(conn: Connection, since: datetime, until: datetime) -> frozenset[str]:
    """Remote tasks that we know to have been created in between: a complete reading shows them.

    `until` leaves out those that the list may not show yet (its lag).
    """
    return frozenset(
        conn.execute(
            select(a.remote_task_id).where(
                a.outcome.in_(("submitted", "adopted")),
                a.started_at >= since,
                a.decided_at <= until,
            )
        ).scalars()
    )


def lately_known(conn: Connection, until: datetime) -> frozenset[str]:
    """Some of the latest remote tasks of ours: the account's list shows at least one of them.

    Where it shows none, it is another account's list, or a replica's that is far behind.
    """
    return frozenset(
        conn.execute(
            select(a.remote_task_id)
            .where(
                a.outcome.in_(("submitted", "adopted")),
                a.started_at >= until - timedelta(days=1),
                a.decided_at <= until,
            )
            .order_by(a.started_at.desc())
            .limit(20)
        ).scalars()
    )


def answered_times(
    conn: Connection, task_ids: Sequence[str]
) -> dict[str, tuple[datetime, datetime]]:
    """For submissions that were answered: when intended and when answered, by our clock."""
    rows = conn.execute(
        select(a.remote_task_id, a.started_at, a.decided_at).where(
            among(a.remote_task_id, task_ids), a.outcome == "submitted"
        )
    )
    return {r.remote_task_id: (r.started_at, r.decided_at) for r in rows}


def running_unseen(
    conn: Connection, seen: AbstractSet[str], *, before: datetime
) -> list[uuid.UUID]:
    """Generations believed running since before then whose task the list did not show."""
    running = (text(LIVE_SQL), g.status == Status.RUNNING, g.submitted_at < before)
    missed = not_among(conn, g.remote_task_id, *running, seen=seen)
    return list(
        conn.execute(
            select(g.id).where(g.status == Status.RUNNING, among(g.remote_task_id, missed))
        ).scalars()
    )


def look_at(conn: Connection, ids: Sequence[uuid.UUID]) -> None:
    """Each gets its own GET, which tells what the list doesn't; what somebody else has this moment
    is found again the next time.
    """
    free = (
        select(g.id)
        .where(g.id.in_(ids), g.status == Status.RUNNING)
        .with_for_update(skip_locked=True)
        .cte("free")
    )
    conn.execute(
        update(Generation)
        .where(g.id == free.c.id)
        .values(due_at=func.least(g.due_at, func.now()))
        .execution_options(synchronize_session=False)
    )
