"""What answers of the provider change in an account's flow control.

Each function locks the account's row last, after any generation, so that two can't deadlock.
"""

import uuid
from collections import Counter
from collections.abc import Iterable
from typing import Any

from sqlalchemy import Connection, func, or_, select, text, update
from sqlalchemy.dialects.postgresql import insert

from models import storable
from models.base import table_of
from models.flow_control import rules
from models.flow_control.rules import ConcurrencyLimit
from models.flow_control.state import COLUMNS, FlowState, of_row, read
from models.flow_control.table import DEFAULT_ACCOUNT, FlowControl
from models.lifecycle import Status
from models.tables import Generation, SubmitAttempt
from models.transitions.core import in_seconds

_table = table_of(FlowControl)
f = _table.c
g = table_of(Generation).c
a = table_of(SubmitAttempt).c

MAX_RETRY_AFTER = 600.0
"""Seconds that the provider may ask to wait; a longer Retry-After is cut to this."""

PAUSE = 1.0
"""Seconds without requests after throttling that names no Retry-After."""

_IN_PROGRESS = 100
"""Submits without an answer yet that may precede the failures of an outage."""

_RATE_SPAN = 60.0
"""Seconds over which the rate of submissions is taken, for how often a limit is probed."""


def _locked(conn: Connection, account: str) -> FlowState:
    conn.execute(insert(_table).values(account=account).on_conflict_do_nothing())
    return of_row(
        conn.execute(select(*COLUMNS).where(f.account == account).with_for_update()).one_or_none()
    )


def throttled(
    conn: Connection,
    *,
    measured: float | None,
    retry_after: float | None,
    reason: str,
    account: str = DEFAULT_ACCOUNT,
) -> FlowState:
    """Lower the request rate and stop all requests until Retry-After has passed.

    `measured`: requests per second of the whole fleet when the provider refused; None if the answer
    asks for a pause and says nothing of the rate. Returns the new state.
    """
    state = _locked(conn, account)
    pause = PAUSE if retry_after is None else min(retry_after, MAX_RETRY_AFTER)
    values: dict[str, Any] = {"resume_at": func.greatest(f.resume_at, in_seconds(pause))}
    lowered = None if measured is None else rules.lower_rate(measured, state.rate)
    if lowered is not None:
        values |= {
            "rate": lowered.lowered_to,
            "rate_refused": lowered.refused,
            "rate_changed_at": func.now(),
            "reason": storable.text(reason),
        }
    conn.execute(update(_table).where(f.account == account).values(values))
    return read(conn, account=account)


def concurrency_refused(
    conn: Connection, generation_id: uuid.UUID, attempt: int, *, account: str = DEFAULT_ACCOUNT
) -> int:
    """Lower the concurrency limit: the provider refused this attempt as one too many.

    Returns the new limit.
    """
    present = conn.execute(
        select(func.count()).where(
            g.status.in_((Status.RUNNING, Status.SUBMITTING)),
            g.attention.is_(None),
            g.id != generation_id,
        )
    ).scalar_one()
    started_ago = conn.execute(
        select(func.extract("epoch", func.clock_timestamp() - a.started_at)).where(
            a.generation_id == generation_id, a.number == attempt
        )
    ).scalar_one_or_none()
    current = _locked(conn, account).concurrency
    if current is None:
        limit = ConcurrencyLimit(max(1, present), max(1, present) + 1, 0.0)
    else:
        fresh = started_ago is not None and float(started_ago) <= current.age
        limit = current.refuse(present, fresh=fresh)
    if limit is not current:
        _store_limit(conn, account, limit)
    return limit.value


def _store_limit(conn: Connection, account: str, limit: ConcurrencyLimit) -> None:
    conn.execute(
        update(_table)
        .where(f.account == account)
        .values(
            concurrency=limit.value,
            concurrency_refused=limit.refused,
            concurrency_changed_at=func.clock_timestamp(),
        )
    )


def failed(conn: Connection, *, reason: str, account: str = DEFAULT_ACCOUNT) -> bool:
    """Count a submit that the provider failed; its attempt is closed already.

    Returns True if an outage begins with it.
    """
    lately = f.failed_at > in_seconds(-1.0)
    conn.execute(
        insert(_table)
        .values(account=account, failed_at=func.now())
        .on_conflict_do_update(
            index_elements=[f.account],
            set_={"failed_at": func.now()},
            where=lately.is_not(True),
        )
    )
    latest = conn.execute(
        select(a.generation_id, a.provider_ok)
        .where(
            a.started_at > in_seconds(-rules.OUTAGE_SPAN),
            or_(a.answered_at.is_(None), a.provider_ok.is_not(None)),
        )
        .order_by(a.started_at.desc())
        .limit(rules.OUTAGE_SAMPLE + _IN_PROGRESS)
    ).all()
    if not rules.is_outage(_without_repetitions((row[0], row[1]) for row in latest)):
        return False
    began = conn.execute(
        update(_table)
        .where(f.account == account, f.outage_since.is_(None))
        .values(
            outage_since=func.now(),
            probe_at=in_seconds(rules.MIN_PROBE),
            ramp_since=None,
            reason=storable.text(reason),
        )
    )
    return began.rowcount == 1


def _without_repetitions(latest: Iterable[tuple[uuid.UUID, bool | None]]) -> list[bool | None]:
    """Return the outcomes without failures of a generation beyond `rules.OUTAGE_SHARE`."""
    failures = Counter[uuid.UUID]()
    kept: list[bool | None] = []
    for generation_id, ok in latest:
        if ok is False:
            failures[generation_id] += 1
        if ok is not False or failures[generation_id] <= rules.OUTAGE_SHARE:
            kept.append(ok)
    return kept


def take_probe(conn: Connection, state: FlowState, *, account: str = DEFAULT_ACCOUNT) -> bool:
    """Take the next probe of an outage: True for one caller in each interval."""
    interval = rules.probe_interval(state.outage_age or 0.0)
    taken = conn.execute(
        update(_table)
        .where(f.account == account, f.probe_at <= func.now())
        .values(probe_at=in_seconds(interval))
    )
    return taken.rowcount == 1


def recovered(conn: Connection, *, account: str = DEFAULT_ACCOUNT) -> bool:
    """End an outage: a submit was answered. Submission is ramped up from now on."""
    ended = conn.execute(
        update(_table)
        .where(f.account == account, f.outage_since.is_not(None))
        .values(outage_since=None, probe_at=None, ramp_since=func.now())
    )
    return ended.rowcount == 1


_USE = text(
    """
    SELECT (SELECT count(*) FROM generations
            WHERE status IN ('uploading', 'submitting', 'running') AND attention IS NULL) AS in_use,
           (SELECT count(*) FROM generations
            WHERE status = 'running' AND attention IS NULL) AS running,
           (SELECT count(*) FROM submit_attempts
            WHERE provider_ok AND answered_at > now() - make_interval(secs => :span)) AS submitted
    """
)


def relax(
    conn: Connection, *, max_in_flight: int, max_rate: float, account: str = DEFAULT_ACCOUNT
) -> None:
    """Raise or forget limits that have served their time."""
    state = read(conn, account=account)
    if state.rate is None and state.ramp_age is None and state.concurrency is None:
        return  # as usual: then it costs neither a row nor a lock
    # Under the lock: evidence that comes meanwhile must not be forgotten with the old limit.
    state = _locked(conn, account)
    if state.rate is not None and state.rate.now >= max_rate:
        forgotten = {"rate": None, "rate_refused": None, "rate_changed_at": None}
        conn.execute(update(_table).where(f.account == account).values(forgotten))
    if state.ramp_age is not None and _ramp_is_over(conn, state.ramp_age):
        conn.execute(update(_table).where(f.account == account).values(ramp_since=None))
    if state.concurrency is not None:
        _grow(conn, account, state.concurrency, max_in_flight)


def _ramp_is_over(conn: Connection, age: float) -> bool:
    if age > rules.MAX_RAMP:
        return True
    successes = (
        select(a.number)
        .where(a.provider_ok, a.answered_at > in_seconds(-age))
        .limit(rules.RAMP_DONE)
        .subquery()
    )
    return conn.execute(select(func.count()).select_from(successes)).scalar_one() >= rules.RAMP_DONE


def _grow(conn: Connection, account: str, limit: ConcurrencyLimit, max_in_flight: int) -> None:
    if limit.value >= max_in_flight:
        forgotten = {
            "concurrency": None,
            "concurrency_refused": None,
            "concurrency_changed_at": None,
        }
        conn.execute(update(_table).where(f.account == account).values(forgotten))
        return
    use = conn.execute(_USE, {"span": _RATE_SPAN}).one()
    # Beyond the refused number, what was raised must be running before it is raised again.
    in_use = use.running if limit.value >= limit.refused else use.in_use
    grown = limit.grow(in_use=in_use, per_second=use.submitted / _RATE_SPAN)
    if grown is not None:
        _store_limit(conn, account, grown)
