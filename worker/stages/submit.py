"""Submit: an intent, then one POST, then its outcome (protocol.md, "Intent" to "Answers")."""

import logging
import time
import uuid
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.exc import IntegrityError, SQLAlchemyError
from structlog.contextvars import bind_contextvars, unbind_contextvars

from api_client import ApiError, Disposition, GenerationRequest, NotSent, Submitted
from models import callbacks, decisions, schedule, submission, transitions, watch
from models.callbacks import Address
from models.database import alone
from models.flow_control import evidence
from models.flow_control.rules import retry_delay
from models.lifecycle import TOO_MANY, Status
from models.submission import Held, Intent, Wanted
from models.transitions import Answered
from models.wait_reasons import REQUEST_RATE, Wait, WaitReason, retry
from worker import callback_address, flow
from worker.crash_points import reached
from worker.limiter import NoTokenError
from worker.runtime import Runtime, waking_clock
from worker.stages import common

log = logging.getLogger(__name__)

UNREACHABLE = "UNREACHABLE"
"""Code of an attempt whose POST could not be sent: no connection to the provider."""

SLOW_POST = 1.0
"""Seconds for one submit after which the others of its message are given back."""

MAX_TURN = 5.0
"""Seconds that a thread waits for its turn under the request rate."""

_LONE_REFUSALS = 2
_LONE_RATE_REFUSALS = 5
"""Refusals of one generation after which a busy answer with Retry-After, or RATE_LIMIT_EXCEEDED,
delays that generation alone."""


class TooLateError(Exception):
    """Raised just before the write: the POST must not be sent any more. Nothing was written."""

    def __init__(self, wait: Wait, seconds: float = 1.0) -> None:
        super().__init__(str(wait))
        self.wait = wait
        self.seconds = seconds


def run(rt: Runtime, claims: Sequence[tuple[uuid.UUID, int]]) -> None:
    """Submit generations that are `uploading` with all their references in place.

    `claims`: id and lease of each; one is submitted after the other. Where the provider is slow
    the rest is given back, for other threads.
    """
    rows = common.begin_many(rt, claims, skip_locked=len(claims) > 1)
    if len(rows) < len(claims) > 1:
        # Rows that a producer's open transaction holds: last, so that they don't block the others.
        begun = {row.id for row in rows}
        rows += common.begin_many(rt, [claim for claim in claims if claim[0] not in begun])
    left = [row for row in rows if row.status == Status.UPLOADING]
    while left:
        began = time.monotonic()
        try:
            submit(rt, left.pop(0))
        except Exception:
            _give_back(rt, left)
            raise
        if time.monotonic() - began > SLOW_POST:
            _give_back(rt, left)
            return


def _give_back(rt: Runtime, rows: Sequence[common.Row]) -> None:
    """Release the claims of generations that were not begun to be submitted."""
    if rows:
        with rt.engine.begin() as conn:
            schedule.release(conn, [(row.id, row.lease) for row in rows], seconds=0.0)


def submit(rt: Runtime, row: common.Row) -> None:
    """Submit a generation that this process has begun to work on."""
    try:
        # The turn comes before the intent: nothing that can block may stand after that.
        rt.limiter.wait("submit", timeout=min(MAX_TURN, rt.settings.lease / 4))
    except NoTokenError:
        seconds = max(1.0, rt.flow.now().resume_in)
        with rt.engine.begin() as conn:
            transitions.put_back(conn, row.id, row.lease, wait=REQUEST_RATE, seconds=seconds)
        return
    rt.usual.exchange(rt.engine)
    request = _request(row)
    secret = callback_address.draw(rt.settings, row.request)
    digest = None if secret is None else callbacks.digest(secret)
    reached("submit.before_intent")
    started = waking_clock()
    intent = _intend(rt, Wanted(row.id, row.lease, digest))
    if isinstance(intent, Held):
        log.info("generation %s is not submitted: %s", row.id, intent.why)
        return
    reached("submit.after_intent")
    unbind_contextvars("remote_task")
    bind_contextvars(generation=str(row.id), attempt=intent.attempt)
    its: dict[str, Any] = {"seed": intent.seed}
    if secret is not None:
        to = Address(row.id, intent.attempt, secret)
        its["callback_url"] = callback_address.url(rt.settings, to)
    _Post(rt, intent, started).send(request.model_copy(update=its))
    reached("submit.after_result")


def _request(row: common.Row) -> GenerationRequest:
    content = row.content if row.content is not None else row.request["content"]
    return GenerationRequest.model_validate({**row.request, "content": content})


def _intend(rt: Runtime, wanted: Wanted) -> Intent | Held:
    """Return the committed intent. A COMMIT that fails raises: no POST."""

    def begin() -> Intent | Held:
        with rt.engine.begin() as conn:
            return submission.begin(conn, wanted, rt.settings.timing)

    try:
        return begin()
    except IntegrityError:
        # An equal generation took the fingerprint (or by chance the seed) in the same moment: the
        # second try finds it, and waits for it.
        return begin()


class _Post:
    """The one POST of an intent, and what becomes of it."""

    def __init__(self, rt: Runtime, intent: Intent, started: float) -> None:
        """`started`: when `waking_clock` was read, before the intent's transaction."""
        self._rt = rt
        self._intent = intent
        self._started = started
        self._outage = intent.probe

    def send(self, request: GenerationRequest) -> None:
        """Send it, once, and record the outcome."""
        intent = self._intent
        try:
            answer = self._rt.client.submit(
                request, before_send=self._check, retry=False, throttled=True
            )
        except TooLateError as late:
            log.warning("generation %s is not sent: %s", intent.generation_id, late)
            self._record(partial(self._not_sent, late=late))
        except NotSent as error:
            log.warning("generation %s is not sent: %s", intent.generation_id, error)
            self._record(partial(self._unreachable, reason=str(error)))
        except ApiError as error:
            reached("submit.after_post")
            self._refused(error)
        except Exception as error:
            why = f"{type(error).__name__} in the worker"
            # Whatever it was, the POST may have been written.
            self._record(lambda conn: self._uncertain(conn, why))
            raise
        else:
            reached("submit.after_post")
            # Before it is stored: should the database be lost, this line names the task.
            log.info(
                "generation %s: attempt %d made remote task %s",
                intent.generation_id,
                intent.attempt,
                answer.task_id,
                extra={"generation": str(intent.generation_id), "remote_task": answer.task_id},
            )
            self._record(lambda conn: self._submitted(conn, answer))

    def _check(self) -> None:
        """Runs on an open connection, directly before the first byte."""
        try:
            with alone(self._rt.engine) as conn:
                found = submission.before_sending(conn, self._intent)
        except SQLAlchemyError as error:
            why = f"it can't be checked: {type(error).__name__}"
            raise TooLateError(retry(why)) from error
        self._outage = found.flow.outage_age is not None
        self._rt.flow.update(found.flow)
        if found.obstacle is not None:
            raise TooLateError(found.obstacle, max(1.0, found.flow.resume_in))
        age = waking_clock() - self._started
        if decisions.too_old(age, send_budget=self._rt.settings.send_budget):
            raise TooLateError(retry(f"the intent is {age:.1f} s old"))
        reached("submit.after_check")

    def _record(self, write: Callable[[Connection], object]) -> None:
        common.surely(self._rt.engine, write, within=self._rt.settings.lease)

    def _submitted(self, conn: Connection, answer: Submitted) -> None:
        """Follow the task that the answer names, or flag it where another is followed already."""
        rt, intent = self._rt, self._intent
        otherwise = schedule.poll_delay(
            0, shortest=rt.settings.poll_min, longest=rt.settings.poll_max
        )
        moved = transitions.submitted(
            conn,
            Answered(
                intent.generation_id,
                intent.attempt,
                remote_task_id=answer.task_id,
                remote_status=answer.status,
                credit_cost=answer.credit_cost,
                look_in=rt.usual.first_look(intent.kind, otherwise=otherwise),
            ),
        )
        if rt.settings.public_url:
            callbacks.catch_up(conn, [(intent.generation_id, intent.attempt)])
        if moved is None and not watch.followed(conn, [answer.task_id]):
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
        self._answered(conn)

    def _answered(self, conn: Connection) -> None:
        """Record that the provider answers: an outage is over."""
        if self._outage and evidence.recovered(conn):
            schedule.wake(conn)
            log.warning("the outage of the provider is over; submission is ramped up")

    def _failed(self, conn: Connection, reason: str) -> None:
        """Record a failure of the provider, once the attempt is closed."""
        if evidence.failed(conn, reason=reason):
            log.warning("the provider fails every submit (%s): one probe at a time", reason)

    def _not_sent(self, conn: Connection, late: TooLateError) -> None:
        intent = self._intent
        transitions.not_sent(
            conn, intent.generation_id, intent.attempt, wait=late.wait, seconds=late.seconds
        )

    def _unreachable(self, conn: Connection, reason: str) -> None:
        intent = self._intent
        refusals = submission.refusals(conn, intent.generation_id)
        transitions.not_sent(
            conn,
            intent.generation_id,
            intent.attempt,
            wait=Wait(WaitReason.RETRY, {"code": UNREACHABLE}),
            seconds=retry_delay(refusals.count + 1),
            code=UNREACHABLE,
        )
        self._failed(conn, reason[:200])

    def _uncertain(
        self,
        conn: Connection,
        why: str,
        *,
        code: str | None = None,
        provider_ok: bool | None = None,
    ) -> None:
        intent = self._intent
        transitions.doubt(
            conn,
            intent.generation_id,
            intent.attempt,
            why=why,
            code=code,
            search_in=decisions.EARLY_SCAN,
            provider_ok=provider_ok,
        )
        callbacks.catch_up(conn, [(intent.generation_id, intent.attempt)])

    def _refused(self, error: ApiError) -> None:
        # A refusal with a task id is ambiguous: the task may exist.
        match Disposition.AMBIGUOUS if error.task_id else error.disposition:
            case Disposition.PERMANENT:
                log.info("generation %s is refused: %s", self._intent.generation_id, error.code)
                self._record(lambda conn: self._refused_for_good(conn, error))
            case Disposition.RETRY:
                self._record(lambda conn: self._declined(conn, error))
                self._throttle(error)
            case Disposition.HOLD:
                self._hold(error)
            case Disposition.AMBIGUOUS:
                log.warning(
                    "generation %s, attempt %d: outcome unknown (%s); the task list will show",
                    self._intent.generation_id,
                    self._intent.attempt,
                    error,
                )
                self._record(lambda conn: self._ambiguous(conn, error))
                self._throttle(error)

    def _throttle(self, error: ApiError) -> None:
        """Slow the fleet down where the provider asks for that."""
        rt = self._rt
        if error.code == TOO_MANY or not flow.is_throttling(error):
            return
        with rt.engine.connect() as conn:
            refusals = submission.refusals(conn, self._intent.generation_id)
        if refusals.count > (_LONE_RATE_REFUSALS if flow.is_rate_limit(error) else _LONE_REFUSALS):
            return  # it is refused again and again: others must not wait for it
        flow.throttled(rt.engine, rt.flow, error, measured=rt.limiter.measured())

    def _refused_for_good(self, conn: Connection, error: ApiError) -> None:
        intent = self._intent
        transitions.refused(
            conn,
            intent.generation_id,
            intent.attempt,
            code=error.code or f"HTTP_{error.http_status}",
            message=callback_address.hidden(error.message),
        )
        self._answered(conn)

    def _declined(self, conn: Connection, error: ApiError) -> None:
        """Put it back for its own retry delay; fail it once it was refused for too long."""
        rt, intent = self._rt, self._intent
        refusals = submission.refusals(conn, intent.generation_id)
        throttled = error.code == "RATE_LIMIT_EXCEEDED"
        if refusals.since is not None and refusals.since > rt.settings.retry_for:
            transitions.refused(
                conn,
                intent.generation_id,
                intent.attempt,
                code=error.code,
                message=f"refused {refusals.count + 1} times in {refusals.since:.0f} s"
                f" (SEEDANCE_RETRY_FOR is {rt.settings.retry_for:g} s), at last with:"
                f" {callback_address.hidden(error.message)}",
                provider_ok=False,
            )
        else:
            transitions.declined(
                conn,
                intent.generation_id,
                intent.attempt,
                code=error.code,
                wait=Wait(WaitReason.RETRY, {"code": error.code}),
                seconds=max(retry_delay(refusals.count + 1), error.retry_after or 0.0),
                provider_ok=None if throttled else False,
            )
        if throttled:
            self._answered(conn)
        else:
            self._failed(conn, error.code)

    def _hold(self, error: ApiError) -> None:
        rt, intent = self._rt, self._intent
        wait = None
        try:
            wait = flow.trip(
                rt.engine, error, probe_every=rt.settings.probe_every, estimate=intent.estimate
            )
        except SQLAlchemyError as failure:
            # The next refusal opens the breaker; this answer must not be lost for it.
            log.warning("the breaker can't be opened: %s", type(failure).__name__)
        self._record(
            lambda conn: transitions.declined(
                conn,
                intent.generation_id,
                intent.attempt,
                code=error.code,
                wait=wait or Wait(WaitReason.RETRY, {"code": error.code}),
                seconds=1.0,
            )
        )

    def _ambiguous(self, conn: Connection, error: ApiError) -> None:
        intent = self._intent
        why = callback_address.hidden(str(error))[:300]
        unwell = error.code != TOO_MANY and error.http_status != 429
        self._uncertain(conn, why, code=error.code or None, provider_ok=False if unwell else None)
        if error.code == TOO_MANY:
            limit = evidence.concurrency_refused(conn, intent.generation_id, intent.attempt)
            log.info("the provider has too many tasks: at most %d at work from now on", limit)
            self._answered(conn)
        if unwell:
            self._failed(conn, error.code or str(error)[:200])
