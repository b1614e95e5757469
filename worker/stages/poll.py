"""Poll: look at one running remote task, and say when to look again."""

import logging
import uuid

from sqlalchemy import Connection

from api_client import ApiError, CancelNotAllowed, Disposition, TaskNotFound
from models import schedule, transitions
from models.lifecycle import Status
from models.observing.usual import kind_of
from worker.crash_points import reached
from worker.limiter import NoTokenError
from worker.runtime import Runtime
from worker.stages import common

log = logging.getLogger(__name__)

NOT_FOUND_GRACE = 600.0
"""Seconds after submission in which a task may not be found: a replica may lag. Afterwards an
operator is asked; it is never taken for a failure (protocol.md, "Observations")."""

SLOW = 300.0
"""Seconds between looks at a task that needs an operator."""


def run(rt: Runtime, generation_id: uuid.UUID, lease: int) -> None:
    """One look at the remote task of a running generation; first its cancel, if asked for."""
    row = common.begin(rt, generation_id, lease)
    if row is None or row.status != Status.RUNNING or row.remote_task_id is None:
        return
    overdue = row.overdue and not row.cancel_wished
    if overdue:
        with rt.engine.begin() as conn:
            transitions.overdue(conn, row.id, row.lease)
        log.info("generation %s has passed its deadline: its task is cancelled", row.id)
    try:
        if (row.cancel_wished or overdue) and not row.cancel_sent:
            _cancel(rt, row, row.remote_task_id)
        task = rt.client.get(row.remote_task_id, retry=False)
    except NoTokenError:
        seconds = max(1.0, rt.flow.now().resume_in)
        with rt.engine.begin() as conn:
            transitions.reschedule(conn, row.id, row.lease, seconds=seconds)
        return
    except ApiError as error:
        _failed(rt, row, error)
        return
    if task.task_id != row.remote_task_id:
        _mistaken(rt, row, task.task_id)
        return
    reached("poll.after_get")
    with rt.engine.begin() as conn:
        ended = transitions.apply_observation(conn, common.observation(task))
        if isinstance(ended, transitions.Moved):
            schedule.wake_if_waiting(conn)
        else:
            _again(rt, conn, row)
    if isinstance(ended, transitions.Moved):
        if ended.status is Status.COMPLETED:
            rt.usual.note(kind_of(row.request), row.submitted_ago)
        log.info("generation %s is %s", row.id, ended.status)


def _again(rt: Runtime, conn: Connection, row: common.Row) -> None:
    seconds = schedule.poll_delay(
        row.polls + 1, shortest=rt.settings.poll_min, longest=rt.settings.poll_max
    )
    if row.submitted_ago > rt.settings.stalled_after:
        transitions.need_attention(conn, row.id, _stalled(rt, row))
        seconds = max(seconds, SLOW)
    elif row.attention is not None:
        transitions.calm(conn, row.id)
    transitions.reschedule(
        conn, row.id, row.lease, seconds=seconds, polls=row.polls + 1, failures=0
    )


def _stalled(rt: Runtime, row: common.Row) -> str:
    """The same words at each look: it is told once."""
    hours = rt.settings.stalled_after / 3600
    return f"its remote task {row.remote_task_id} has not ended in {hours:.3g} h: still looked at"


def _cancel(rt: Runtime, row: common.Row, task_id: str) -> None:
    """Ask the provider to cancel. The answer is a hint: the end comes from looking.

    Whatever goes wrong here, the task is looked at, and asked again with the next look.
    """
    try:
        answer = rt.client.cancel(task_id, retry=False).status or "no status"
    except ApiError as error:
        refused = error.disposition is Disposition.PERMANENT or isinstance(error, CancelNotAllowed)
        if not refused:
            log.warning("generation %s can't be cancelled yet: %s", row.id, error)
            return
        answer = error.code or f"HTTP {error.http_status}"
    with rt.engine.begin() as conn:
        transitions.cancel_sent(conn, row.id, row.lease, answer=answer)


def _mistaken(rt: Runtime, row: common.Row, shown: str) -> None:
    why = f"asked for remote task {row.remote_task_id}, the provider showed {shown[:80]!r}"
    log.error("generation %s: %s", row.id, why)
    with rt.engine.begin() as conn:
        transitions.need_attention(conn, row.id, why)
        transitions.reschedule(conn, row.id, row.lease, seconds=SLOW, failures=row.failures + 1)


def _failed(rt: Runtime, row: common.Row, error: ApiError) -> None:
    """Nothing was seen: look again, at growing intervals. A poll never fails a generation."""
    seconds = max(
        rt.settings.poll_min,
        schedule.backoff(row.failures, base=rt.settings.poll_min, cap=rt.settings.poll_max * 4),
        error.retry_after or 0.0,
    )
    attention = None
    if isinstance(error, TaskNotFound):
        if row.submitted_ago > NOT_FOUND_GRACE:
            attention = f"the provider does not know its remote task {row.remote_task_id}"
    elif error.disposition is not Disposition.PERMANENT:
        common.report(rt, error)
    else:
        attention = f"its remote task can't be read: {error}"
    if attention is None and row.submitted_ago > rt.settings.stalled_after:
        attention = _stalled(rt, row)
    if attention is not None:
        seconds = max(seconds, SLOW)
    log.warning("generation %s can't be seen, again in %.0f s: %s", row.id, seconds, error)
    with rt.engine.begin() as conn:
        if attention is not None:
            transitions.need_attention(conn, row.id, attention)
        transitions.reschedule(
            conn, row.id, row.lease, seconds=min(seconds, 900.0), failures=row.failures + 1
        )
