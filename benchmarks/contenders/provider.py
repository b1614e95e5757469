"""The provider's API in a few lines, as any of these programs would have it.

It answers every error with a code in the body; `raise_for_status` catches those with a status.
"""

import os
import threading
from pathlib import Path
from typing import Any

import aiohttp
import requests

BASE = os.environ.get("PROVIDER_URL", "") + "/api/v1/video/task"
HEADERS = {"X-API-Key": os.environ.get("PROVIDER_KEY", "")}
POLL_SECONDS = float(os.environ.get("POLL_SECONDS", "5"))
"""The provider advises 5 to 10."""

ENDED = ("completed", "failed", "cancelled", "expired")
TIMEOUT = 30

_local = threading.local()


def session() -> requests.Session:
    """This thread's session: its connection is used again."""
    if not hasattr(_local, "session"):
        _local.session = requests.Session()
        _local.session.headers.update(HEADERS)
    return _local.session  # type: ignore[no-any-return]


def submit(request: dict[str, Any]) -> str:
    """Submit a task, and give its id."""
    answer = session().post(BASE, json=request, timeout=TIMEOUT)
    answer.raise_for_status()
    return str(answer.json()["result"]["task_id"])


def look(task_id: str) -> dict[str, Any]:
    """The task as it is now."""
    answer = session().get(f"{BASE}/{task_id}", timeout=TIMEOUT)
    answer.raise_for_status()
    return dict(answer.json()["result"])


async def submit_async(http: aiohttp.ClientSession, request: dict[str, Any]) -> str:
    """The same without a thread."""
    async with http.post(BASE, json=request, headers=HEADERS, raise_for_status=True) as answer:
        return str((await answer.json())["result"]["task_id"])


async def look_async(http: aiohttp.ClientSession, task_id: str) -> dict[str, Any]:
    """The same without a thread."""
    async with http.get(f"{BASE}/{task_id}", headers=HEADERS, raise_for_status=True) as answer:
        return dict((await answer.json())["result"])


def ready() -> None:
    """Tell the measuring that work can begin."""
    Path(os.environ["READY_FILE"]).touch()
