"""DBOS: a durable workflow for each generation, its steps checkpointed in PostgreSQL.

Workflows are asynchronous, so that thousands can sleep at once; the queue has no limit, because one
that waits for its remote task takes a place in it. An executor that is started again under its id
recovers what it had begun.

    python -m benchmarks.contenders.on_dbos EXECUTOR
"""

import asyncio
import os
import sys
import threading
from collections.abc import Iterable
from typing import Any

import aiohttp
from dbos import DBOS, DBOSClient, DBOSConfig

from benchmarks.contenders.provider import ENDED, POLL_SECONDS, look_async, ready, submit_async

URL = os.environ.get("DATABASE_URL", "")
QUEUE = "videos"
_sessions: dict[asyncio.AbstractEventLoop, aiohttp.ClientSession] = {}


def http() -> aiohttp.ClientSession:
    """The session of the loop that the workflows run in."""
    loop = asyncio.get_running_loop()
    if loop not in _sessions:
        _sessions[loop] = aiohttp.ClientSession()
    return _sessions[loop]


@DBOS.step(retries_allowed=True, max_attempts=10)
async def submit(request: dict[str, Any]) -> str:
    """Submit, and give the task's id."""
    return await submit_async(http(), request)


@DBOS.step(retries_allowed=True, max_attempts=10)
async def look(task_id: str) -> tuple[str, str | None]:
    """The task's status, and its video."""
    task = await look_async(http(), task_id)
    return task["status"], task["video_url"]


@DBOS.workflow()
async def generate(request: dict[str, Any]) -> tuple[str, str | None]:
    """Submit, and look every few seconds until it has ended."""
    task_id = await submit(request)
    status, url = await look(task_id)
    while status not in ENDED:
        await DBOS.sleep_async(POLL_SECONDS)
        status, url = await look(task_id)
    return task_id, url


_clients: list[DBOSClient] = []


def enqueue(request: dict[str, Any]) -> None:
    """One request."""
    if not _clients:
        _clients.append(DBOSClient(system_database_url=URL))
    _clients[0].enqueue({"queue_name": QUEUE, "workflow_name": generate.__qualname__}, request)


def enqueue_many(requests: Iterable[dict[str, Any]]) -> None:
    """Many: there is no bulk call, so one after the other."""
    for request in requests:
        enqueue(request)


def config(executor: str) -> DBOSConfig:
    """What an executor is told."""
    return {
        "name": "videos",
        "system_database_url": URL,
        "executor_id": executor,
        "log_level": "ERROR",
    }


def main(executor: str) -> None:
    """Run an executor, until killed."""
    DBOS(config=config(executor))
    DBOS.launch()
    DBOS.register_queue(QUEUE)
    ready()
    threading.Event().wait()


if __name__ == "__main__":
    main(sys.argv[1])
