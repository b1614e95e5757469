"""Runs a simulator: two origins (API with admin, storage with CDN) in one event loop."""

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from aiohttp import web

from simulator.callbacks import Callbacks
from simulator.config import Config
from simulator.http_admin import HttpAdmin
from simulator.http_api import HttpApi
from simulator.http_storage import HttpStorage
from simulator.world import World

_BACKLOG = 1024


@dataclass(frozen=True, slots=True)
class Where:
    """Where a simulator listens."""

    host: str = "127.0.0.1"
    port: int = 0
    storage_port: int = 0
    # What storage's URLs begin with, where that isn't the called host and storage's port.
    storage_url: str | None = None


@dataclass(frozen=True, slots=True)
class Running:
    """A simulator that answers."""

    world: World
    url: str
    storage_url: str


@contextlib.asynccontextmanager
async def running(config: Config, where: Where) -> AsyncIterator[Running]:
    """A simulator for as long as the context lasts."""
    world = World(config)
    callbacks = asyncio.create_task(Callbacks(world).run())
    async with contextlib.AsyncExitStack() as stack:
        storage_app = web.Application()
        storage_app.add_routes(HttpStorage(world).routes())
        storage_port = await _listen(stack, storage_app, where.host, where.storage_port)

        api = HttpApi(world, storage_port, where.storage_url)
        app = web.Application(client_max_size=4 * 2**20)
        app.add_routes(api.routes())
        app.add_routes(HttpAdmin(world).routes())
        port = await _listen(stack, app, where.host, where.port)

        shown = "127.0.0.1" if where.host in ("0.0.0.0", "", "::") else where.host  # noqa: S104 compared, not bound
        if ":" in shown:
            shown = f"[{shown}]"
        try:
            yield Running(
                world,
                f"http://{shown}:{port}",
                where.storage_url or f"http://{shown}:{storage_port}",
            )
        finally:
            callbacks.cancel()
            await asyncio.gather(callbacks, return_exceptions=True)


async def serve_until_signalled(
    config: Config, where: Where, on_ready: Callable[[Running], None]
) -> None:
    """Serve until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with running(config, where) as server:
        on_ready(server)
        await stop.wait()


async def _listen(
    stack: contextlib.AsyncExitStack, app: web.Application, host: str, port: int
) -> int:
    # Requests that a fault holds back must not hold back the end.
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    await web.TCPSite(runner, host, port, backlog=_BACKLOG).start()
    bound: int = runner.addresses[0][1]
    return bound
