"""Takes notices of generations: verified, each once, in order. FastAPI, and SQLite to remember.

The signature says who sent it, and the time in it that it is no recording: one older or newer than
five minutes is refused. What comes again (a delivery is repeated when its answer was lost) is known
by `webhook-id`.
"""

import os
import sqlite3
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.concurrency import run_in_threadpool
from standardwebhooks import Webhook, WebhookVerificationError

LARGEST = 512 * 1024
"""Bytes. The metadata that a producer gave are the most of a notice: 64 KiB at most, as ASCII."""

_TABLES = """
    CREATE TABLE IF NOT EXISTS heard (webhook_id TEXT PRIMARY KEY);
    CREATE TABLE IF NOT EXISTS videos (id TEXT PRIMARY KEY, sequence INTEGER, status TEXT);
"""


def verified(secrets: Sequence[str], body: bytes, headers: Mapping[str, str]) -> dict[str, Any]:
    """The notice in a request. `secrets`: one, or several while they are changed.

    Verify the body as it came: parsed and written again it is another one. Raises
    WebhookVerificationError.
    """
    last = WebhookVerificationError("there is no secret to verify it with")
    for secret in secrets:
        webhook = Webhook(secret)
        try:
            notice: dict[str, Any] = webhook.verify(body, dict(headers))
            return notice
        except WebhookVerificationError as error:
            last = error
        except ValueError:  # a signature of another form, or a body that is no text
            last = WebhookVerificationError("no signature that can be read, or a body that can't")
    raise last


async def bounded(request: Request) -> bytes:
    """The body, while it is no larger than a notice can be: anybody may send to this address."""
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > LARGEST:
            raise HTTPException(413, f"at most {LARGEST} bytes are taken")
    return bytes(body)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """What has been heard outlives the process."""
    app.state.secrets = os.environ.get("WEBHOOK_SECRETS", "").split()
    if not app.state.secrets:
        raise SystemExit("WEBHOOK_SECRETS is empty: it needs the workers' SEEDANCE_WEBHOOK_SECRETS")
    app.state.database = os.environ.get("RECEIVER_DATABASE", "receiver.sqlite")
    with sqlite3.connect(app.state.database) as db:
        db.executescript(_TABLES)
    db.close()
    yield


app = FastAPI(lifespan=lifespan)


@app.post("/hooks/video", status_code=204)
async def take(request: Request) -> None:
    """Answer 2xx only when it is stored: anything else brings it again, for three days."""
    body = await bounded(request)
    try:
        notice = verified(request.app.state.secrets, body, request.headers)
    except WebhookVerificationError as error:
        raise HTTPException(401, str(error)) from None
    await run_in_threadpool(
        store, request.app.state.database, request.headers["webhook-id"], notice
    )


def store(database: str, webhook_id: str, notice: Mapping[str, Any]) -> None:
    """Both or neither: that it was heard, and what it says."""
    video = notice["data"]
    db = sqlite3.connect(database, timeout=10)
    try:
        with db:
            new = db.execute("INSERT OR IGNORE INTO heard (webhook_id) VALUES (?)", (webhook_id,))
            if new.rowcount:
                db.execute(
                    "INSERT INTO videos VALUES (?, ?, ?) ON CONFLICT (id) DO UPDATE SET"
                    " sequence = excluded.sequence, status = excluded.status"
                    " WHERE excluded.sequence > videos.sequence",
                    (video["id"], video["sequence"], video["status"]),
                )
    finally:
        db.close()


@app.get("/videos")
def videos() -> dict[str, str]:
    """What is known, by generation. The video itself: `worker.producer.get(id).video_url`."""
    db = sqlite3.connect(app.state.database, timeout=10)
    try:
        return dict(db.execute("SELECT id, status FROM videos").fetchall())
    finally:
        db.close()
