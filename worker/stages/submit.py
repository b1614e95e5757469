"""Submit: an intent, then one POST, then its outcome (protocol.md, "Intent" to "Answers")."""

import logging
import math
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError, IntegrityError, SQLAlchemyError
from structlog.contextvars import bind_contextvars, unbind_contextvars

from api_client import ApiError, Disposition, GenerationRequest, NotSent, Submitted
from models import callbacks, decisions, gates, schedule, submission, transitions, watch
from models.callbacks import Address
from models.lifecycle import TOO_MANY, Status
from models.submission import Held, Intent, Wanted
from models.transitions import Answered
from models.wait_reasons import REQUEST_RATE, Wait, WaitReason, retry
from worker import callback_address
from worker.crash_points import reached
from worker.limiter import NoTokenError
from worker.runtime import Runtime, waking_clock
from worker.stages import common

log = logging.getLogger(__name__)


TROUBLE_SECONDS = 60.0
TROUBLE_DOUBTS = 3
"""So many lost answers in so many seconds, and a 5xx closes the backoff gate."""


class TooLateError(Exception):
    """Raised just before the write: the POST must not be sent any more. Nothing was written."""

    def __init__(self, wait: Wait) -> None:
        """`wait`: what the generation waits for then."""
        why = (wait.detail or {}).get("why") if wait.reason is WaitReason.RETRY else None
        super().__init__(why or str(wait))
        self.wait = wait


def run(rt: Runtime, claims: Sequence[tuple[uuid.UUID, int]]) -> None:
    """Submit generations that are `uploading` with all their references in place.

    `claims`: id and lease of each. One after another, as this is one thread; what is written about
    them before and after the POSTs is written together where POSTs are quick.
    """
    with rt.pace.turn():
        rows = common.begin_many(rt.engine, claims, skip_locked=len(claims) > 1)
        submit(rt, [row for row in rows if row.status == Status.UPLOADING])
        begun = {row.id for row in rows}
        left = [claim for claim in claims if claim[0] not in begun]
        # A producer's open transaction on one must not hold up the others: it is waited for last.
        if left and len(claims) > 1:
            rows = common.begin_many(rt.engine, left)
            submit(rt, [row for row in rows if row.status == Status.UPLOADING])


def submit(rt: Runtime, rows: Sequence[common.Row]) -> None:
    """Submit generations that this process has begun to work on."""
    until = time.monotonic() + min(5.0, rt.settings.lease / 4)
    left = list(rows)
    while left:
        # The tokens come before the intents: nothing that can block may stand after those.
        try:
            rt.limiter.wait("submit", timeout=max(0.0, until - time.monotonic()))
        except NoTokenError:
            for row in left:
                with rt.engine.begin() as conn:
                    transitions.put_back(conn, row.id, row.lease, wait=REQUEST_RATE, seconds=1.0)
            return
        count = 1 + rt.limiter.more(min(rt.pace.most, len(left)) - 1)
        _submit(rt, left[:count])
        del left[:count]


def _submit(rt: Runtime, rows: Sequence[common.Row]) -> None:
    rt.usual.exchange(rt.engine)
    requests = {row.id: _request(row) for row in rows}
    reached("submit.before_intent")
    started = waking_clock()
    secrets = {row.id: callback_address.draw(rt.settings, row.request) for row in rows}
    intents = _intend(rt, rows, secrets)
    if not intents:
        return
    reached("submit.after_intent")
    sending = _Sending(rt, intents, started)
    try:
        for intent in intents:
            unbind_contextvars("remote_task")
            bind_contextvars(generation=str(intent.generation_id), attempt=intent.attempt)
            its: dict[str, Any] = {"seed": intent.seed}
            secret = secrets[intent.generation_id]
            if secret is not None:
                to = Address(intent.generation_id, intent.attempt, secret)
                its["callback_url"] = callback_address.url(rt.settings, to)
            sending.post(intent, requests[intent.generation_id].model_copy(update=its))
    except Exception:
        sending.give_up()
        raise
    sending.end()
    reached("submit.after_result")


def _request(row: common.Row) -> GenerationRequest:
    content = row.content if row.content is not None else row.request["content"]
    return GenerationRequest.model_validate({**row.request, "content": content})


def _intend(
    rt: Runtime, rows: Sequence[common.Row], secrets: Mapping[uuid.UUID, str | None]
) -> list[Intent]:
    """The committed intents, in order. A COMMIT that fails raises: no POST."""
    wanted = [
        Wanted(row.id, row.lease, None if secret is None else callbacks.digest(secret))
        for row in rows
        for secret in [secrets[row.id]]
    ]

    def begin(one: Wanted) -> Intent | Held:
        with rt.engine.begin() as conn:
            return submission.begin(conn, one, rt.settings.timing)

    try:
        with rt.engine.begin() as conn:
            free = submission.begin_free(conn, wanted, rt.settings.timing)
        intents = {intent.generation_id: intent for intent in free}
    except IntegrityError:
        intents = {}  # one of the seeds was drawn elsewhere in the same moment
    for one in wanted:
        if one.generation_id in intents:
            continue
        try:
            result = _twice(begin, one)
        except SQLAlchemyError as error:
            if not intents:
                raise
            # What is committed is sent now, or certainly not: nobody else would know which.
            log.warning(
                "generation %s is not submitted: %s", one.generation_id, type(error).__name__
            )
            break
        if isinstance(result, Held):
            log.info("generation %s is not submitted: %s", one.generation_id, result.why)
        else:
            intents[one.generation_id] = result
    return [intents[row.id] for row in rows if row.id in intents]


def _twice(begin: Callable[[Wanted], Intent | Held], one: Wanted) -> Intent | Held:
    try:
        return begin(one)
    except IntegrityError:
        # An equal generation took the fingerprint (or by chance the seed) in the same moment: the
        # second look finds it, and waits for it.
        return begin(one)


CHECK_HOLDS = 0.05
"""Seconds for which what was read just before one POST holds for the next ones."""

RECORD_WITHIN = 0.05
"""Seconds after which an answer no longer waits for the next one, to be recorded with it."""


class _Sending:
    """The POSTs of intents that were committed together."""

    def __init__(self, rt: Runtime, intents: Sequence[Intent], started: float) -> None:
        """`started`: when `waking_clock` was read, before the intents' transaction."""
        self._rt = rt
        self._unsent = list(intents)
        """Those that nothing was begun of."""
        self._started = started
        self._obstacles: Mapping[uuid.UUID, Wait] = {}
        self._checked = -math.inf
        self._answered: list[tuple[Intent, Submitted]] = []
        self._oldest = math.inf
        self._begun = math.nan
        """When the last POST began."""

    def post(self, intent: Intent, request: GenerationRequest) -> None:
        """Send it, once, and see to what comes back. `intent` is the next one."""
        rt = self._rt
        self._unsent.remove(intent)
        try:
            answer = rt.client.submit(
                request, before_send=partial(self._check, intent), retry=False, throttled=True
            )
        except TooLateError as late:
            log.warning("generation %s is not sent: %s", intent.generation_id, late)
            _not_sent(rt, intent, late.wait, seconds=1.0)
        except NotSent as error:
            log.warning("generation %s is not sent: %s", intent.generation_id, error)
            self._look_again()
            wait = common.hold(rt, error)
            _not_sent(rt, intent, wait, seconds=2.0)
        except ApiError as error:
            reached("submit.after_post")
            self._look_again()
            _refused(rt, intent, error)
        except Exception as error:
            why = f"{type(error).__name__} in the worker"
            # Whatever it was, the POST may have been written.
            common.surely(
                rt.engine,
                lambda conn: _doubt(conn, intent, why, None),
                within=rt.settings.lease,
            )
            raise
        else:
            reached("submit.after_post")
            now = time.monotonic()
            rt.pace.took(now - self._begun)
            # Before it is stored: should the database be lost, this line tells whose the task is.
            log.info(
                "generation %s: attempt %d made remote task %s",
                intent.generation_id,
                intent.attempt,
                answer.task_id,
                extra={"generation": str(intent.generation_id), "remote_task": answer.task_id},
            )
            self._answered.append((intent, answer))
            self._oldest = min(self._oldest, now)
            if now - self._oldest > RECORD_WITHIN:
                self._record()

    def end(self) -> None:
        """Record what is left to record."""
        self._record()

    def give_up(self) -> None:
        """Record what is left to record; what was not begun is certainly not sent."""
        try:
            self._record()
        finally:
            for intent in self._unsent:
                _not_sent(self._rt, intent, retry("the worker failed at another one"), seconds=1.0)

    def _check(self, intent: Intent) -> None:
        """Runs on an open connection, directly before the first byte."""
        settings = self._rt.settings
        now = waking_clock()
        if now - self._checked > CHECK_HOLDS:
            try:
                with self._rt.engine.connect() as conn:
                    self._obstacles = submission.may_still_send(conn, [intent, *self._unsent])
            except SQLAlchemyError as error:
                why = f"it can't be checked: {type(error).__name__}"
                raise TooLateError(retry(why)) from error
            self._checked = now
        obstacle = self._obstacles.get(intent.generation_id)
        if obstacle is not None:
            raise TooLateError(obstacle)
        age = waking_clock() - self._started
        if decisions.too_old(age, send_budget=settings.send_budget):
            raise TooLateError(retry(f"the intent is {age:.1f} s old"))
        reached("submit.after_check")
        self._begun = time.monotonic()

    def _look_again(self) -> None:
        """What was read holds no longer: a gate may be closed by what just came back."""
        self._checked = -math.inf

    def _record(self) -> None:
        answered, self._answered, self._oldest = self._answered, [], math.inf
        if answered:
            record_answers(self._rt, answered)


def _not_sent(rt: Runtime, intent: Intent, wait: Wait, *, seconds: float) -> None:
    common.surely(
        rt.engine,
        lambda conn: transitions.not_sent(
            conn, intent.generation_id, intent.attempt, wait=wait, seconds=seconds
        ),
        within=rt.settings.lease,
    )


def record_answers(rt: Runtime, answered: Sequence[tuple[Intent, Submitted]]) -> None:
    """The answers named the tasks: follow each, or flag it where another is followed already."""

    def write(conn: Connection) -> None:
        _write_answers(rt, conn, answered)

    try:
        common.surely(rt.engine, write, within=rt.settings.lease)
    except DBAPIError as error:
        # One that the tables refuse must not take the others with it.
        if len(answered) == 1 or not common.refused_as_data(error):
            raise
        with ExitStack() as each:
            for one in reversed(answered):  # the last that is put on goes first
                each.callback(record_answers, rt, [one])


def _write_answers(
    rt: Runtime, conn: Connection, answered: Sequence[tuple[Intent, Submitted]]
) -> None:
    settings = rt.settings
    moved = transitions.submitted(
        conn,
        [
            Answered(
                intent.generation_id,
                intent.attempt,
                remote_task_id=answer.task_id,
                remote_status=answer.status,
                credit_cost=answer.credit_cost,
                look_in=rt.usual.first_look(
                    intent.kind,
                    otherwise=schedule.poll_delay(
                        0, shortest=settings.poll_min, longest=settings.poll_max
                    ),
                ),
            )
            for intent, answer in answered
        ],
    )
    if settings.public_url:
        callbacks.catch_up(conn, [(one.generation_id, one.attempt) for one, _ in answered])
    followed = {one.id for one in moved}
    for intent, answer in answered:
        if intent.generation_id not in followed and not _known(conn, answer.task_id):
            log.error(
                "generation %s has a second remote task, %s, of attempt %d",
                intent.generation_id,
                answer.task_id,
                intent.attempt,
            )
            submission.flag_second_task(
                conn,
                intent.generation_id,
                intent.attempt,
                task_id=answer.task_id,
                status=answer.status,
                credit_cost=answer.credit_cost,
                seed=intent.seed,
            )


def _known(conn: Connection, task_id: str) -> bool:
    return bool(watch.followed(conn, [task_id]))


def _refused(rt: Runtime, intent: Intent, error: ApiError) -> None:
    if error.code == TOO_MANY:
        with rt.engine.begin() as conn:
            limit = schedule.learn_lower(conn, intent.generation_id, intent.attempt)
        log.info("the provider has too many tasks: at most %d in flight for now", limit)
    # A refusal that names a task is none: the task may exist.
    match Disposition.AMBIGUOUS if error.task_id else error.disposition:
        case Disposition.PERMANENT:
            log.info("generation %s is refused: %s", intent.generation_id, error.code)

            def write(conn: Connection) -> None:
                transitions.refused(
                    conn,
                    intent.generation_id,
                    intent.attempt,
                    code=error.code or f"HTTP_{error.http_status}",
                    message=callback_address.hidden(error.message),
                )

        case Disposition.RETRY | Disposition.HOLD:
            wait = common.hold(rt, error, estimate=intent.estimate)
            put_off = error.disposition is Disposition.RETRY

            def write(conn: Connection) -> None:
                transitions.declined(
                    conn,
                    intent.generation_id,
                    intent.attempt,
                    code=error.code,
                    wait=wait,
                    seconds=gates.aside(conn, intent.generation_id) if put_off else 1.0,
                )

        case Disposition.AMBIGUOUS:
            if (error.http_status or 0) >= 500 and _in_trouble(rt):
                common.hold(rt, error)
            log.warning(
                "generation %s, attempt %d: outcome unknown (%s); the task list will show",
                intent.generation_id,
                intent.attempt,
                error,
            )

            why = callback_address.hidden(str(error))[:300]

            def write(conn: Connection) -> None:
                _doubt(conn, intent, why, error.code or None)

    common.surely(rt.engine, write, within=rt.settings.lease)


def _in_trouble(rt: Runtime) -> bool:
    """Whether answers fail again and again: then nothing more is sent into doubt for a while.

    While the provider is being tried after such a while, one is enough.
    """
    with rt.engine.connect() as conn:
        if gates.reopening(conn) is not None:
            return True
        return submission.lately_in_doubt(conn, seconds=TROUBLE_SECONDS) >= TROUBLE_DOUBTS


def _doubt(conn: Connection, intent: Intent, why: str, code: str | None) -> None:
    # due_at is settle_at already, from the intent; a callback tells sooner.
    transitions.doubt(conn, intent.generation_id, intent.attempt, why=why, code=code)
    callbacks.catch_up(conn, [(intent.generation_id, intent.attempt)])
