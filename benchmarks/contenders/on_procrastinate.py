"""Procrastinate: jobs in PostgreSQL. One job submits and defers another, which looks.

The second is retried until the remote task has ended. Jobs are asynchronous, as the documentation
advises for work that waits; a periodic job brings back what a killed worker held.

    python -m benchmarks.contenders.on_procrastinate CONCURRENCY
"""

import asyncio
import logging
import os
import sys
from collections.abc import Iterable
from typing import Any

import aiohttp
from procrastinate import App, JobContext, PsycopgConnector, RetryStrategy

from benchmarks.contenders.provider import ENDED, POLL_SECONDS, look_async, ready, submit_async

URL = os.environ.get("DATABASE_URL", "")
app = App(connector=PsycopgConnector(conninfo=URL, max_size=10))
http: aiohttp.ClientSession


class NotEndedError(Exception):
    """The remote task is still at work."""


@app.task(name="generate", retry=RetryStrategy(max_attempts=10, exponential_wait=2))
async def generate(request: dict[str, Any]) -> None:
    """Submit, and have the task followed."""
    task_id = await submit_async(http, request)
    await follow.defer_async(task_id=task_id)


@app.task(
    name="follow",
    retry=RetryStrategy(
        wait=max(1, round(POLL_SECONDS)), retry_exceptions=[NotEndedError, aiohttp.ClientError]
    ),
)
async def follow(task_id: str) -> None:
    """Look; come again in a few seconds if it has not ended."""
    task = await look_async(http, task_id)
    if task["status"] not in ENDED:
        raise NotEndedError
    await app.connector.execute_query_async(
        "INSERT INTO videos (task_id, url) VALUES (%(task_id)s, %(url)s) ON CONFLICT DO NOTHING",
        task_id=task_id,
        url=task["video_url"],
    )


@app.periodic(cron="* * * * *")
@app.task(name="retry_stalled_jobs", queueing_lock="retry_stalled_jobs", pass_context=True)
async def retry_stalled_jobs(context: JobContext, timestamp: int) -> None:  # noqa: ARG001
    """Bring back what killed workers held; the documentation's own, but not every ten minutes."""
    for job in await app.job_manager.get_stalled_jobs():
        await app.job_manager.retry_job(job)


def enqueue(request: dict[str, Any]) -> None:
    """One request."""
    _open()
    generate.defer(request=request)


def enqueue_many(requests: Iterable[dict[str, Any]]) -> None:
    """Many, in one statement."""
    _open()
    generate.batch_defer(*({"request": request} for request in requests))


_opened: list[App] = []


def _open() -> None:
    """A producer's connections, at the first call."""
    if not _opened:
        _opened.append(app.open())


async def work(concurrency: int) -> None:
    """Run a worker."""
    global http
    async with app.open_async(), aiohttp.ClientSession() as http:
        ready()
        await app.run_worker_async(concurrency=concurrency, delete_jobs="never")


if __name__ == "__main__":
    logging.basicConfig(level=logging.CRITICAL)  # each retry would be told with its traceback
    asyncio.run(work(int(sys.argv[1])))
