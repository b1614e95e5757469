"""Runs the dispatcher in every Celery worker, as a step of its start and stop."""

import contextlib
import logging
import threading
from collections.abc import Sequence
from functools import partial
from typing import Any

from celery import bootsteps
from kombu.exceptions import OperationalError

from models.schedule import Claim, Stage
from worker import heartbeat, task_forms
from worker.celeryconfig import SIDE_QUEUE, STAGE_QUEUE
from worker.dispatcher import Broker, Dispatcher
from worker.heartbeat import Heartbeat
from worker.runtime import for_dispatcher
from worker.settings import Settings, load_settings
from worker.side_kinds import KINDS
from worker.side_work import SideClaim, SideWork

log = logging.getLogger(__name__)


class DispatcherStep(bootsteps.StartStopStep):
    """Starts after the pool, so that a forked child never inherits its connections."""

    requires = ("celery.worker.components:Pool",)

    def __init__(self, worker: Any, **kwargs: Any) -> None:
        super().__init__(worker, **kwargs)
        self._dispatcher: Dispatcher | None = None
        self._thread: threading.Thread | None = None
        self._heartbeat: Heartbeat | None = None

    def start(self, worker: Any) -> None:
        """Begin to dispatch."""
        settings = load_settings()
        rt = for_dispatcher(settings)
        if not rt.limiter.shared:
            log.warning(
                "this worker keeps the request rate by itself: with several set"
                " SEEDANCE_RATE_LIMIT_URL (a Valkey or Redis), or divide SEEDANCE_RATE_LIMIT"
            )
        self._heartbeat = _heartbeat(settings, worker.concurrency)
        beat = self._heartbeat.beat if self._heartbeat is not None else lambda: None
        self._dispatcher = Dispatcher(
            rt, _broker(worker.app), slots=worker.concurrency, side_work=KINDS, beat=beat
        )

        def target(dispatcher: Dispatcher) -> None:
            try:
                dispatcher.run()
            finally:
                rt.close()

        self._thread = threading.Thread(
            target=target, args=(self._dispatcher,), name="dispatcher", daemon=True
        )
        self._thread.start()

    def stop(self, worker: Any) -> None:
        """Claim nothing more. What was claimed is finished by this worker or due again soon."""
        log.info("worker %s stops: it takes nothing new", worker.hostname)
        if self._heartbeat is not None:
            self._heartbeat.stop()
        if self._dispatcher is not None and self._thread is not None:
            self._dispatcher.stop()
            self._thread.join(timeout=15)

    def terminate(self, worker: Any) -> None:
        """A cold shutdown stops it as a warm one does."""
        self.stop(worker)


def _heartbeat(settings: Settings, threads: int) -> Heartbeat | None:
    file = heartbeat.given_file()
    if file is None:
        return None
    made = Heartbeat(
        file, threads, partial(heartbeat.outage, settings.database_url, settings.broker_url)
    )
    made.start()
    return made


def _broker(app: Any) -> Broker:
    def publish(stage: Stage, claims: Sequence[Claim]) -> None:
        pairs = [[str(claim.id), claim.lease] for claim in claims]
        shared = stage in (Stage.RESOLVE, Stage.SUBMIT)
        args: list[Any] = [pairs] if shared else pairs[0]
        # The id says in Flower which generation and stage a message is.
        task_id = f"{claims[0].id}.{stage}.{claims[0].lease}"
        _send(app, f"seedance.{stage}", args, task_id)

    def probe() -> None:
        app.send_task("seedance.balance")

    def observe(lease: int) -> None:
        app.send_task("seedance.observe", args=[lease], task_id=f"task-list.observe.{lease}")

    def publish_side(kind: SideWork, claim: SideClaim) -> None:
        task_id = f"{claim.id}.{kind.task.removeprefix('seedance.')}.{claim.lease}"
        _send(app, kind.task, [claim.id, claim.lease], task_id, queue=SIDE_QUEUE)

    depths = _Depths(app)
    return Broker(
        publish,
        probe,
        depth=lambda: depths.of(STAGE_QUEUE),
        observe=observe,
        publish_side=publish_side,
        side_depth=lambda: depths.of(SIDE_QUEUE),
    )


class _Depths:
    """How many messages wait in a queue, asked over one channel that is kept: a new one costs a
    connection to Valkey or a dozen messages to RabbitMQ, at every turn of the dispatcher.
    """

    def __init__(self, app: Any) -> None:
        self._app = app
        self._connection: Any = None
        self._channel: Any = None

    def of(self, queue: str) -> int:
        kept = self._connection is not None
        try:
            return self._ask(queue)
        except Exception:
            self.close()
            if not kept:
                raise
        # Of a connection that was kept it only says that the broker was away in between.
        return self._ask(queue)

    def _ask(self, queue: str) -> int:
        if self._connection is None:
            self._connection = self._app.connection_for_write()
            self._connection.ensure_connection(max_retries=1)
        if self._channel is None:
            self._channel = self._connection.channel()
        try:
            return int(self._channel.queue_declare(queue, passive=True).message_count)
        except OperationalError:
            raise
        except self._connection.channel_errors:
            # RabbitMQ closes the channel of who asks for a queue that there is not.
            if not getattr(self._channel, "is_open", True):
                self._channel = None
            return 0  # not declared yet, or empty: nothing waits

    def close(self) -> None:
        """Let go of the connection; asked again, it makes another."""
        connection, self._connection, self._channel = self._connection, None, None
        with contextlib.suppress(Exception):
            connection.release()


def _send(app: Any, task: str, args: list[Any], task_id: str, **options: Any) -> None:
    # The short form, as workers show it, also spares Celery's repr.
    told = task_forms.arguments(task, args)
    app.send_task(task, args=args, task_id=task_id, argsrepr=told, kwargsrepr="", **options)
