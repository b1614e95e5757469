"""Resolve: find out from the task list what became of a POST whose answer was lost.

One pair of readings serves every generation that is handed in together.
"""

import logging
import time
import uuid
from collections.abc import Sequence
from datetime import timedelta
from enum import StrEnum

from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError
from structlog.contextvars import bound_contextvars

from api_client import ApiError
from models import callbacks, decisions, resolution, schedule, transitions, watch
from models.lifecycle import IN_DOUBT, Status
from models.resolution import Absent, Adopt, Undecided, Verdict
from models.watch import InDoubt
from worker import tracing
from worker.crash_points import reached
from worker.limiter import NoTokenError
from worker.reading import ListReading, read_list, seen, with_seeds
from worker.runtime import Runtime
from worker.stages import common, early_scan

log = logging.getLogger(__name__)

ATTENTION_AFTER = 5
"""So many readings that decided nothing, and an operator is asked. It is still read, slowly."""

SLOW = 300.0
RETRY_BASE = 5.0
RETRY_CAP = 60.0


class Outcome(StrEnum):
    """What a run did with one generation."""

    ADOPTED = "adopted"
    ABSENT = "absent"
    UNDECIDED = "undecided"
    EARLY = "early"
    LOST = "lost"


def run(rt: Runtime, claims: Sequence[tuple[uuid.UUID, int]]) -> dict[uuid.UUID, Outcome]:
    """Resolve the claimed generations that are in doubt; each ends adopted, absent or undecided."""
    with rt.engine.begin() as conn:
        tracing.works_on(conn, [generation_id for generation_id, _ in claims])
        # All at once, and first: below they are locked as they come. One that a producer's open
        # transaction holds must not hold up the others: it is due again when its lease ends.
        begun = common.count_tries(conn, claims, rt.membership.id, skip_locked=len(claims) > 1)
        mine = [claim for claim in claims if claim[0] in begun]
        found = watch.in_doubt(conn, mine, key_exclusive=rt.settings.key_exclusive)
        for one in found:
            if one.status is Status.SUBMITTING:
                # Its lease has ended without an answer: whoever had it died or is lost.
                transitions.doubt(conn, one.case.generation_id, one.latest, why="no answer came")
            if not one.settled:
                seconds = decisions.next_search(
                    one.uncertain_for, settle_in=one.settle_in, list_lag=rt.settings.list_lag
                )
                transitions.reschedule(conn, one.case.generation_id, one.lease, seconds=seconds)
    early = [one for one in found if not one.settled]
    outcomes = {one.case.generation_id: Outcome.EARLY for one in early}
    if early:
        outcomes |= dict.fromkeys(early_scan.run(rt, early), Outcome.ADOPTED)
    cases = [one for one in found if one.settled]
    if not cases:
        return outcomes
    try:
        verdicts = _read_twice(rt, cases)
    except (ApiError, NoTokenError) as error:
        log.warning("the task list can't be read, %d wait to be resolved: %s", len(cases), error)
        if isinstance(error, ApiError):
            common.report(rt, error)
        # An outage of the list burns nothing: only a reading that decided nothing counts.
        with rt.engine.begin() as conn:
            for one in cases:
                transitions.reschedule(
                    conn, one.case.generation_id, one.lease, seconds=RETRY_BASE * 2
                )
        return outcomes
    reached("resolve.after_reading")
    for one in cases:
        generation_id = one.case.generation_id
        try:
            with bound_contextvars(generation=str(generation_id), attempt=one.latest):
                outcomes[generation_id] = _decide(rt, one, verdicts[generation_id])
        except SQLAlchemyError:
            # The others of the batch are not to wait for this one.
            log.exception("generation %s: its decision could not be written", generation_id)
            outcomes[generation_id] = Outcome.LOST
    reached("resolve.after_decision")
    return outcomes


def _read_twice(rt: Runtime, cases: Sequence[InDoubt]) -> dict[uuid.UUID, Verdict]:
    """Two complete readings, the second begun after the first ended, judged together."""
    keep = _Renewal(rt, cases)
    reading = _read(rt, cases, keep)
    first = _judged(rt, cases, reading, keep)
    if all(resolution.proven(verdict) for verdict in first.values()):
        return first  # a drawn seed proves itself; absence is what needs a second look
    again = _read(rt, cases, keep)
    second = _judged(rt, cases, again, keep)
    sound = resolution.borne_out(seen(reading), seen(again))
    return {
        generation_id: resolution.agree(
            resolution.heeded(verdict, complete=sound), second[generation_id]
        )
        for generation_id, verdict in first.items()
    }


class _Renewal:
    """Renews the leases of all cases now and then, while much is read for them."""

    def __init__(self, rt: Runtime, cases: Sequence[InDoubt]) -> None:
        self._rt, self._cases = rt, cases
        self._renewed = time.monotonic()

    def __call__(self, *_: object) -> None:
        lease = self._rt.settings.lease
        if time.monotonic() - self._renewed < lease / 4:
            return
        self._renewed = time.monotonic()
        for one in self._cases:
            common.renew(self._rt.engine, one.case.generation_id, one.lease, lease)


def _read(rt: Runtime, cases: Sequence[InDoubt], keep: _Renewal) -> ListReading:
    since = min(attempt.started_at for one in cases for attempt in one.case.attempts)
    lag = rt.settings.list_lag + rt.settings.settle_margin
    return read_list(rt, since=since, list_lag=lag, on_page=keep)


def _judged(
    rt: Runtime, cases: Sequence[InDoubt], reading: ListReading, keep: _Renewal
) -> dict[uuid.UUID, Verdict]:
    with rt.engine.connect() as conn:
        known = watch.followed(conn, [task.task_id for task in reading.tasks])
    unknown = [task for task in reading.tasks if task.task_id not in known]
    window_start = (
        min(attempt.started_at for one in cases for attempt in one.case.attempts)
        + reading.skew.lowest
        - timedelta(seconds=2)
    )
    # Only what may be of these attempts is worth a GET for its seed.
    seedless = [
        task
        for task in unknown
        if task.seed in (None, -1) and (task.created_at is None or task.created_at >= window_start)
    ]
    looked_at = {task.task_id: task for task in with_seeds(rt, seedless, on_task=keep)}
    unknown = [looked_at.get(task.task_id, task) for task in unknown]
    verdicts: dict[uuid.UUID, Verdict] = {}
    for one in cases:
        verdict = resolution.judge(one.case, unknown, reading.skew)
        verdicts[one.case.generation_id] = resolution.heeded(verdict, complete=reading.complete)
    return verdicts


def _decide(rt: Runtime, one: InDoubt, verdict: Verdict) -> Outcome:
    """Carry a verdict out, judging "unknown" again in the deciding transaction."""
    generation_id = one.case.generation_id
    with rt.engine.begin() as conn:
        if isinstance(verdict, Adopt):
            taken = watch.followed(conn, [verdict.task.task_id])
            verdict = resolution.still(verdict, followed=taken)
        match verdict:
            case Adopt(task=task, attempt=attempt, others=others):
                adopted = watch.adopt_marked(
                    conn,
                    generation_id,
                    attempt,
                    task,
                    by="resolve",
                    into=IN_DOUBT,
                )
                if not adopted:
                    return Outcome.LOST
                for other, number in others:
                    watch.flag_second(conn, generation_id, number, other)
                log.info(
                    "generation %s adopts remote task %s",
                    generation_id,
                    task.task_id,
                    extra={"remote_task": task.task_id},
                )
                return Outcome.ADOPTED
            case Absent() if callbacks.surely_sent(conn, generation_id):
                _need_decision(conn, one, callbacks.WHY)
                return Outcome.UNDECIDED
            case Absent():
                moved = transitions.absent(
                    conn,
                    generation_id,
                    one.latest,
                    max_attempts=rt.settings.max_attempts,
                    retry_for=rt.settings.retry_for,
                    detail={"readings": 2},
                )
                if moved is None:
                    return Outcome.LOST
                schedule.wake(conn)
                log.info(
                    "generation %s: no remote task exists, now %s", generation_id, moved.status
                )
                return Outcome.ABSENT
            case Undecided(why, task_ids):
                _wait(conn, one, why, task_ids)
                return Outcome.UNDECIDED


def _need_decision(conn: Connection, one: InDoubt, why: str) -> None:
    """It can't be otherwise by waiting; it is read on, slowly, as its task may still show."""
    log.warning("generation %s can't be resolved: %s", one.case.generation_id, why)
    transitions.need_attention(conn, one.case.generation_id, why)
    transitions.reschedule(
        conn, one.case.generation_id, one.lease, seconds=SLOW, failures=one.failures + 1
    )


def _wait(conn: Connection, one: InDoubt, why: str, task_ids: Sequence[str]) -> None:
    failures = one.failures + 1
    shown = f"{why} ({', '.join(task_ids)})" if task_ids else why
    log.warning("generation %s can't be resolved yet: %s", one.case.generation_id, shown)
    seconds = schedule.backoff(one.failures, base=RETRY_BASE, cap=RETRY_CAP)
    if failures >= ATTENTION_AFTER:
        seconds = SLOW
    mine = transitions.reschedule(
        conn, one.case.generation_id, one.lease, seconds=seconds, failures=failures
    )
    # A row that has moved on meanwhile needs nobody.
    if mine and failures >= ATTENTION_AFTER:
        transitions.need_attention(
            conn, one.case.generation_id, f"{shown}; decide with `seedance resolve`"
        )
