"""Callbacks: one POST when a task ends, best effort, as nobody knows what the provider sends."""

import asyncio
from collections import deque
from typing import Final

import aiohttp

from simulator.effects import NO_EFFECT
from simulator.faults import Subject
from simulator.tasks import Task
from simulator.world import World

_TICK: Final = 0.02


class Callbacks:
    """Notices ends as they come (lazily computed ones included) and posts them."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._ended: deque[Task] = deque()
        self._sends: set[asyncio.Task[None]] = set()
        world.ended_hooks.append(self._note)

    def _note(self, task: Task) -> None:
        if task.work.callback_url is not None:
            self._ended.append(task)

    async def run(self) -> None:
        """Post until cancelled."""
        timeout = aiohttp.ClientTimeout(total=5)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            try:
                while True:
                    await asyncio.sleep(_TICK)
                    self._world.tasks.advance()
                    while self._ended:
                        self._start(session, self._ended.popleft())
            finally:
                for send in self._sends:
                    send.cancel()
                await asyncio.gather(*self._sends, return_exceptions=True)

    def _start(self, session: aiohttp.ClientSession, task: Task) -> None:
        send = asyncio.create_task(self._send(session, task))
        self._sends.add(send)
        send.add_done_callback(self._sends.discard)

    async def _send(self, session: aiohttp.ClientSession, task: Task) -> None:
        world, url = self._world, task.work.callback_url
        world.records.received("callback")
        fault = world.faults.pick(
            Subject("callback", task.api_key, " ".join([task.task_id, *task.work.texts]))
        )
        effect = NO_EFFECT if fault is None else fault.effect
        await asyncio.sleep(effect.delay_before + effect.delay_after)
        outcome = "not sent"
        for _ in range(2 if effect.twice else 1):
            if effect.process and url is not None:
                outcome = await _post(session, url, task)
            task.callbacks.append(outcome)
        world.records.done(
            "callback",
            outcome,
            time=world.clock.wall(),
            fault=None if fault is None else fault.order.kind,
            about=task.task_id,
        )


async def _post(session: aiohttp.ClientSession, url: str, task: Task) -> str:
    payload = {"task_id": task.task_id, "status": task.final}
    try:
        async with session.post(url, json=payload, allow_redirects=False) as response:
            return str(response.status)
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        return type(error).__name__
