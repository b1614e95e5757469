"""Celery alone: one task that submits, and retries itself until the remote task has ended.

As the guide has it: acknowledged late, so that a lost worker's message comes back; retried on
errors with backoff; no result backend, since the result goes where the application wants it.
"""

import os
import threading
from collections.abc import Iterable
from typing import Any

import psycopg
import requests
from celery import Celery, Task
from celery.signals import worker_ready

from benchmarks.contenders.provider import ENDED, POLL_SECONDS, look, ready, submit

app = Celery("videos", broker=os.environ.get("BROKER_URL"))
app.conf.update(
    task_ignore_result=True,
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    broker_connection_retry_on_startup=True,
    # By default an hour; the guide says: longer than the longest countdown.
    broker_transport_options={"visibility_timeout": float(os.environ.get("VISIBILITY", "3600"))},
)
worker_ready.connect(lambda **_: ready(), weak=False)

_local = threading.local()


@app.task(
    bind=True,
    autoretry_for=(requests.RequestException,),
    retry_backoff=True,
    max_retries=None,
)
def generate(self: Task, request: dict[str, Any], task_id: str | None = None) -> None:
    """Submit at the first time; look; come again in a few seconds if it has not ended."""
    if task_id is None:
        task_id = submit(request)
    try:
        task = look(task_id)
    except requests.RequestException as error:
        # Not left to `autoretry_for`: it would submit again.
        raise self.retry(args=(request, task_id), exc=error, countdown=POLL_SECONDS) from error
    if task["status"] not in ENDED:
        raise self.retry(args=(request, task_id), countdown=POLL_SECONDS)
    keep(task_id, task["video_url"])


def keep(task_id: str, url: str | None) -> None:
    """Store the result; a task that runs twice stores it once."""
    if not hasattr(_local, "connection"):
        _local.connection = psycopg.connect(os.environ["DATABASE_URL"], autocommit=True)
    _local.connection.execute(
        "INSERT INTO videos (task_id, url) VALUES (%s, %s) ON CONFLICT DO NOTHING", (task_id, url)
    )


def enqueue(request: dict[str, Any]) -> None:
    """One request."""
    generate.delay(request)


def enqueue_many(requests: Iterable[dict[str, Any]]) -> None:
    """Many: Celery has no bulk call, so one after the other over one connection."""
    with app.connection_for_write() as connection, app.amqp.Producer(connection) as producer:
        for request in requests:
            generate.apply_async((request,), producer=producer)
