"""Handing notices out and keeping what became of them.

A notice is claimed as a generation is: due, leased, fenced. Beyond that, one receiver has little
room, so that a slow one holds up no other; while it fails it is left alone, then tried with one
notice at a time; and a notice goes only after all earlier ones of its generation and target.

Nobody waits for another in a circle: of several notices, those of a generation and target are
locked in the order in which they are told, then the receiver; claiming and burying pass over what
somebody has.
"""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, text

from models.notices.table import Target

PER_RECEIVER = 4
"""Notices at most that are on their way to one receiver, from all workers together."""

FORGIVEN = 3
"""Failures in a row from which on a receiver is left alone."""

LEFT_ALONE = 300.0
"""Seconds, at most, that a failing receiver is left alone before one notice is tried."""

_BURIED_AT_ONCE = 500
"""By each failed try, of which there is one in some minutes: the others wait for nobody meanwhile,
and one transaction stays short."""

_CLAIMING = 0x5EED_0B0C


@dataclass(frozen=True)
class Claim:
    """The right to deliver a notice until its lease ends or is raised."""

    id: uuid.UUID
    lease: int


@dataclass(frozen=True)
class Outgoing:
    """A claimed notice, with all that is told."""

    id: uuid.UUID
    lease: int
    generation_id: uuid.UUID
    target: Target
    sequence: int
    type: str
    receiver: str
    data: dict[str, Any]
    created_at: datetime
    notify: dict[str, Any]
    tenant: str
    metadata: dict[str, Any] | None
    idempotency_key: str | None
    retry_of: uuid.UUID | None
    tries: int
    age: float
    """Seconds since it was first to be delivered."""
    receiver_failures: int
    """Of its receiver, in a row."""
    receiver_failing: float
    """Seconds since the first of them."""
    now: datetime
    """By the database's clock, when it was loaded."""


IN_ORDER = "ORDER BY generation_id, target, sequence FOR UPDATE"
"""How whoever changes several notices, and waits for them, locks them."""

_EARLIER = """
    SELECT FROM notices earlier
    WHERE earlier.generation_id = n.generation_id AND earlier.target = n.target
      AND earlier.sequence < n.sequence AND earlier.status = 'pending'
"""

# Leaps from receiver to receiver over the index, so that a hundred thousand notices that wait for
# one cost as much as one. Fair: each receiver's first, then each one's second, and where there is
# no room for all, whose turn it is goes by lot: by age a slow one with a backlog would always win.
_CLAIM = text(
    f"""
    WITH RECURSIVE leaps AS (
        (SELECT receiver FROM notices WHERE status = 'pending' ORDER BY receiver LIMIT 1)
        UNION ALL
        SELECT (SELECT n.receiver FROM notices n
                WHERE n.status = 'pending' AND n.receiver > leaps.receiver
                ORDER BY n.receiver LIMIT 1)
        FROM leaps WHERE leaps.receiver IS NOT NULL
    ), open AS (
        SELECT leaps.receiver, CASE WHEN r.failures >= :forgiven THEN 1 ELSE :most END
            - (SELECT count(*) FROM notices c
               WHERE c.claimed AND c.receiver = leaps.receiver AND c.due_at > now()) AS room
        FROM leaps LEFT JOIN notice_receivers r ON r.receiver = leaps.receiver
        WHERE leaps.receiver IS NOT NULL AND (r.retry_at IS NULL OR r.retry_at <= now())
    ), picked AS (
        SELECT first.id FROM open CROSS JOIN LATERAL (
            SELECT n.id, n.due_at, row_number() OVER (ORDER BY n.due_at) AS turn FROM notices n
            WHERE n.status = 'pending' AND n.receiver = open.receiver AND n.due_at <= now()
              AND NOT EXISTS ({_EARLIER})
            ORDER BY n.due_at LIMIT greatest(open.room, 0)
        ) AS first
        ORDER BY first.turn, random() LIMIT :limit
    ), free AS MATERIALIZED (
        SELECT n.id FROM notices n JOIN picked ON n.id = picked.id
        WHERE n.status = 'pending' AND n.due_at <= now() FOR UPDATE OF n SKIP LOCKED
    )
    UPDATE notices SET claimed = true, lease = lease + 1,
                       due_at = now() + make_interval(secs => :seconds)
    FROM free
    WHERE notices.id = free.id
    RETURNING notices.id, notices.lease
    """  # noqa: S608  (a constant of this module)
)


def claim_due(conn: Connection, limit: int, lease_seconds: float) -> list[Claim]:
    """Claim up to so many due notices. One process at a time does; the others get none."""
    alone = conn.execute(text("SELECT pg_try_advisory_xact_lock(:key)"), {"key": _CLAIMING})
    if not alone.scalar_one():
        return []
    rows = conn.execute(
        _CLAIM,
        {
            "limit": limit,
            "seconds": lease_seconds,
            # Half of what a process has room for, so that another receiver finds room as well.
            "most": min(PER_RECEIVER, max(1, limit // 2)),
            "forgiven": FORGIVEN,
        },
    )
    return [Claim(row.id, row.lease) for row in rows]


_NEXT = text(
    f"""
    UPDATE notices SET claimed = true, lease = lease + 1,
                       due_at = now() + make_interval(secs => :seconds)
    WHERE id = (
        SELECT n.id FROM notices n
        WHERE n.status = 'pending' AND n.receiver = :receiver AND n.due_at <= now()
          AND NOT EXISTS ({_EARLIER})
        ORDER BY n.due_at LIMIT 1 FOR UPDATE SKIP LOCKED
    )
    RETURNING id, lease
    """  # noqa: S608  (a constant of this module)
)


def claim_next(conn: Connection, receiver: str, lease_seconds: float) -> Claim | None:
    """Claim one more notice for a receiver that has just taken one, in its place."""
    row = conn.execute(_NEXT, {"receiver": receiver, "seconds": lease_seconds}).one_or_none()
    return None if row is None else Claim(row.id, row.lease)


def put_off(conn: Connection, claim: Claim, seconds: float, why: str | None = None) -> None:
    """Make a claimed notice due in so many seconds, if the claim still holds; no try is counted."""
    conn.execute(
        text(
            "UPDATE notices SET claimed = false, due_at = now() + make_interval(secs => :seconds),"
            " error = coalesce(:why, error)"
            " WHERE id = :id AND lease = :lease AND status = 'pending'"
        ),
        {"id": claim.id, "lease": claim.lease, "seconds": seconds, "why": why},
    )


WAITS_FOR_ARCHIVE = "waits for the archive"
"""Why a notice is put off until the results of its generation are stored."""


def results_settled(conn: Connection, generation_id: uuid.UUID) -> None:
    """A result was stored or lost: the notice that waits for it, if any does, is due."""
    conn.execute(_RESULTS_SETTLED, {"id": generation_id, "why": WAITS_FOR_ARCHIVE})


_RESULTS_SETTLED = text(
    f"""
    WITH waiting AS MATERIALIZED (
        SELECT id FROM notices
        WHERE generation_id = :id AND status = 'pending' AND NOT claimed
          AND due_at > now() AND error = :why
        {IN_ORDER}
    )
    UPDATE notices SET due_at = now() FROM waiting WHERE notices.id = waiting.id
    """  # noqa: S608  (a constant of this module)
)


_LOAD = text(
    """
    SELECT n.id, n.lease, n.generation_id, n.target, n.sequence, n.type, n.receiver, n.data,
           n.created_at, g.notify, g.tenant, g.metadata, g.idempotency_key,
           g.retry_of, n.tries,
           CAST(extract(epoch FROM now() - n.since) AS float) AS age,
           coalesce(r.failures, 0) AS receiver_failures,
           CAST(coalesce(extract(epoch FROM now() - r.failing_since), 0) AS float)
               AS receiver_failing,
           now() AS now
    FROM notices n JOIN generations g ON g.id = n.generation_id
    LEFT JOIN notice_receivers r ON r.receiver = n.receiver
    WHERE n.id = :id AND n.lease = :lease AND n.status = 'pending'
    """
)


def load(conn: Connection, claim: Claim) -> Outgoing | None:
    """What a claim is about; None where it holds no longer."""
    row = conn.execute(_LOAD, {"id": claim.id, "lease": claim.lease}).one_or_none()
    return None if row is None else Outgoing(**{**row._asdict(), "target": Target(row.target)})


def delivered(conn: Connection, notice: Outgoing) -> bool:
    """It was taken. What follows it may go, and its receiver is well."""
    done = _settle(conn, notice, "delivered", None)
    if done:
        alive(conn, notice)
    return done


def alive(conn: Connection, notice: Outgoing) -> None:
    """Its receiver answers, whatever it thinks of this notice."""
    if notice.receiver_failures:
        conn.execute(
            text("DELETE FROM notice_receivers WHERE receiver = :receiver"),
            {"receiver": notice.receiver},
        )


def dead(conn: Connection, notice: Outgoing, why: str) -> bool:
    """Set it aside: nobody will take it. What follows it may go."""
    return _settle(conn, notice, "dead", why)


def _settle(conn: Connection, notice: Outgoing, status: str, why: str | None) -> bool:
    done = conn.execute(
        text(
            "UPDATE notices SET status = :status, claimed = false, due_at = NULL,"
            " settled_at = now(), tried_at = now(), tries = tries + 1, error = :why"
            " WHERE id = :id AND lease = :lease AND status = 'pending'"
        ),
        {"id": notice.id, "lease": notice.lease, "status": status, "why": why},
    )
    return done.rowcount == 1


def failed(conn: Connection, notice: Outgoing, *, seconds: float, why: str) -> bool:
    """It was not taken: it is due again in so many seconds, and what has to wait for it with it.

    Otherwise each claim would look over all that waits for a predecessor.
    """
    done = conn.execute(
        text(
            "UPDATE notices SET claimed = false, tries = tries + 1, tried_at = now(),"
            " due_at = now() + make_interval(secs => :seconds), error = :why"
            " WHERE id = :id AND lease = :lease AND status = 'pending'"
        ),
        {"id": notice.id, "lease": notice.lease, "seconds": seconds, "why": why},
    )
    if done.rowcount and notice.notify["on"] == "change":
        _followers_due(conn, notice.id, seconds)
    return done.rowcount == 1


def _followers_due(conn: Connection, notice_id: uuid.UUID, seconds: float) -> None:
    """What may go only after this notice is due in so many seconds."""
    conn.execute(
        text(
            "WITH followers AS MATERIALIZED (SELECT n.id FROM notices n JOIN notices first"
            " ON n.generation_id = first.generation_id AND n.target = first.target"
            " AND n.sequence > first.sequence"
            " WHERE first.id = :id AND n.status = 'pending' AND NOT n.claimed"
            " ORDER BY n.sequence FOR UPDATE OF n)"
            " UPDATE notices n SET due_at = now() + make_interval(secs => :seconds)"
            " FROM followers WHERE n.id = followers.id"
        ),
        {"id": notice_id, "seconds": seconds},
    )


def lock(conn: Connection, ids: Sequence[uuid.UUID]) -> None:
    """Lock these notices and all that wait for them, after their generations."""
    conn.execute(_LOCK_GENERATIONS, {"ids": list(ids)})
    conn.execute(_LOCK, {"ids": list(ids)})


# As writing their histories will.
_LOCK_GENERATIONS = text(
    """
    SELECT id FROM generations
    WHERE id IN (SELECT generation_id FROM notices WHERE id = ANY(:ids))
    ORDER BY remote_task_id COLLATE "C", id FOR KEY SHARE
    """
)
_LOCK = text(
    f"""
    SELECT id FROM notices n
    WHERE EXISTS (
        SELECT FROM notices first
        WHERE first.id = ANY(:ids) AND n.generation_id = first.generation_id
          AND n.target = first.target AND n.sequence >= first.sequence)
    {IN_ORDER}
    """  # noqa: S608  (a constant of this module)
)


def goes_first(conn: Connection, notice_id: uuid.UUID) -> None:
    """It was made due now, and so is what waits for it."""
    _followers_due(conn, notice_id, 0)


def leave_alone(conn: Connection, receiver: str, seconds: float, why: str) -> None:
    """A receiver failed: its notices wait for so many seconds, then one is tried."""
    conn.execute(
        text(
            "INSERT INTO notice_receivers AS r (receiver, failures, retry_at, error)"
            " VALUES (:receiver, 1, now() + make_interval(secs => :seconds), :why)"
            " ON CONFLICT (receiver) DO UPDATE SET failures = r.failures + 1,"
            " retry_at = excluded.retry_at, error = excluded.error"
        ),
        {"receiver": receiver, "seconds": seconds, "why": why},
    )


_BURY = text(
    """
    UPDATE notices SET status = 'dead', claimed = false, due_at = NULL, settled_at = now(),
                       error = :why
    WHERE id IN (
        SELECT id FROM notices
        WHERE status = 'pending' AND receiver = :receiver AND NOT claimed
          AND since < now() - make_interval(secs => :patience)
        ORDER BY due_at LIMIT :most FOR UPDATE SKIP LOCKED
    )
    """
)


def bury(conn: Connection, receiver: str, patience: float, why: str) -> int:
    """Set aside what has waited too long for a receiver that failed all the time."""
    values = {"receiver": receiver, "patience": patience, "why": why, "most": _BURIED_AT_ONCE}
    return conn.execute(_BURY, values).rowcount
