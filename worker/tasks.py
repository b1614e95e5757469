"""The Celery tasks: each loads nothing, decides nothing, and calls its stage."""

import logging
import random
import time
import uuid
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from celery.exceptions import Reject
from kombu import Exchange, Queue
from sqlalchemy.exc import InterfaceError, OperationalError, ProgrammingError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from worker import broker_access, rejects, side_work
from worker.app import app
from worker.runtime import runtime
from worker.side_work import SideClaim
from worker.stages import accept, archive, deliver, observe, poll, resolve, submit, upload
from worker.upkeep import balance, catch_up, prune, reconcile

if TYPE_CHECKING:
    from collections.abc import Mapping

    from celery import Task


log = logging.getLogger(__name__)

MOST_RETURNS = 10
"""A message that came back to RabbitMQ so often is replaced: after 20 times it would drop it."""


# Until its row is committed the message is all there is of a request: acknowledged afterwards,
# and given back while the database is away.
@app.task(name="seedance.generate", bind=True, acks_late=True, reject_on_worker_lost=True)
def generate(self: "Task[..., None]", *args: Any, **kwargs: Any) -> None:
    """Accept a request; the message's task id becomes the generation's id."""
    try:
        accept.run(runtime(), str(self.request.id), args, kwargs)
    except (OperationalError, InterfaceError, ProgrammingError, PoolTimeout) as error:
        # The database is away, or not migrated yet.
        time.sleep(random.uniform(0.5, 1.5))  # noqa: S311  (not all at once)
        if int(self.request.get("x-delivery-count") or 0) >= MOST_RETURNS:
            _send_anew(self.request, args, kwargs)
            return
        raise Reject(error, requeue=True) from error
    except Exception as error:
        # Whatever it is, it would go wrong again: kept, not lost.
        rejects.keep(
            f"generation {self.request.id} can't be accepted: {type(error).__name__}", repr(kwargs)
        )
        raise


def _send_anew(request: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """The same request in a new message; sent twice it still makes one generation."""
    log.warning("the request came back %d times: it is sent anew", MOST_RETURNS)
    link = request.get("traceparent")
    headers = {"traceparent": link} if link else {}
    _generate: Any = generate
    _generate.apply_async(args, kwargs, task_id=request.id, headers=headers)


@app.task(name="seedance.upload")
def upload_references(generation_id: str, lease: int) -> None:
    """Upload a generation's references, then submit it."""
    upload.run(runtime(), uuid.UUID(generation_id), lease)


@app.task(name="seedance.submit")
def submit_generations(claims: list[tuple[str, int]]) -> None:
    """Submit generations, one after the other."""
    submit.run(runtime(), [(uuid.UUID(generation_id), lease) for generation_id, lease in claims])


@app.task(name="seedance.poll")
def poll_task(generation_id: str, lease: int) -> None:
    """Look at a generation's remote task."""
    poll.run(runtime(), uuid.UUID(generation_id), lease)


@app.task(name="seedance.observe")
def observe_all(lease: int) -> None:
    """Look at everything that runs, by the task list."""
    observe.run(runtime(), lease)


@app.task(name="seedance.resolve")
def resolve_in_doubt(claims: list[tuple[str, int]]) -> None:
    """Find out what became of POSTs whose answers were lost."""
    resolve.run(runtime(), [(uuid.UUID(generation_id), lease) for generation_id, lease in claims])


@app.task(name="seedance.deliver")
def deliver_notice(notice_id: str, lease: int) -> None:
    """Deliver a notice to its producer."""
    side_work.run(runtime(), _DELIVERING, SideClaim(notice_id, lease))


def _send_task(name: str, queue: str, task_id: str, kwargs: "Mapping[str, Any]") -> None:
    # What its own worker's events show of it: the notice holds a signed URL.
    told = f"notice={task_id}"
    options: dict[str, Any] = {"argsrepr": "", "kwargsrepr": told}
    if broker_access.is_amqp(app):
        # Of which kind it is, its owner says; and what no queue takes would be gone unnoticed.
        with broker_access.channel(app) as (_, channel):
            channel.queue_declare(queue, passive=True)
        options["declare"] = []
    # By its name alone it would become one of the app's queues, which workers take from once
    # their connection was lost.
    theirs: Any = Queue(queue, Exchange(queue), queue)  # which its stubs don't know it takes
    app.send_task(name, kwargs=dict(kwargs), queue=theirs, task_id=task_id, **options)


_DELIVERING = replace(deliver.KIND, run=partial(deliver.run, send_task=_send_task))


@app.task(name="seedance.reconcile")
def reconcile_all() -> None:
    """Hold the provider's task list against our rows."""
    reconcile.by_the_clock(runtime())


@app.task(name="seedance.balance")
def record_balance() -> None:
    """Record the account's balance, which may close breakers."""
    balance.run(runtime())


@app.task(name="seedance.archive")
def archive_result(artifact: str, lease: int) -> None:
    """Store a video or a last frame."""
    side_work.run(runtime(), archive.KIND, SideClaim(artifact, lease))


@app.task(name="seedance.catch_up")
def catch_up_archive() -> None:
    """Ask for results that the archive has been passed by with."""
    catch_up.run(runtime())


@app.task(name="seedance.prune")
def prune_old() -> None:
    """Remove what nobody needs any more."""
    prune.run(runtime())
