"""Early scan: search the newest pages of the task list for attempts that are uncertain.

Presence may be found at any time, absence only once an attempt has settled. So a scan soon after
an answer was lost can adopt the remote task, and concludes nothing from not finding it.
"""

import logging
import uuid
from collections.abc import Sequence
from datetime import timedelta

from structlog.contextvars import bound_contextvars

from api_client import ApiError
from models import resolution, schedule, watch
from models.lifecycle import Status
from models.watch import InDoubt
from worker.limiter import NoTokenError
from worker.reading import read_newest
from worker.runtime import Runtime
from worker.stages import called_back, common

log = logging.getLogger(__name__)


def run(rt: Runtime, cases: Sequence[InDoubt]) -> set[uuid.UUID]:
    """Search for the remote tasks of these generations. Returns those that were adopted."""
    adopted = {one.case.generation_id for one in cases if _called_back(rt, one)}
    left = [one for one in cases if one.case.generation_id not in adopted]
    if not left:
        return adopted
    since = min(attempt.started_at for one in left for attempt in one.case.attempts)
    try:
        newest = read_newest(rt, since=since - timedelta(seconds=rt.settings.settle_margin))
    except (ApiError, NoTokenError) as error:
        log.info("the newest tasks can't be read, %d stay uncertain: %s", len(left), error)
        if isinstance(error, ApiError):
            common.report(rt, error)
        return adopted
    with rt.engine.connect() as conn:
        followed = watch.followed(conn, [task.task_id for task in newest.tasks])
    unknown = [task for task in newest.tasks if task.task_id not in followed]
    for one in left:
        verdict = resolution.early(resolution.judge(one.case, unknown, newest.skew))
        if verdict is not None and _adopt(rt, one, verdict):
            adopted.add(one.case.generation_id)
    return adopted


def _called_back(rt: Runtime, one: InDoubt) -> bool:
    with bound_contextvars(generation=str(one.case.generation_id), attempt=one.latest):
        return called_back.adopted(rt, one.case.generation_id)


def _adopt(rt: Runtime, one: InDoubt, verdict: resolution.Adopt) -> bool:
    generation_id = one.case.generation_id
    with rt.engine.begin() as conn:
        # Another generation may have adopted it since the page was read.
        taken = watch.followed(conn, [verdict.task.task_id])
        if resolution.still(verdict, followed=taken) is not verdict:
            return False
        adopted = watch.adopt_marked(
            conn,
            generation_id,
            verdict.attempt,
            verdict.task,
            by="early scan",
            into=frozenset({Status.UNCERTAIN}),
            latest=one.latest,
        )
        if adopted:
            schedule.wake(conn)  # an equal generation may wait for this one
            for other, number in verdict.others:
                watch.flag_second(conn, generation_id, number, other)
    if adopted:
        log.info(
            "generation %s adopts remote task %s, found early",
            generation_id,
            verdict.task.task_id,
            extra={"generation": str(generation_id), "remote_task": verdict.task.task_id},
        )
    return adopted
