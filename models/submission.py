"""The intent to submit: everything protocol.md asks before a POST, in one transaction."""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Connection,
    Integer,
    Interval,
    Text,
    Uuid,
    any_,
    bindparam,
    column,
    exists,
    func,
    or_,
    select,
    text,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, insert

from models import callbacks, gates, ledger, schedule, transitions
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

HELD_RECHECK = 5.0
"""Seconds a generation is put back for when a gate closed after its admission."""


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
    """What tells how long its task usually takes."""


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


_WANTED = (
    func.jsonb_to_recordset(bindparam("wanted", type_=JSONB))
    .table_valued(column("id", Uuid), column("lease", BigInteger), name="wanted")
    .render_derived(with_types=True)
)

_FREE = (
    select(g.id, g.lease, g.request, g.estimated_cost)
    .where(
        g.id == _WANTED.c.id,
        g.lease == _WANTED.c.lease,
        g.status == Status.UPLOADING,
        # Of an earlier attempt a task may exist, or a callback have come.
        g.attempt == 0,
        g.cancel_requested_at.is_(None),
        or_(g.deadline_at.is_(None), g.deadline_at > func.now()),
        ~pauses.holds(g.tenant),
        ~gates.any_closed(),
        ~schedule.any_learned(),
    )
    .order_by(*transitions.LOCK_ORDER)
    .with_for_update(of=table_of(Generation))
)


def begin_free(conn: Connection, wanted: Sequence[Wanted], timing: Timing) -> list[Intent]:
    """`uploading → submitting` for those that nothing at all can stand in the way of.

    They are on their first attempt, with a seed of ours, while no gate is closed, no limit learned
    and their tenant not paused. The others stay as they are, for `begin` to look at each.

    Raises sqlalchemy.exc.IntegrityError as `begin` does.
    """
    asked = [{"id": str(one.generation_id), "lease": one.lease} for one in wanted]
    rows = conn.execute(_FREE, {"wanted": asked}).all()
    rows = [row for row in rows if producer_seed(row.request) is None]
    digests = {one.generation_id: one.callback_digest for one in wanted}
    seeds = _fresh_seeds(conn, len(rows))
    return _intend(
        conn,
        [
            _Attempt(
                row.id, row.lease, 1, row.request, row.estimated_cost, seed, True, digests[row.id]
            )
            for row, seed in zip(rows, seeds, strict=True)
        ],
        timing,
    )


def begin(conn: Connection, wanted: Wanted, timing: Timing) -> Intent | Held:
    """`uploading → submitting`, or why not.

    Raises sqlalchemy.exc.IntegrityError when an equal generation took the fingerprint at the
    same moment: roll back and call it again.
    """
    generation_id, lease = wanted.generation_id, wanted.lease
    row = conn.execute(
        select(
            g.request,
            g.estimated_cost,
            g.attempt,
            g.cancel_requested_at,
            g.tenant,
            pauses.holds(g.tenant).label("paused"),
            (g.deadline_at <= func.now()).label("late"),
        )
        .where(g.id == generation_id, g.lease == lease, g.status == Status.UPLOADING)
        .with_for_update()
    ).one_or_none()
    if row is None:
        return Held("lease lost")
    fixed = producer_seed(row.request)
    facts = IntentFacts(
        late=bool(row.late),
        cancel_wished=row.cancel_requested_at is not None,
        gate=_paused(conn, row) or _held_back(conn, row.estimated_cost),
        own_task=_own_task(conn, generation_id),
        called_back=row.attempt > 0 and bool(callbacks.hints(conn, generation_id)),
        holder=None
        if fixed is None
        else fingerprint_holder(conn, fingerprint(row.request, fixed), fixed, generation_id),
    )
    obstacle = obstacle_to_intent(facts)
    if obstacle is not None:
        return _hold(conn, generation_id, lease, obstacle, facts)

    [seed] = _fresh_seeds(conn, 1) if fixed is None else [fixed]
    attempt = _Attempt(
        generation_id,
        lease,
        row.attempt + 1,
        row.request,
        row.estimated_cost,
        seed,
        fixed is None,
        wanted.callback_digest,
    )
    [intent] = _intend(conn, [attempt], timing)
    return intent


@dataclass(frozen=True)
class _Attempt:
    """One that is about to be intended: its row is locked and was checked."""

    generation_id: uuid.UUID
    lease: int
    number: int
    request: Mapping[str, Any]
    estimate: Decimal
    seed: int
    drawn: bool
    digest: bytes | None

    @property
    def mark(self) -> str:
        return fingerprint(self.request, self.seed)


_ATTEMPTS = (
    func.jsonb_to_recordset(bindparam("attempts", type_=JSONB))
    .table_valued(
        column("id", Uuid),
        column("number", Integer),
        column("seed", BigInteger),
        column("drawn", Boolean),
        column("mark", Text),
        column("digest", Text),
        name="attempts",
    )
    .render_derived(with_types=True)
)

_KEEP_ATTEMPTS = insert(SubmitAttempt).from_select(
    [
        *("generation_id", "number", "seed", "seed_drawn", "fingerprint"),
        *("callback_digest", "settle_at"),
    ],
    select(
        *(_ATTEMPTS.c[name] for name in ("id", "number", "seed", "drawn", "mark")),
        func.decode(_ATTEMPTS.c.digest, "hex"),
        func.now() + bindparam("settles_in", type_=Interval),
    ),
)


def _intend(conn: Connection, these: Sequence[_Attempt], timing: Timing) -> list[Intent]:
    if not these:
        return []
    marks = {one.generation_id: one.mark for one in these}
    conn.execute(
        _KEEP_ATTEMPTS,
        {
            "attempts": [
                {
                    "id": str(one.generation_id),
                    "number": one.number,
                    "seed": one.seed,
                    "drawn": one.drawn,
                    "mark": marks[one.generation_id],
                    "digest": None if one.digest is None else one.digest.hex(),
                }
                for one in these
            ],
            "settles_in": timedelta(seconds=timing.settle),
        },
    )
    moved = transitions.intend(
        conn,
        [
            transitions.Intending(
                one.generation_id, one.lease, one.number, marks[one.generation_id]
            )
            for one in these
        ],
        settle_seconds=timing.settle,
    )
    leases = {one.id: one.lease for one in moved}
    return [
        Intent(
            one.generation_id,
            one.number,
            leases[one.generation_id],
            one.seed,
            one.estimate,
            kind_of(one.request),
        )
        for one in these
    ]


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
        case Obstacle.GATE:
            assert facts.gate is not None, "held back by something"
            transitions.put_back(conn, generation_id, lease, wait=facts.gate, seconds=HELD_RECHECK)
            return Held(str(facts.gate))
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
        case Obstacle.HELD:
            assert facts.holder is not None, "held by somebody"
            put_back_blocked(conn, generation_id, lease, facts.holder)
            return Held(f"blocked by {facts.holder}")


def _paused(conn: Connection, row: Any) -> Wait | None:
    """The pause that holds a row with `paused` and `tenant`; nearly always there is none."""
    pause = pauses.of(conn, row.tenant) if row.paused else None
    return None if pause is None else pause.wait


def _held_back(conn: Connection, estimate: Decimal) -> Wait | None:
    """Why nothing of this estimated cost may be sent now: a gate, or too many at a time.

    Asked again here, since much can have changed while references were uploaded.
    """
    # First, as it may wait for others who are about to send: what it then reads is later.
    reopening = gates.reopening(conn, alone=True)
    gate = gates.sending(conn).obstacle(estimate)
    if gate is not None:
        return gates.wait_for(gate.name)
    if reopening is not None and not reopening.done and reopening.allowed_now == 0:
        return reopening.wait
    limit = schedule.learned(conn)
    if limit is not None and schedule.sent(conn) >= limit:
        return Wait(WaitReason.CONCURRENCY, {"provider_limit": limit})
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


_TAKEN = (
    select(a.seed)
    .where(a.seed == any_(bindparam("seeds", type_=ARRAY(BigInteger))))
    .union(select(s.seed).where(s.seed == any_(bindparam("seeds", type_=ARRAY(BigInteger)))))
)


def _fresh_seeds(conn: Connection, count: int) -> list[int]:
    """So many seeds that no attempt ever had and no remote task showed, each another."""
    fresh: set[int] = set()
    while len(fresh) < count:
        drawn = {draw_seed() for _ in range(count - len(fresh))} - fresh
        taken = conn.execute(_TAKEN, {"seeds": list(drawn)}).scalars()
        fresh |= drawn.difference(taken)
    return list(fresh)


_AS_IT_IS = select(
    g.id,
    g.status,
    g.attempt,
    g.cancel_requested_at,
    g.tenant,
    pauses.holds(g.tenant).label("paused"),
    (g.deadline_at <= func.now()).label("late"),
).where(g.id == any_(bindparam("ids", type_=ARRAY(Uuid))))


def may_still_send(conn: Connection, intents: Sequence[Intent]) -> dict[uuid.UUID, Wait]:
    """Asked again just before the POST: why these of the intents must not be sent.

    Reads only what can have changed since the intent: the wish to cancel, the deadline, pauses
    and gates, the row.
    """
    ids = [intent.generation_id for intent in intents]
    rows = {row.id: row for row in conn.execute(_AS_IT_IS, {"ids": ids})}
    sending = gates.sending(conn)
    obstacles = {}
    for intent in intents:
        row = rows.get(intent.generation_id)
        gate = sending.obstacle(intent.estimate)
        facts = SendFacts(
            status=None if row is None else Status(row.status),
            attempt=0 if row is None else row.attempt,
            cancel_wished=row is not None and row.cancel_requested_at is not None,
            pause=None if row is None else _paused(conn, row),
            gate=None if gate is None else gates.wait_for(gate.name),
            called_back=intent.attempt > 1 and bool(callbacks.hints(conn, intent.generation_id)),
            late=row is not None and bool(row.late),
        )
        obstacle = obstacle_to_sending(facts, intended=intent.attempt)
        if obstacle is not None:
            obstacles[intent.generation_id] = obstacle
    return obstacles


def lately_in_doubt(conn: Connection, *, seconds: float) -> int:
    """How many attempts of the last seconds ended without a definite answer."""
    return conn.execute(
        select(func.count()).where(
            a.started_at >= transitions.in_seconds(-seconds), a.outcome == "unknown"
        )
    ).scalar_one()


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
