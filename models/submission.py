"""The intent to submit: everything protocol.md asks before a POST, in one transaction."""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from sqlalchemy import (
    BigInteger,
    Connection,
    bindparam,
    exists,
    func,
    or_,
    select,
    text,
    update,
)
from sqlalchemy.dialects.postgresql import insert

from models import callbacks, ledger, schedule, transitions
from models.base import table_of
from models.decisions import (
    IntentFacts,
    Obstacle,
    SendFacts,
    Sent,
    Stray,
    may_be_own,
    obstacle_to_intent,
    obstacle_to_sending,
    outranked,
)
from models.flow_control import breakers, evidence
from models.flow_control import state as flow_state
from models.flow_control.state import FlowState
from models.flow_control.table import DEFAULT_ACCOUNT, FlowControl
from models.lifecycle import IN_DOUBT, Note, Status
from models.marks import draw_seed, fingerprint, producer_seed
from models.observing.usual import Kind, kind_of
from models.operating import pauses
from models.schedule import BLOCKED_RECHECK
from models.tables import OPEN_ATTEMPT_SQL, Generation, StrayTask, SubmitAttempt
from models.wait_reasons import Wait, WaitReason

g = table_of(Generation).c
a = table_of(SubmitAttempt).c
s = table_of(StrayTask).c

UNDECIDED_RECHECK = 300.0
"""Seconds until a generation that awaits a decision is looked at again."""

_LOOK_AGAIN = 20
"""At most so many of them at a time."""

HOLD_RECHECK = 1.0
"""Retry delay, in seconds, of a generation that flow control blocked after its admission."""


FORGOTTEN = timedelta(days=1)
"""So long after an attempt has settled no task of it can still be created, however slow the
provider: where its generation has ended, it stands in nobody's way any more."""


@dataclass(frozen=True)
class Timing:
    """B, K and L of protocol.md and a margin, in seconds."""

    send_budget: float
    late_creation: float
    list_lag: float
    margin: float = 5.0

    @property
    def settle(self) -> float:
        """From the intent until the provider can no longer be working on it, unseen."""
        return self.send_budget + self.late_creation + self.list_lag + self.margin


@dataclass(frozen=True)
class Intent:
    """A committed intent (once the caller's transaction is): the POST that may now be sent."""

    generation_id: uuid.UUID
    attempt: int
    lease: int
    seed: int
    estimate: Decimal
    kind: Kind | None = None
    """Which usual duration its task has."""
    probe: bool = False
    """It probes an outage: sent although the others are held."""


@dataclass(frozen=True)
class Held:
    """No intent was made; the row was moved on by `why` already, or another has it."""

    why: str


@dataclass(frozen=True)
class Wanted:
    """A claimed generation that is to be submitted."""

    generation_id: uuid.UUID
    lease: int
    callback_digest: bytes | None = None
    """Of the secret in the address that the provider is to call back, if any."""


_WITH_FLOW = table_of(Generation).outerjoin(
    table_of(FlowControl), table_of(FlowControl).c.account == DEFAULT_ACCOUNT
)

_TAKEN = or_(
    exists().where(a.seed == bindparam("seed", type_=BigInteger)),
    exists().where(s.seed == bindparam("seed", type_=BigInteger)),
)
"""Whether some attempt had this seed, or some remote task showed it."""

_FACTS = (
    select(
        g.request,
        g.estimated_cost,
        g.attempt,
        g.cancel_requested_at,
        g.tenant,
        pauses.holds(g.tenant).label("paused"),
        (g.deadline_at <= func.now()).label("late"),
        breakers.any_open().label("breaker"),
        _TAKEN.label("taken"),
        *flow_state.COLUMNS,
    )
    .select_from(_WITH_FLOW)
    .where(
        g.id == bindparam("id"),
        g.lease == bindparam("held"),
        g.status == text(f"'{Status.UPLOADING}'"),
    )
    .with_for_update(of=table_of(Generation))
)


def begin(conn: Connection, wanted: Wanted, timing: Timing) -> Intent | Held:
    """`uploading → submitting`, or why not.

    Raises sqlalchemy.exc.IntegrityError when an equal generation took the fingerprint, or another
    attempt the seed, at the same moment: roll back and call it again.
    """
    generation_id, lease = wanted.generation_id, wanted.lease
    drawn = draw_seed()
    given = {"id": generation_id, "held": lease, "seed": drawn}
    row = conn.execute(_FACTS, given).one_or_none()
    if row is None:
        return Held("lease lost")
    flow = flow_state.of_row(row)
    fixed = producer_seed(row.request)
    earlier = row.attempt > 0
    facts = IntentFacts(
        late=bool(row.late),
        cancel_wished=row.cancel_requested_at is not None,
        hold=_paused(conn, row) or _flow_hold(conn, row, flow),
        # Of an earlier attempt a task may exist, or a callback have come.
        own_task=_own_task(conn, generation_id) if earlier else None,
        called_back=earlier and bool(callbacks.hints(conn, generation_id)),
        holder=None
        if fixed is None
        else fingerprint_holder(conn, fingerprint(row.request, fixed), fixed, generation_id),
    )
    obstacle = obstacle_to_intent(facts)
    if obstacle is None and flow.outage_age is not None and not evidence.take_probe(conn, flow):
        facts = replace(facts, hold=_OUTAGE)
        obstacle = Obstacle.HOLD
    if obstacle is not None:
        return _hold(conn, generation_id, lease, obstacle, facts)

    seed = fixed
    if seed is None:
        seed = _fresh_seed(conn) if row.taken else drawn
    intending = transitions.Intending(
        generation_id,
        lease,
        row.attempt + 1,
        fingerprint(row.request, seed),
        seed,
        fixed is None,
        wanted.callback_digest,
    )
    moved = transitions.intend(conn, intending, settle_seconds=timing.settle)
    if moved is None:
        return Held("lease lost")
    return Intent(
        generation_id,
        moved.attempt,
        moved.lease,
        seed,
        row.estimated_cost,
        kind_of(row.request),
        probe=flow.outage_age is not None,
    )


def _fresh_seed(conn: Connection) -> int:
    """Return a seed that no attempt ever had and no remote task showed."""
    while True:
        drawn = draw_seed()
        if not conn.execute(select(_TAKEN), {"seed": drawn}).scalar_one():
            return drawn


def _hold(
    conn: Connection, generation_id: uuid.UUID, lease: int, obstacle: Obstacle, facts: IntentFacts
) -> Held:
    """Move the row on as the obstacle asks."""
    match obstacle:
        case Obstacle.LATE:
            transitions.lapse(conn, g.id == generation_id)
            return Held("deadline passed")
        case Obstacle.CANCELLED:
            transitions.cancel(conn, generation_id)
            return Held("cancelled")
        case Obstacle.HOLD:
            assert facts.hold is not None, "held by something"
            transitions.put_back(conn, generation_id, lease, wait=facts.hold, seconds=HOLD_RECHECK)
            return Held(str(facts.hold))
        case Obstacle.OWN_TASK | Obstacle.CALLED_BACK:
            why = callbacks.WHY
            if obstacle is Obstacle.OWN_TASK:
                why = f"remote task {facts.own_task} may be its own: decide with `seedance resolve`"
            transitions.put_back(
                conn,
                generation_id,
                lease,
                # It is not let in again before `look_again` finds the reason gone.
                wait=Wait(WaitReason.OPERATOR),
                seconds=UNDECIDED_RECHECK,
                attention=why,
            )
            return Held(why)
        case Obstacle.EQUAL:
            assert facts.holder is not None, "held by somebody"
            put_back_blocked(conn, generation_id, lease, facts.holder)
            return Held(f"blocked by {facts.holder}")


def _paused(conn: Connection, row: Any) -> Wait | None:
    """The pause that holds a row with `paused` and `tenant`; nearly always there is none."""
    pause = pauses.of(conn, row.tenant) if row.paused else None
    return None if pause is None else pause.wait


_OUTAGE = Wait(WaitReason.RATE, {"cause": "outage"})


def _flow_hold(conn: Connection, row: Any, flow: FlowState) -> Wait | None:
    """Return what forbids an intent now: a breaker, throttling, or as many tasks as fit.

    Checked again here, since much can have changed while references were uploaded.
    """
    hold = _account_hold(conn, flow, row.estimated_cost, breaker=row.breaker)
    if hold is not None or flow.concurrency is None:
        return hold
    if schedule.at_work(conn) < flow.concurrency.value:
        return None
    return Wait(WaitReason.CONCURRENCY, {"provider_limit": flow.concurrency.value})


def _account_hold(
    conn: Connection, flow: FlowState, estimate: Decimal, *, breaker: bool
) -> Wait | None:
    """Return what forbids to send anything of this estimated cost to the account."""
    if breaker:
        opened = breakers.read(conn).obstacle(estimate)
        if opened is not None:
            return Wait(WaitReason.BREAKER, {"breaker": str(opened.name)})
    if flow.resume_in > 0:
        return Wait(WaitReason.RATE, {"cause": "throttled"})
    return None


def look_again(conn: Connection) -> None:
    """Look whether what awaits a decision still must: its task may be followed by now.

    Tells nothing in the history, however long it goes on.
    """
    due = (
        select(g.id)
        .where(
            g.attention.is_not(None),
            g.status == Status.ACCEPTED,
            g.wait_reason == WaitReason.OPERATOR,
            g.due_at <= func.now(),
        )
        .order_by(g.due_at)
        .limit(_LOOK_AGAIN)
        .with_for_update(skip_locked=True)
    )
    for generation_id in conn.execute(due).scalars().all():
        mine = _own_task(conn, generation_id) or callbacks.hints(conn, generation_id)
        if not mine:
            transitions.decided(conn, generation_id)
        else:
            conn.execute(
                update(Generation)
                .where(g.id == generation_id)
                .values(due_at=transitions.in_seconds(UNDECIDED_RECHECK))
            )


def _own_task(conn: Connection, generation_id: uuid.UUID) -> str | None:
    """An unknown remote task that may be of one of the generation's attempts."""
    pairs = conn.execute(
        select(
            s.task_id,
            s.kind,
            s.generation_id.label("flagged"),
            s.seed.label("shown"),
            s.remote_created_at,
            exists().where(g.remote_task_id == s.task_id).label("followed"),
            *SENT,
        )
        .join(SubmitAttempt, or_(s.generation_id == a.generation_id, s.seed == a.seed))
        .where(a.generation_id == generation_id)
    )
    return next(
        (
            r.task_id
            for r in pairs
            if may_be_own(
                Stray(r.task_id, r.kind, r.flagged, r.shown, r.remote_created_at, r.followed),
                sent(r),
            )
        ),
        None,
    )


SENT = (a.generation_id, a.number, a.seed, a.seed_drawn, a.outcome, a.started_at)
"""The columns of an attempt that decisions are made on."""


def sent(row: Any) -> Sent:
    """The attempt in a row with the columns `SENT`."""
    return Sent(
        row.generation_id, row.number, row.seed, row.seed_drawn, row.outcome, row.started_at
    )


def fingerprint_holder(
    conn: Connection, mark: str, seed: int, generation_id: uuid.UUID
) -> uuid.UUID | None:
    """Another generation in doubt that a remote task of this one could be mistaken for."""
    holder: uuid.UUID | None = conn.execute(
        select(g.id)
        .where(
            g.finished_at.is_(None),
            g.fingerprint == mark,
            g.id != generation_id,
            g.status.in_(sorted(IN_DOUBT)),
        )
        .limit(1)
    ).scalar_one_or_none()
    if holder is not None:
        return holder
    # A seed drawn for another generation may by chance equal the producer's.
    return conn.execute(
        select(a.generation_id)
        .join(Generation, g.id == a.generation_id)
        .where(
            a.seed == seed,
            a.seed_drawn,
            a.generation_id != generation_id,
            text(OPEN_ATTEMPT_SQL),
            or_(g.finished_at.is_(None), a.settle_at > func.now() - FORGOTTEN),
        )
        .limit(1)
    ).scalar_one_or_none()


def put_back_blocked(
    conn: Connection, generation_id: uuid.UUID, lease: int, holder: uuid.UUID
) -> None:
    """Back to `accepted`: an equal generation is in doubt, and must be told apart first."""
    transitions.put_back(
        conn,
        generation_id,
        lease,
        wait=Wait(WaitReason.EQUAL_GENERATION, {"generation": str(holder)}),
        blocked_by=holder,
        seconds=BLOCKED_RECHECK,
    )


_BEFORE_SENDING = (
    select(
        g.status,
        g.attempt,
        g.cancel_requested_at,
        g.tenant,
        pauses.holds(g.tenant).label("paused"),
        (g.deadline_at <= func.now()).label("late"),
        breakers.any_open().label("breaker"),
        *flow_state.COLUMNS,
    )
    .select_from(_WITH_FLOW)
    .where(g.id == bindparam("id"))
)


@dataclass(frozen=True)
class BeforeSending:
    """What was found just before a POST."""

    obstacle: Wait | None
    """Why it must not be sent."""
    flow: FlowState


def before_sending(conn: Connection, intent: Intent) -> BeforeSending:
    """Check just before the POST whether the intent may still be sent.

    Reads only what can have changed since the intent: the wish to cancel, the deadline, pauses,
    breakers and flow control, the row.
    """
    row = conn.execute(_BEFORE_SENDING, {"id": intent.generation_id}).one_or_none()
    if row is None:
        return BeforeSending(obstacle_to_sending(SendFacts(None, 0), intended=0), FlowState())
    flow = flow_state.of_row(row)
    hold = _account_hold(conn, flow, intent.estimate, breaker=row.breaker)
    if hold is None and flow.outage_age is not None and not intent.probe:
        hold = _OUTAGE
    facts = SendFacts(
        status=Status(row.status),
        attempt=row.attempt,
        cancel_wished=row.cancel_requested_at is not None,
        hold=_paused(conn, row) or hold,
        called_back=intent.attempt > 1 and bool(callbacks.hints(conn, intent.generation_id)),
        late=bool(row.late),
    )
    return BeforeSending(obstacle_to_sending(facts, intended=intent.attempt), flow)


@dataclass(frozen=True)
class Refusals:
    """How often, and for how long, the provider has refused a generation for now."""

    count: int
    since: float | None
    """Seconds since the first one that the provider failed for now; holds don't count."""


def refusals(conn: Connection, generation_id: uuid.UUID) -> Refusals:
    """Return the refusals that a generation's earlier attempts met, unreachable ones included."""
    row = conn.execute(
        select(
            func.count().label("number"),
            func.extract(
                "epoch",
                func.now()
                - func.min(a.started_at).filter(a.outcome == "refused", a.provider_ok.is_(False)),
            ).label("since"),
        ).where(
            a.generation_id == generation_id,
            a.outcome.in_(("refused", "not_sent")),
            a.code.is_not(None),
        )
    ).one()
    return Refusals(row.number, None if row.since is None else float(row.since))


def flag_second_task(
    conn: Connection,
    generation_id: uuid.UUID,
    attempt: int | None,
    *,
    task_id: str,
    status: str,
    credit_cost: Decimal | None,
    seed: int | None = None,
    created_at: datetime | None = None,
    shown: Mapping[str, Any] | None = None,
) -> None:
    """Record a second remote task of one generation: never silent, its credits kept."""
    from_list = dict(shown or {})
    recorded = upsert_stray(
        conn,
        kind="second",
        generation_id=generation_id,
        attempt=attempt,
        task_id=task_id,
        status=status,
        credit_cost=credit_cost,
        seed=seed,
        remote_created_at=created_at,
        **from_list,
    )
    if recorded:
        transitions.note(
            conn,
            generation_id,
            Note.SECOND_TASK,
            attempt=attempt,
            detail={"remote_task_id": task_id, "remote_status": status},
        )


def upsert_stray(conn: Connection, *, task_id: str, kind: str, **values: Any) -> bool:
    """Keep a remote task that no generation follows. True if it is new, or newly of this kind.

    What is known of it already stays: a later sighting that shows less makes it no less ours.
    """
    before = conn.execute(
        select(s.kind).where(s.task_id == task_id).with_for_update()
    ).scalar_one_or_none()
    if before is not None and outranked(kind, recorded=before):
        kind = before
        values = {name: values[name] for name in values.keys() - {"generation_id", "attempt"}}
    new = _keep_stray(conn, before, task_id=task_id, kind=kind, **values)
    if kind == "second" and values.get("status") == "completed":
        _charge_second(conn, task_id)
    return new


def _keep_stray(
    conn: Connection, before: str | None, *, task_id: str, kind: str, **values: Any
) -> bool:
    if before is None:
        # Another pass may have written it in the same moment: then it knows as much.
        conn.execute(
            insert(StrayTask)
            .values(task_id=task_id, kind=kind, **values)
            .on_conflict_do_nothing(index_elements=[s.task_id])
        )
        return True
    shown = {name: value for name, value in values.items() if value is not None}
    conn.execute(
        update(StrayTask)
        .where(s.task_id == task_id)
        .values(kind=kind, last_seen_at=func.now(), **shown)
    )
    return bool(before != kind)


def _charge_second(conn: Connection, task_id: str) -> None:
    """A second task of a generation is paid like the first, once it has completed."""
    row = conn.execute(
        select(s.generation_id, s.attempt, s.credit_cost).where(
            s.task_id == task_id, s.kind == "second", s.status == "completed"
        )
    ).one_or_none()
    if row is not None:
        ledger.charge_beside(
            conn,
            row.generation_id,
            row.attempt,
            task_id=task_id,
            amount=row.credit_cost,
            why="a second task",
        )
