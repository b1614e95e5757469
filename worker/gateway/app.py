"""The ASGI app: callbacks in, health and figures out."""

import asyncio
import logging
from functools import partial

from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from models import callbacks
from models.callbacks import Address
from worker import callback_address
from worker.gateway import payload
from worker.gateway.door import Door
from worker.gateway.figures import Metrics
from worker.gateway.health import Readiness
from worker.settings import Settings

log = logging.getLogger(__name__)

BODY_SECONDS = 5.0
"""How long a body may take to come."""

AT_WORK = 8
"""Callbacks that are looked up at the same time."""

MOST_WAITING = 256
"""So many more may wait for that; further ones are told to come again."""


class _Busy(Exception):
    """Too many callbacks wait already."""


class _Callbacks:
    """Takes callbacks in, a bounded number at a time."""

    def __init__(self, settings: Settings, engine: Engine) -> None:
        self._door = Door(settings.gateway_rate)
        self._spacing = settings.poll_min
        self._engine = engine
        self._slots = asyncio.Semaphore(AT_WORK)
        self._waiting = 0

    async def post(self, request: Request) -> Response:
        """One callback. Whatever its body is, it is a hint to look."""
        path = callback_address.PREFIX + request.path_params["rest"]
        to = callback_address.read(path)
        if to is None:
            return _not_found()
        if not self._door.lets_in(path):
            return PlainTextResponse("too many", 429, {"Retry-After": "10"})
        try:
            said = payload.task_id(await _body(request))
            taken = await self._heed(to, said)
        except _Busy:
            return PlainTextResponse("busy", 503, {"Retry-After": "10"})
        except ClientDisconnect:
            return Response(status_code=400)  # nobody reads it
        except SQLAlchemyError as error:
            log.warning("a callback can't be kept (%s): polling will see", type(error).__name__)
            return PlainTextResponse("not now", 503, {"Retry-After": "10"})
        if taken is None:
            return _not_found()
        log.log(
            logging.INFO if taken else logging.DEBUG,
            "callback for generation %s, attempt %d%s",
            to.generation_id,
            to.attempt,
            "" if taken else " (nothing to do)",
            extra={"generation": str(to.generation_id), "attempt": to.attempt},
        )
        return PlainTextResponse("ok")

    async def _heed(self, to: Address, task_id: str | None) -> bool | None:
        if self._waiting >= MOST_WAITING:
            raise _Busy
        self._waiting += 1
        try:
            async with self._slots:
                return await run_in_threadpool(self._write, to, task_id)
        finally:
            self._waiting -= 1

    def _write(self, to: Address, task_id: str | None) -> bool | None:
        with self._engine.begin() as conn:
            return callbacks.heed(conn, to, task_id=task_id, spacing=self._spacing)


async def _body(request: Request) -> bytes:
    """The beginning of the body; what comes too late or is too much is left."""
    taken = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in request.stream():
                taken += chunk[: payload.MOST_BYTES + 1 - len(taken)]
                if len(taken) > payload.MOST_BYTES:
                    return b""
    except TimeoutError:
        return b""
    return bytes(taken)


def _not_found() -> Response:
    return PlainTextResponse("not found", 404)


async def _harmless(_: Request) -> Response:
    """A GET, as somebody makes who tries whether the address is alive: nothing is looked up."""
    return PlainTextResponse("callbacks are taken by POST")


async def _alive(_: Request) -> Response:
    return JSONResponse({"alive": True})


def create_app(settings: Settings, engine: Engine) -> Starlette:
    """The app, over an engine that the caller closes."""
    taken_in = _Callbacks(settings, engine)
    readiness = Readiness(engine, settings.broker_url)

    async def ready(_: Request) -> Response:
        parts = await run_in_threadpool(partial(readiness.look))
        fine = all(state == "ok" for state in parts.values())
        return JSONResponse({"ready": fine, **parts}, 200 if fine else 503)

    rest = callback_address.PREFIX + "{rest:path}"
    return Starlette(
        routes=[
            Route(rest, taken_in.post, methods=["POST"]),
            Route(rest, _harmless, methods=["GET"]),
            Route("/healthz", _alive, methods=["GET"]),
            Route("/readyz", ready, methods=["GET"]),
            Route("/metrics", Metrics(settings, engine).get, methods=["GET"]),
        ]
    )
