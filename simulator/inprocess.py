"""A simulator in a thread of the calling process, for tests."""

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import TypeVar

from simulator.client import Admin
from simulator.config import Config
from simulator.server import Running, Where, running
from simulator.world import World

T = TypeVar("T")


class Simulator(Admin):
    """A simulator at `url`; the inherited methods steer it over its admin API."""

    def __init__(self, server: Running, loop: asyncio.AbstractEventLoop, api_key: str) -> None:
        super().__init__(server.url)
        self.storage_url = server.storage_url
        self.api_key = api_key
        self.state: World = server.world
        self._loop = loop

    def call(self, act: Callable[[World], T]) -> T:
        """Run a function on the state in the server's own thread: the only safe way to it."""

        async def run() -> T:
            return act(self.state)

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result(30)


@contextlib.contextmanager
def serve(
    config: Config | None = None, *, host: str = "127.0.0.1", port: int = 0, storage_port: int = 0
) -> Iterator[Simulator]:
    """Serve from a thread for as long as the context lasts."""
    config = config or Config()
    where = Where(host, port, storage_port)
    ready: list[Simulator] = []
    failures: list[BaseException] = []
    is_up = threading.Event()
    stop = asyncio.Event()
    loop = asyncio.new_event_loop()

    async def main() -> None:
        async with running(config, where) as server:
            ready.append(Simulator(server, loop, config.api_keys[0]))
            is_up.set()
            await stop.wait()

    def target() -> None:
        try:
            with asyncio.Runner(loop_factory=lambda: loop) as runner:
                runner.run(main())
        except BaseException as error:  # noqa: BLE001 handed to the caller's thread
            failures.append(error)
        finally:
            is_up.set()

    thread = threading.Thread(target=target, name="simulator", daemon=True)
    thread.start()
    is_up.wait()
    try:
        if failures:
            raise failures[0]
        yield ready[0]
    finally:
        if not loop.is_closed():
            loop.call_soon_threadsafe(stop.set)
        thread.join(10)
    if failures:
        raise failures[0]
