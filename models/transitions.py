"""One named, guarded UPDATE for each transition, with its event, in the caller's transaction.

Every function here compares and sets: it names the statuses (and the lease or attempt) it may
leave, and returns None when another was faster; whoever loses the race changes nothing. A
transition that leaves doubt also wakes the oldest generation that waited for its fingerprint.
"""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    bindparam,
    case,
    func,
    insert,
    literal,
    or_,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import JSONB

from models import storable
from models.base import table_of
from models.lifecycle import (
    IN_DOUBT,
    LIVE,
    TERMINAL,
    TRANSITIONS,
    UNSPECIFIED,
    Contradiction,
    Event,
    Finish,
    Followed,
    Note,
    Nothing,
    Observation,
    Progress,
    Status,
    is_known,
    observe,
)
from models.tables import Generation, GenerationEvent, SubmitAttempt

g = table_of(Generation).c
_generations = table_of(Generation)
_events = table_of(GenerationEvent)
_attempts = table_of(SubmitAttempt)

Values = Mapping[str, Any]


@dataclass(frozen=True)
class Moved:
    """A generation after a transition."""

    id: uuid.UUID
    from_status: Status
    status: Status
    lease: int
    attempt: int
    fingerprint: str | None


def in_seconds(seconds: float) -> ColumnElement[Any]:
    """The database's now, that many seconds on."""
    return func.now() + timedelta(seconds=seconds)


_ENDED: Values = {
    # Post-pay: nothing but a completed task is charged (the provider's document, "Billing Model").
    "credit_cost": 0,
    "due_at": None,
    "finished_at": func.now(),
    "blocked_by": None,
    "waits_for": None,
    "attention": None,
    "attention_at": None,
}
_CALM: Values = {
    "tries": 0,
    "failures": 0,
    "blocked_by": None,
    "waits_for": None,
    "attention": None,
    "attention_at": None,
}


def move(
    conn: Connection,
    event: Event,
    *guards: ColumnElement[bool],
    values: Values,
    detail: Mapping[str, Any] | None = None,
    sources: frozenset[Status] | None = None,
    skip_locked: bool = False,
) -> list[Moved]:
    """Move every row that passes `guards` by `event`; the other functions here are its callers.

    One statement: lock and compare, set, tell. `sources` narrows the transition's own;
    `skip_locked` leaves out rows that somebody else is changing just now.
    """
    transition = TRANSITIONS[event]
    leaving = transition.sources if sources is None else transition.sources & sources
    locked = (
        select(g.id, g.status)
        .where(g.status.in_(sorted(leaving)), *guards)
        .with_for_update(skip_locked=skip_locked)
        .cte("locked")
    )
    moved = (
        update(_generations)
        .where(g.id == locked.c.id)
        .values(
            {
                **(_ENDED if transition.target in TERMINAL else {}),
                **values,
                "status": str(transition.target),
            }
        )
        .returning(g.id, locked.c.status.label("from_status"), g.lease, g.attempt, g.fingerprint)
        .cte("moved")
    )
    told = (
        insert(_events)
        .from_select(
            ["generation_id", "event", "from_status", "to_status", "attempt", "detail"],
            select(
                moved.c.id,
                literal(str(event)),
                moved.c.from_status,
                literal(str(transition.target)),
                moved.c.attempt,
                bindparam("detail", dict(detail) if detail else None, JSONB(none_as_null=True)),
            ),
        )
        .cte("told")
    )
    rows = conn.execute(select(moved).add_cte(told)).all()
    result = [
        Moved(
            row.id,
            Status(row.from_status),
            transition.target,
            row.lease,
            row.attempt,
            row.fingerprint,
        )
        for row in rows
    ]
    for row in result:
        if row.from_status in IN_DOUBT and row.status not in IN_DOUBT and row.fingerprint:
            _wake_waiter(conn, row.fingerprint)
    return result


def _one(moved: list[Moved]) -> Moved | None:
    return moved[0] if moved else None


def _wake_waiter(conn: Connection, fingerprint: str) -> None:
    oldest = (
        select(g.id)
        .where(
            g.finished_at.is_(None),
            g.fingerprint == fingerprint,
            g.status == Status.ACCEPTED,
            g.blocked_by.is_not(None),
        )
        .order_by(g.created_at)
        .limit(1)
        .with_for_update(skip_locked=True)
        .scalar_subquery()
    )
    conn.execute(
        update(_generations)
        .where(g.id == oldest)
        .values(blocked_by=None, waits_for=None, due_at=func.now())
    )


def note(
    conn: Connection,
    generation_id: uuid.UUID,
    kind: Note,
    *,
    attempt: int | None = None,
    detail: Mapping[str, Any] | None = None,
) -> None:
    """Tell something in the generation's history that moves nothing."""
    conn.execute(
        insert(_events).values(
            generation_id=generation_id,
            event=str(kind),
            attempt=attempt,
            detail=dict(detail) if detail else None,
        )
    )


# --- before the POST --------------------------------------------------------------------------


def admit(conn: Connection, ids: Sequence[uuid.UUID], *, lease_seconds: float) -> list[Moved]:
    """`accepted → uploading`: each takes a slot and a lease."""
    return move(
        conn,
        Event.ADMIT,
        g.id.in_(ids),
        values={
            "lease": g.lease + 1,
            "due_at": in_seconds(lease_seconds),
            "blocked_by": None,
            "waits_for": None,
        },
        # A producer's open transaction on one row must not hold up all the others.
        skip_locked=True,
    )


def put_back(
    conn: Connection,
    generation_id: uuid.UUID,
    lease: int,
    *,
    waits_for: str,
    seconds: float,
    blocked_by: uuid.UUID | None = None,
    attention: str | None = None,
    failed: bool = False,
) -> Moved | None:
    """`uploading → accepted`: it may not be sent now, and gives its slot to another."""
    values: dict[str, Any] = {
        "lease": g.lease + 1,
        "due_at": in_seconds(seconds),
        "waits_for": waits_for,
        "blocked_by": blocked_by,
        "tries": 0,
        "failures": g.failures + (1 if failed else 0),
    }
    if attention is not None:
        values |= {
            "attention": attention,
            "attention_at": func.coalesce(g.attention_at, func.now()),
        }
    return _one(
        move(
            conn,
            Event.PUT_BACK,
            g.id == generation_id,
            g.lease == lease,
            values=values,
            detail={"waits_for": waits_for},
        )
    )


def intend(
    conn: Connection,
    generation_id: uuid.UUID,
    lease: int,
    *,
    attempt: int,
    fingerprint: str,
    settle_seconds: float,
) -> Moved | None:
    """`uploading → submitting`: committed before the POST; due again when it must be settled."""
    return _one(
        move(
            conn,
            Event.INTEND,
            g.id == generation_id,
            g.lease == lease,
            g.cancel_requested_at.is_(None),
            values={
                **_CALM,
                "lease": g.lease + 1,
                "attempt": attempt,
                "fingerprint": fingerprint,
                "due_at": in_seconds(settle_seconds),
            },
        )
    )


def reject(
    conn: Connection, generation_id: uuid.UUID, lease: int, *, code: str, message: str
) -> Moved | None:
    """`uploading → failed`: the request can't be carried out (an unreadable reference, say)."""
    return _one(
        move(
            conn,
            Event.REJECT,
            g.id == generation_id,
            g.lease == lease,
            values={
                "error_code": storable.text(code),
                "error_message": storable.text(message),
                "lease": g.lease + 1,
            },
            detail={"code": code},
        )
    )


def lapse(conn: Connection, *guards: ColumnElement[bool]) -> list[Moved]:
    """`accepted | uploading → expired`: the deadline passed before it was sent."""
    return move(
        conn,
        Event.LAPSE,
        g.deadline_at <= func.now(),
        *guards,
        values={
            "lease": g.lease + 1,
            "error_code": "DEADLINE_PASSED",
            "error_message": "the deadline passed before the generation could be submitted",
        },
        skip_locked=True,
    )


def poison(conn: Connection, generation_id: uuid.UUID, lease: int) -> Moved | None:
    """`uploading → failed`: it was handed out again and again and never came back."""
    return _one(
        move(
            conn,
            Event.POISON,
            g.id == generation_id,
            g.lease == lease,
            values={
                "lease": g.lease + 1,
                "error_code": "WORKER_LOST",
                "error_message": "workers died or hung on it again and again; see its events",
            },
        )
    )


# --- the POST's answer (fenced by attempt, not by lease) ---------------------------------------


def close_attempt(
    conn: Connection,
    generation_id: uuid.UUID,
    attempt: int,
    *,
    outcome: str,
    code: str | None = None,
    remote_task_id: str | None = None,
) -> bool:
    """Record what became of an attempt; a definite outcome is never overwritten."""
    a = _attempts.c
    done = conn.execute(
        update(_attempts)
        .where(
            a.generation_id == generation_id,
            a.number == attempt,
            or_(a.outcome.is_(None), a.outcome.in_(("unknown", "absent", "given_up"))),
        )
        .values(
            outcome=outcome,
            code=storable.text(code),
            remote_task_id=remote_task_id,
            decided_at=func.now(),
        )
    )
    return done.rowcount == 1


def _follow(
    conn: Connection,
    event: Event,
    generation_id: uuid.UUID,
    attempt: int,
    *,
    remote_task_id: str,
    remote_status: str,
    credit_cost: Any,
    poll_seconds: float,
    detail: Mapping[str, Any] | None = None,
) -> Moved | None:
    remote_task_id = storable.text(remote_task_id) or ""
    remote_status = storable.text(remote_status) or ""
    return _one(
        move(
            conn,
            event,
            g.id == generation_id,
            g.attempt == attempt,
            values={
                **_CALM,
                "lease": g.lease + 1,
                "remote_task_id": remote_task_id,
                "remote_status": remote_status,
                "credit_cost": storable.credits(credit_cost),
                "submitted_at": func.now(),
                "polls": 0,
                # A cancel that was asked for meanwhile goes out at once.
                "due_at": case(
                    (g.cancel_requested_at.is_not(None), func.now()),
                    else_=in_seconds(poll_seconds),
                ),
            },
            detail={"remote_task_id": remote_task_id, **(detail or {})},
        )
    )


def submitted(
    conn: Connection,
    generation_id: uuid.UUID,
    attempt: int,
    *,
    remote_task_id: str,
    remote_status: str,
    credit_cost: Any,
    poll_seconds: float,
) -> Moved | None:
    """`submitting | uncertain | accepted | uploading → running`: the answer named the task.

    Late or not, if the attempt is the row's latest. Otherwise the caller flags a second task.
    """
    moved = _follow(
        conn,
        Event.SUBMIT,
        generation_id,
        attempt,
        remote_task_id=remote_task_id,
        remote_status=remote_status,
        credit_cost=credit_cost,
        poll_seconds=poll_seconds,
    )
    if moved is not None:
        close_attempt(
            conn, generation_id, attempt, outcome="submitted", remote_task_id=remote_task_id
        )
    return moved


def adopt(
    conn: Connection,
    generation_id: uuid.UUID,
    attempt: int,
    *,
    latest_attempt: int,
    seen: Observation,
    sources: frozenset[Status],
    by: str,
) -> Moved | None:
    """`… → running`: the remote task of one of the row's attempts was found in the task list.

    `attempt` is the one the task belongs to, `latest_attempt` the row's, which guards the move.
    """
    moved = _one(
        move(
            conn,
            Event.ADOPT,
            g.id == generation_id,
            g.attempt == latest_attempt,
            values={
                **_CALM,
                "lease": g.lease + 1,
                "remote_task_id": seen.task_id,
                # Its real status comes by observation, which also handles an end already reached.
                "remote_status": None,
                "credit_cost": seen.credit_cost,
                "submitted_at": func.coalesce(g.submitted_at, func.now()),
                "polls": 0,
                "due_at": func.now(),
            },
            detail={"remote_task_id": seen.task_id, "of_attempt": attempt, "by": by},
            sources=sources,
        )
    )
    if moved is not None:
        close_attempt(conn, generation_id, attempt, outcome="adopted", remote_task_id=seen.task_id)
    return moved


def doubt(
    conn: Connection,
    generation_id: uuid.UUID,
    attempt: int,
    *,
    why: str,
    code: str | None = None,
    settle_at: Any = None,
) -> Moved | None:
    """`submitting → uncertain`: nobody knows whether the provider made a task of the POST."""
    values: dict[str, Any] = {} if settle_at is None else {"due_at": settle_at}
    moved = _one(
        move(
            conn,
            Event.DOUBT,
            g.id == generation_id,
            g.attempt == attempt,
            values=values,
            detail={
                "why": storable.text(why),
                **({"code": storable.text(code)} if code else {}),
            },
        )
    )
    if moved is not None:
        close_attempt(conn, generation_id, attempt, outcome="unknown", code=code)
    return moved


def not_sent(
    conn: Connection, generation_id: uuid.UUID, attempt: int, *, why: str, seconds: float
) -> Moved | None:
    """`submitting → accepted | cancelled`: the POST was certainly not written.

    Only the submit stage itself can know this.
    """
    mine = (g.id == generation_id, g.attempt == attempt)
    moved = _wished(conn, *mine, sources=frozenset({Status.SUBMITTING})) or move(
        conn,
        Event.NOT_SENT,
        *mine,
        values={
            "lease": g.lease + 1,
            "due_at": in_seconds(seconds),
            "waits_for": why,
            "failures": g.failures + 1,
        },
        detail={"why": why},
    )
    # Where the row was found in doubt meanwhile, the attempt stays open for its readings.
    in_doubt = select(g.id).where(*mine, g.status.in_(sorted(IN_DOUBT)))
    if conn.execute(in_doubt).first() is None:
        close_attempt(conn, generation_id, attempt, outcome="not_sent")
    return _one(moved)


def declined(
    conn: Connection,
    generation_id: uuid.UUID,
    attempt: int,
    *,
    code: str,
    waits_for: str,
    seconds: float,
) -> Moved | None:
    """`submitting → accepted | cancelled`: a definite refusal that may be otherwise later."""
    code = storable.text(code) or ""
    mine = (g.id == generation_id, g.attempt == attempt)
    moved = _wished(conn, *mine, sources=frozenset({Status.SUBMITTING})) or move(
        conn,
        Event.DECLINE,
        *mine,
        values={
            "lease": g.lease + 1,
            "due_at": in_seconds(seconds),
            "waits_for": waits_for,
            "failures": g.failures + 1,
        },
        detail={"code": code},
    )
    if moved:
        close_attempt(conn, generation_id, attempt, outcome="refused", code=code)
    return _one(moved)


def _wished(
    conn: Connection,
    *mine: ColumnElement[bool],
    sources: frozenset[Status],
    detail: Mapping[str, Any] | None = None,
) -> list[Moved]:
    """`… → cancelled`, where that was asked for: certainly no remote task exists."""
    return move(
        conn,
        Event.CANCEL,
        *mine,
        g.cancel_requested_at.is_not(None),
        values={"lease": g.lease + 1},
        detail=detail,
        sources=sources,
    )


def refused(
    conn: Connection, generation_id: uuid.UUID, attempt: int, *, code: str, message: str
) -> Moved | None:
    """`submitting → failed`: the provider refused the work itself. Final, never reworded."""
    code = storable.text(code) or UNSPECIFIED
    moved = _one(
        move(
            conn,
            Event.REFUSE,
            g.id == generation_id,
            g.attempt == attempt,
            values={
                "lease": g.lease + 1,
                "error_code": code,
                "error_message": storable.text(message),
            },
            detail={"code": code},
        )
    )
    if moved is not None:
        close_attempt(conn, generation_id, attempt, outcome="refused", code=code)
    return moved


# --- out of doubt (the caller holds the row's lock and has judged two complete readings) --------


def absent(
    conn: Connection,
    generation_id: uuid.UUID,
    attempt: int,
    *,
    max_attempts: int,
    detail: Mapping[str, Any],
    seconds: float = 0.0,
) -> Moved | None:
    """`uncertain → accepted | cancelled | failed`: no remote task exists for any attempt.

    Only attempts that ended this way count against `max_attempts`; refusals burn none.
    """
    mine = (g.id == generation_id, g.attempt == attempt)
    a = _attempts.c
    absent_before = conn.execute(
        select(func.count()).where(
            a.generation_id == generation_id, a.outcome == "absent", a.number != attempt
        )
    ).scalar_one()
    in_vain = absent_before + 1
    moved = _wished(conn, *mine, sources=frozenset({Status.UNCERTAIN}), detail=detail)
    if not moved and in_vain >= max_attempts:
        moved = move(
            conn,
            Event.EXHAUST,
            *mine,
            values={
                "lease": g.lease + 1,
                "error_code": "SUBMIT_ATTEMPTS_EXHAUSTED",
                "error_message": f"{in_vain} attempts, and the provider made no task of any",
            },
            detail=detail,
        )
    elif not moved:
        moved = move(
            conn,
            Event.ABSENT,
            *mine,
            values={**_CALM, "lease": g.lease + 1, "due_at": in_seconds(seconds)},
            detail=detail,
        )
    if moved:
        close_attempt(conn, generation_id, attempt, outcome="absent")
    return _one(moved)


def give_up(
    conn: Connection, generation_id: uuid.UUID, attempt: int, *, actor: str
) -> Moved | None:
    """`uncertain | accepted | uploading → failed`: an operator ended it."""
    moved = _one(
        move(
            conn,
            Event.GIVE_UP,
            g.id == generation_id,
            g.attempt == attempt,
            values={
                "lease": g.lease + 1,
                "credit_cost": None,  # nobody knows; a charge is found by the watch
                "error_code": "GIVEN_UP",
                "error_message": f"ended by {actor} while its submission was undecided",
            },
            detail={"by": actor},
        )
    )
    if moved is not None:
        close_attempt(conn, generation_id, attempt, outcome="given_up")
    return moved


# --- while running ----------------------------------------------------------------------------


def apply_observation(conn: Connection, seen: Observation) -> Moved | Note | None:
    """Hold an observation against the generation that follows its task, and record the outcome.

    Guarded by rank and terminality, not by lease: it may come from a poll, the task list or a
    callback, in any order. Returns the move if the generation ended, PROGRESS or CONTRADICTION,
    or None where nothing changed.
    """
    row = conn.execute(
        select(g.id, g.status, g.remote_task_id, g.remote_status)
        .where(g.remote_task_id == seen.task_id)
        .with_for_update()
    ).one_or_none()
    if row is None:
        return None
    decision = observe(Followed(Status(row.status), row.remote_task_id, row.remote_status), seen)
    match decision:
        case Finish(event):
            return _one(
                move(
                    conn,
                    event,
                    g.id == row.id,
                    values=_finish_values(event, seen),
                    detail={"remote_status": seen.status, "credit_cost": _text(seen.credit_cost)},
                )
            )
        case Progress():
            conn.execute(
                update(_generations)
                .where(g.id == row.id)
                .values(remote_status=seen.status, observed_at=func.now())
            )
            note(conn, row.id, Note.PROGRESS, detail={"remote_status": seen.status})
            return Note.PROGRESS
        case Contradiction():
            _tell_once(
                conn,
                row.id,
                Note.CONTRADICTION,
                {
                    "recorded": row.remote_status,
                    "seen": seen.status,
                    "credit_cost": _text(seen.credit_cost),
                },
            )
            return Note.CONTRADICTION
        case Nothing():
            if row.status == Status.RUNNING:
                conn.execute(
                    update(_generations).where(g.id == row.id).values(observed_at=func.now())
                )
            if not is_known(seen.status):
                _tell_once(conn, row.id, Note.UNKNOWN_STATUS, {"remote_status": seen.status})
            return None


def _tell_once(
    conn: Connection, generation_id: uuid.UUID, kind: Note, detail: Mapping[str, Any]
) -> None:
    told = select(_events.c.id).where(
        _events.c.generation_id == generation_id, _events.c.event == str(kind)
    )
    if conn.execute(told.limit(1)).first() is None:
        note(conn, generation_id, kind, detail=detail)


def _text(amount: Any) -> str | None:
    return None if amount is None else str(amount)


def _finish_values(event: Event, seen: Observation) -> dict[str, Any]:
    charged = event is Event.COMPLETE
    return {
        "lease": g.lease + 1,
        "remote_status": seen.status,
        "observed_at": func.now(),
        "credit_cost": func.coalesce(seen.credit_cost, g.credit_cost) if charged else 0,
        "video_url": seen.video_url,
        "last_frame_url": seen.last_frame_url,
        "error_code": seen.error_code or (UNSPECIFIED if event is Event.FAIL else None),
        "error_message": seen.error_message,
    }


def reschedule(
    conn: Connection,
    generation_id: uuid.UUID,
    lease: int,
    *,
    seconds: float,
    polls: int | None = None,
    failures: int | None = None,
) -> bool:
    """Say when a live generation is due next, if its lease is still held."""
    values: dict[str, Any] = {"due_at": in_seconds(seconds), "tries": 0}
    if polls is not None:
        values["polls"] = polls
    if failures is not None:
        values["failures"] = failures
    done = conn.execute(
        update(_generations)
        .where(g.id == generation_id, g.lease == lease, g.status.in_(sorted(LIVE)))
        .values(values)
    )
    return done.rowcount == 1


def need_attention(conn: Connection, generation_id: uuid.UUID, why: str) -> bool:
    """Ask for an operator: the row gives up its slot, is told once, and is still looked at."""
    done = conn.execute(
        update(_generations)
        .where(g.id == generation_id, g.finished_at.is_(None), g.attention.is_distinct_from(why))
        .values(attention=why, attention_at=func.coalesce(g.attention_at, func.now()))
    )
    if done.rowcount:
        note(conn, generation_id, Note.ATTENTION, detail={"why": why})
    return done.rowcount == 1


def calm(conn: Connection, generation_id: uuid.UUID) -> None:
    """Attention is no longer needed."""
    conn.execute(
        update(_generations)
        .where(g.id == generation_id, g.attention.is_not(None))
        .values(attention=None, attention_at=None)
    )


# --- cancel -----------------------------------------------------------------------------------


def cancel(conn: Connection, generation_id: uuid.UUID) -> Moved | None:
    """`accepted | uploading → cancelled` at once; later, the wish is kept and carried out.

    Returns the move if it ended here, None where the wish was stored (or nothing is left to
    cancel: see the row).
    """
    # Locked first: a row that moves between the two ways would slip through both.
    conn.execute(select(g.id).where(g.id == generation_id).with_for_update())
    moved = move(
        conn,
        Event.CANCEL,
        g.id == generation_id,
        values={"lease": g.lease + 1, "cancel_requested_at": func.now()},
        sources=frozenset({Status.ACCEPTED, Status.UPLOADING}),
    )
    if moved:
        return moved[0]
    wished = conn.execute(
        update(_generations)
        .where(
            g.id == generation_id,
            g.status.in_(sorted(LIVE)),
            g.cancel_requested_at.is_(None),
        )
        .values(
            cancel_requested_at=func.now(),
            # In doubt, the row stays due when it can be settled; running, it is due now.
            due_at=case((g.status == Status.RUNNING, func.now()), else_=g.due_at),
        )
    )
    if wished.rowcount:
        note(conn, generation_id, Note.CANCEL_ASKED)
    return None


def cancel_sent(conn: Connection, generation_id: uuid.UUID, lease: int, *, answer: str) -> bool:
    """The provider was asked to cancel; its answer is only a hint."""
    done = conn.execute(
        update(_generations)
        .where(g.id == generation_id, g.lease == lease, g.status == Status.RUNNING)
        .values(cancel_sent_at=func.now())
    )
    if done.rowcount:
        note(conn, generation_id, Note.CANCEL_SENT, detail={"answer": answer})
    return done.rowcount == 1
