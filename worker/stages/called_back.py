"""Before a lost answer has settled: look for the task that a callback says exists.

Nothing is concluded from not finding it. What shows the attempt's own drawn seed is adopted, as the
watch would on sight of it; all else waits for the two readings.
"""

import logging
import uuid
from collections.abc import Iterator

from api_client import ApiError
from models import callbacks, resolution, watch
from models.callbacks import Hint
from models.lifecycle import Observation, Status
from worker.limiter import NoTokenError
from worker.runtime import Runtime
from worker.stages import common

log = logging.getLogger(__name__)


def adopted(rt: Runtime, generation_id: uuid.UUID) -> bool:
    """Whether a called-back task of the generation was found and is followed now."""
    with rt.engine.connect() as conn:
        hints = [hint for hint in callbacks.hints(conn, generation_id) if hint.attempt.seed_drawn]
    return any(_found(rt, generation_id, hint) for hint in hints)


def _found(rt: Runtime, generation_id: uuid.UUID, hint: Hint) -> bool:
    return any(
        resolution.carries_mark(hint.attempt, task) and _adopt(rt, generation_id, hint, task)
        for task in _candidates(rt, hint)
    )


def _candidates(rt: Runtime, hint: Hint) -> Iterator[Observation]:
    """The task that the callback named, then the newest of the list; as far as they can be had."""
    try:
        if hint.task_id is not None:
            yield common.observation(rt.client.get(hint.task_id, retry=False))
    except (ApiError, NoTokenError) as error:
        log.info("remote task %s of a callback can't be seen: %s", hint.task_id, error)
    try:
        yield from map(common.observation, rt.client.list_tasks(retry=False).data)
    except (ApiError, NoTokenError) as error:
        log.info("the task list can't be read for a callback: %s", error)


def _adopt(rt: Runtime, generation_id: uuid.UUID, hint: Hint, task: Observation) -> bool:
    with rt.engine.begin() as conn:
        if watch.followed(conn, [task.task_id]):
            return False
        done = watch.adopt_marked(
            conn,
            generation_id,
            hint.attempt.number,
            task,
            by="callback",
            into=frozenset({Status.UNCERTAIN}),
        )
    if done:
        log.info(
            "generation %s adopts remote task %s, by callback",
            generation_id,
            task.task_id,
            extra={"remote_task": task.task_id},
        )
    return done
