"""Deliver: send a notice to its producer, keep what became of it, and go on with the next.

A delivery may be repeated (a worker that dies after sending sends again), never lost: the notice
stays due until its receiver has taken it. It knows Celery as `send_task`.
"""

import logging
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC
from decimal import Decimal
from typing import Any

from sqlalchemy import Connection
from structlog.contextvars import bind_contextvars

from api_client import redact
from models.artifacts import reading
from models.artifacts.reading import ArtifactView
from models.lifecycle import Status
from models.metrics.definitions import NOTICES
from models.notices import Target, delivery
from models.notices.delivery import FORGIVEN, LEFT_ALONE, WAITS_FOR_ARCHIVE, Claim, Outgoing
from models.notices.table import UNSIGNED
from models.schedule import backoff
from worker import tracing
from worker.crash_points import reached
from worker.runtime import Runtime
from worker.settings import Settings
from worker.side_work import SideClaim, SideWork
from worker.webhooks import Answer, Refused, Sender, Taken

log = logging.getLogger(__name__)

SendTask = Callable[[str, str, str, Mapping[str, Any]], None]
"""Publish a task: name, queue, task id, keyword arguments. Raises what the broker raises."""

LONGEST_TRY = 10.0
"""Seconds that a receiver has for its answer; less where a lease is short."""
LONGEST_PAUSE = 4 * 3_600.0
"""Seconds, at most, between two tries of a notice. So three days hold about thirty."""
LONGEST_RETRY_AFTER = 3_600.0
"""Seconds that a receiver may ask to be left alone."""
LOOK_FOR_SECRET = 60.0
"""Seconds until it is looked again whether there is a secret to sign with."""
ARCHIVE_PATIENCE = 900.0
"""Seconds that the notice of a completed generation waits for its results to be stored."""
LOOK_AGAIN = 60.0
"""Seconds until it is looked again whether they are, though who stores them makes it due."""
IN_A_ROW = 5.0
"""Seconds for which one message goes on with the next notice of its receiver."""


def run(rt: Runtime, claim: SideClaim, send_task: SendTask | None = None) -> None:
    """Deliver a claimed notice; then, while its receiver takes them, those that wait for it."""
    until = time.monotonic() + IN_A_ROW
    held: Claim | None = Claim(uuid.UUID(claim.id), claim.lease)
    while held is not None:
        with rt.engine.begin() as conn:
            notice = delivery.load(conn, held)
            if notice is None:
                return
            tracing.works_on(conn, [notice.generation_id])
            artifacts = _artifacts(conn, notice)
            obstacle = _obstacle(rt, notice, artifacts)
            if obstacle is not None:
                why, seconds = obstacle
                delivery.put_off(conn, held, seconds, why)
                return
        bind_contextvars(generation=str(notice.generation_id), notice=str(notice.id))
        reached("deliver.before_send")
        answer = _send(rt, notice, payload(notice, artifacts), send_task)
        reached("deliver.after_send")
        with rt.engine.begin() as conn:
            _record(conn, rt.settings, notice, answer)
            rt.tally.count(NOTICES, str(notice.target), _outcome(answer))
            held = None
            if isinstance(answer, Taken) and time.monotonic() < until:
                held = delivery.claim_next(conn, notice.receiver, rt.settings.lease)


def _artifacts(conn: Connection, notice: Outgoing) -> list[ArtifactView]:
    if notice.data["status"] != Status.COMPLETED:
        return []
    # Held, so that none is stored between this look and putting the notice off: who stores it
    # makes due what waits for it.
    return reading.of(conn, notice.generation_id, hold=True)


def _obstacle(
    rt: Runtime, notice: Outgoing, artifacts: Sequence[ArtifactView]
) -> tuple[str, float] | None:
    """Why it can't be sent yet, if so, and in how many seconds to look again."""
    if notice.target is Target.WEBHOOK and not _secrets(rt):
        return UNSIGNED, LOOK_FOR_SECRET
    storing = any(one.due_at is not None for one in artifacts)
    if storing and notice.age < ARCHIVE_PATIENCE:
        return WAITS_FOR_ARCHIVE, min(LOOK_AGAIN, ARCHIVE_PATIENCE - notice.age)
    return None


def payload(notice: Outgoing, artifacts: Sequence[ArtifactView] = ()) -> dict[str, Any]:
    """What a receiver gets. It never has a signed address: notices end up in logs."""
    data = notice.data
    cost = data["credit_cost"]
    message = data["error_message"]
    return {
        "type": notice.type,
        "timestamp": notice.created_at.astimezone(UTC).isoformat().replace("+00:00", "Z"),
        "data": {
            "id": str(notice.generation_id),
            "sequence": notice.sequence,
            "status": data["status"],
            "tenant": notice.tenant,
            "idempotency_key": notice.idempotency_key,
            # The generation that the producer knows, where an operator had its request retried.
            "retry_of": None if notice.retry_of is None else str(notice.retry_of),
            "metadata": notice.metadata,
            "credit_cost": None if cost is None else f"{Decimal(str(cost)).normalize():f}",
            "error_code": data["error_code"],
            "error_message": None if message is None else redact(message),
            "has_video": data["has_video"],
            "artifacts": [
                {
                    "kind": one.kind,
                    "uri": redact(one.uri),
                    "bytes": one.bytes,
                    "sha256": one.sha256,
                    "content_type": one.content_type,
                }
                for one in artifacts
                if one.uri is not None
            ],
        },
    }


def _secrets(rt: Runtime) -> list[str]:
    return rt.settings.webhook_secrets.get_secret_value().split()


def _send(
    rt: Runtime, notice: Outgoing, told: Mapping[str, Any], send_task: SendTask | None
) -> Answer:
    if notice.target is Target.WEBHOOK:
        sender = Sender(
            _secrets(rt),
            private=rt.settings.allow_private_webhooks,
            # Connecting and the exchange both end well within the lease.
            connect_timeout=min(LONGEST_TRY / 2, rt.settings.lease / 4),
            total_timeout=min(LONGEST_TRY, rt.settings.lease / 2),
        )
        return sender.send(notice.notify["webhook"], str(notice.id), told, at=notice.now)
    if send_task is None:
        return Refused("this process sends no Celery tasks", alive=True)
    try:
        send_task(
            notice.notify["task"],
            notice.notify["queue"],
            str(notice.id),
            {"notice": told},
        )
    except Exception as error:  # noqa: BLE001  (brokers raise what they like; it is tried again)
        return Refused(f"the broker did not take it: {type(error).__name__}", alive=False)
    return Taken()


def _record(conn: Connection, settings: Settings, notice: Outgoing, answer: Answer) -> None:
    match answer:
        case Taken():
            delivery.delivered(conn, notice)
        case Refused(why=why, for_good=True):
            _set_aside(conn, notice, why)
            delivery.alive(conn, notice)
        case Refused() as refused:
            # First the notice, then its receiver, as everywhere: two orders could deadlock.
            _again(conn, settings, notice, refused)
            _judge(conn, settings, notice, refused)


def _outcome(answer: Answer) -> str:
    match answer:
        case Taken():
            return "taken"
        case Refused(for_good=True):
            return "dead"
        case Refused():
            return "again"


def _again(conn: Connection, settings: Settings, notice: Outgoing, refused: Refused) -> None:
    left = settings.notice_patience - notice.age
    if left <= 0:
        _set_aside(conn, notice, refused.why)
        return
    pause = backoff(notice.tries, base=settings.notice_retry, cap=LONGEST_PAUSE)
    # The last try comes when its time is up.
    seconds = min(max(pause, _asked(refused)), left)
    if delivery.failed(conn, notice, seconds=seconds, why=refused.why):
        level = logging.INFO if notice.tries else logging.WARNING
        log.log(
            level,
            "notice %s of generation %s was not taken by %s, again in %.0f s: %s",
            notice.id,
            notice.generation_id,
            notice.receiver,
            seconds,
            refused.why,
        )


def _asked(refused: Refused) -> float:
    """Seconds for which the receiver asked to be left alone, within bounds."""
    return min(refused.retry_after or 0.0, LONGEST_RETRY_AFTER)


def _judge(conn: Connection, settings: Settings, notice: Outgoing, refused: Refused) -> None:
    """One failure may be of the moment; after some in a row all that is for it waits."""
    if refused.alive:
        delivery.alive(conn, notice)
        return
    failures = notice.receiver_failures + 1
    pause = 0.0
    if failures >= FORGIVEN:
        pause = backoff(failures - FORGIVEN, base=settings.notice_retry, cap=LEFT_ALONE)
    delivery.leave_alone(conn, notice.receiver, max(pause, _asked(refused)), refused.why)
    if notice.receiver_failing > settings.notice_patience:
        buried = delivery.bury(conn, notice.receiver, settings.notice_patience, refused.why)
        if buried:
            log.error("%d notices to %s are dead: %s", buried, notice.receiver, refused.why)


def _set_aside(conn: Connection, notice: Outgoing, why: str) -> None:
    if delivery.dead(conn, notice, why):
        log.error(
            "notice %s of generation %s to %s is dead: %s (seedance notices resend)",
            notice.id,
            notice.generation_id,
            notice.receiver,
            why,
        )


def _claim(conn: Connection, limit: int, lease_seconds: float) -> list[SideClaim]:
    claims = delivery.claim_due(conn, limit, lease_seconds)
    return [SideClaim(str(claim.id), claim.lease) for claim in claims]


def _put_off(conn: Connection, claim: SideClaim, seconds: float) -> None:
    delivery.put_off(conn, Claim(uuid.UUID(claim.id), claim.lease), seconds)


def _wanted(_: Settings) -> bool:
    return True  # whoever enqueues decides


KIND = SideWork("seedance.deliver", _wanted, _claim, _put_off, run)
