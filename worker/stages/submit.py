"""Submit: an intent, then one POST, then its outcome (protocol.md, "Intent" to "Answers")."""

import logging
import uuid

from sqlalchemy import Connection
from sqlalchemy.exc import IntegrityError, SQLAlchemyError
from structlog.contextvars import bind_contextvars

from api_client import ApiError, Disposition, GenerationRequest, NotSent, Submitted
from models import callbacks, decisions, gates, schedule, submission, transitions, watch
from models.callbacks import Address
from models.lifecycle import TOO_MANY, Status
from models.submission import Held, Intent
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


def run(rt: Runtime, generation_id: uuid.UUID, lease: int) -> None:
    """Submit a generation that is `uploading` with all its references in place."""
    row = common.begin(rt.engine, generation_id, lease)
    if row is not None and row.status == Status.UPLOADING:
        submit(rt, row)


def submit(rt: Runtime, row: common.Row) -> None:
    """Submit a generation that this process has begun to work on."""
    generation_id, lease = row.id, row.lease
    # The token comes before the intent: nothing that can block may stand after it.
    try:
        rt.limiter.wait("submit", timeout=min(5.0, rt.settings.lease / 4))
    except NoTokenError:
        with rt.engine.begin() as conn:
            transitions.put_back(
                conn, generation_id, lease, waits_for="the request rate", seconds=1.0
            )
        return

    rt.usual.exchange(rt.engine)
    reached("submit.before_intent")
    started = waking_clock()
    secret = callback_address.draw(rt.settings, row.request)
    intent = _intend(rt, generation_id, lease, secret)
    if intent is None:
        return
    bind_contextvars(attempt=intent.attempt)
    reached("submit.after_intent")
    content = row.content if row.content is not None else row.request["content"]
    body = {**row.request, "content": content, "seed": intent.seed}
    if secret is not None:
        to = Address(generation_id, intent.attempt, secret)
        body["callback_url"] = callback_address.url(rt.settings, to)
    request = GenerationRequest.model_validate(body)
    _post(rt, intent, request, started)
    reached("submit.after_result")


def _intend(rt: Runtime, generation_id: uuid.UUID, lease: int, secret: str | None) -> Intent | None:
    """The committed intent, or None if there is none. A COMMIT that fails raises: no POST."""

    def begin() -> Intent | Held:
        digest = None if secret is None else callbacks.digest(secret)
        with rt.engine.begin() as conn:
            return submission.begin(
                conn, generation_id, lease, rt.settings.timing, callback_digest=digest
            )

    try:
        result = begin()
    except IntegrityError:
        # An equal generation took the fingerprint (or by chance the seed) in the same moment:
        # the second look finds it, and waits for it.
        result = begin()
    if isinstance(result, Held):
        log.info("generation %s is not submitted: %s", generation_id, result.why)
        return None
    return result


def _post(rt: Runtime, intent: Intent, request: GenerationRequest, started: float) -> None:
    def check() -> None:
        """Runs on an open connection, directly before the first byte."""
        try:
            with rt.engine.connect() as conn:
                obstacle = submission.may_still_send(conn, intent)
        except SQLAlchemyError as error:
            raise TooLateError(f"it can't be checked: {type(error).__name__}") from error
        if obstacle is not None:
            raise TooLateError(obstacle)
        age = waking_clock() - started
        if decisions.too_old(age, send_budget=rt.settings.send_budget):
            raise TooLateError(f"the intent is {age:.1f} s old")
        reached("submit.after_check")

    try:
        answer = rt.client.submit(request, before_send=check, retry=False, throttled=True)
    except TooLateError as late:
        log.warning("generation %s is not sent: %s", intent.generation_id, late)
        _not_sent(rt, intent, str(late), seconds=1.0)
    except NotSent as error:
        log.warning("generation %s is not sent: %s", intent.generation_id, error)
        waits_for = common.hold(rt, error)
        _not_sent(rt, intent, waits_for, seconds=2.0)
    except ApiError as error:
        reached("submit.after_post")
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
        record_answer(rt, intent, answer)


def _not_sent(rt: Runtime, intent: Intent, why: str, *, seconds: float) -> None:
    common.surely(
        rt.engine,
        lambda conn: transitions.not_sent(
            conn, intent.generation_id, intent.attempt, why=why, seconds=seconds
        ),
        within=rt.settings.lease,
    )


def record_answer(rt: Runtime, intent: Intent, answer: Submitted) -> None:
    """The answer named the task: follow it, or flag it where another is followed already."""
    bind_contextvars(remote_task=answer.task_id)

    def write(conn: Connection) -> None:
        moved = transitions.submitted(
            conn,
            intent.generation_id,
            intent.attempt,
            remote_task_id=answer.task_id,
            remote_status=answer.status,
            credit_cost=answer.credit_cost,
            poll_seconds=rt.usual.first_look(
                intent.kind,
                otherwise=schedule.poll_delay(
                    0, shortest=rt.settings.poll_min, longest=rt.settings.poll_max
                ),
            ),
        )
        if rt.settings.public_url:
            callbacks.catch_up(conn, intent.generation_id, intent.attempt)
        if moved is None and not _known(conn, answer.task_id):
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

    common.surely(rt.engine, write, within=rt.settings.lease)


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
            waits_for = common.hold(rt, error, estimate=intent.estimate)

            def write(conn: Connection) -> None:
                transitions.declined(
                    conn,
                    intent.generation_id,
                    intent.attempt,
                    code=error.code,
                    waits_for=waits_for,
                    seconds=1.0,
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
    callbacks.catch_up(conn, intent.generation_id, intent.attempt)
