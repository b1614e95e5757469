"""The API over HTTP: reads a request, lets the service answer it, and lets faults interfere."""

import asyncio
import time
from email.utils import formatdate
from typing import Final

from aiohttp import web

from simulator.answers import Answer
from simulator.effects import NO_EFFECT, Effect
from simulator.records import Submit
from simulator.service import Call, Service
from simulator.world import World

API: Final = "/api/v1/video"


class HttpApi:
    """The document's calls as aiohttp handlers."""

    def __init__(self, world: World, storage_port: int, storage_url: str | None = None) -> None:
        self.world = world
        self.service = Service(world)
        self._storage_port = storage_port
        self._storage_url = storage_url

    def routes(self) -> list[web.RouteDef]:
        """The routes of the API."""
        return [
            web.post(f"{API}/upload/presign", self._presign),
            web.post(f"{API}/task", self._submit),
            web.get(f"{API}/task/{{task_id}}", self._get, allow_head=False),
            web.post(f"{API}/task/{{task_id}}/cancel", self._cancel),
            web.get(f"{API}/tasks", self._list, allow_head=False),
            web.get(f"{API}/balance", self._balance, allow_head=False),
        ]

    async def _presign(self, request: web.Request) -> web.StreamResponse:
        return await self._handle("presign", request)

    async def _submit(self, request: web.Request) -> web.StreamResponse:
        return await self._handle("submit", request)

    async def _get(self, request: web.Request) -> web.StreamResponse:
        return await self._handle("get", request)

    async def _cancel(self, request: web.Request) -> web.StreamResponse:
        return await self._handle("cancel", request)

    async def _list(self, request: web.Request) -> web.StreamResponse:
        return await self._handle("list", request)

    async def _balance(self, request: web.Request) -> web.StreamResponse:
        return await self._handle("balance", request)

    async def _handle(self, endpoint: str, request: web.Request) -> web.StreamResponse:
        world = self.world
        world.records.received(endpoint)
        call = await self._read(endpoint, request)
        if endpoint == "submit":
            call.submit = self._record_submit(call)
        name, effect = self._fault(call)
        if effect.delay_before:
            await asyncio.sleep(effect.delay_before)
        answer = self.service.answer(call, effect) if effect.process else Answer()
        processed = answer.outcome if effect.process else "not processed"
        if effect.reshape is not None:
            answer = effect.reshape(answer)
        if effect.delay_after:
            await asyncio.sleep(effect.delay_after)
        outcome = "no answer" if effect.drop else answer.outcome
        world.records.done(
            endpoint, outcome, time=world.clock.wall(), fault=name, about=call.task_id
        )
        if call.submit is not None:
            call.submit.fault = name
            call.submit.outcome = processed if outcome == processed else f"{processed} → {outcome}"
        return await send(request, answer, drop=effect.drop, skew=world.config.date_skew)

    async def _read(self, endpoint: str, request: web.Request) -> Call:
        return Call(
            endpoint,
            request.headers.get("X-API-Key"),
            self.origin(request),
            task_id=request.match_info.get("task_id"),
            query=request.query,
            headers=request.headers,
            body=await request.read(),
            content_type=request.content_type,
        )

    def origin(self, request: web.Request) -> str:
        """Storage as this caller can reach it: the host that it called, storage's port."""
        if self._storage_url is not None:
            return self._storage_url
        host = request.host.rpartition(":")[0] or request.host
        return f"http://{host}:{self._storage_port}"

    def _record_submit(self, call: Call) -> Submit:
        records = self.world.records
        body = call.body.decode(errors="replace")
        submit = Submit(self.world.clock.wall(), call.api_key, records.headers(call.headers), body)
        records.submits.append(submit)
        return submit

    def _fault(self, call: Call) -> tuple[str | None, Effect]:
        if self.world.faults:
            fault = self.world.faults.pick(self.service.subject(call))
            if fault is not None:
                return fault.order.kind, fault.effect
        return self.service.wished_effect(call) or (None, NO_EFFECT)


async def send(
    request: web.Request, answer: Answer, *, drop: bool, skew: float = 0.0
) -> web.StreamResponse:
    """Write an answer, or close the connection without one."""
    if drop:
        hang_up(request)
        return web.Response()
    headers = {**answer.headers, "Content-Type": answer.content_type}
    if skew:
        headers["Date"] = formatdate(time.time() + skew, usegmt=True)
    body = answer.body()
    if answer.cut_connection is None:
        return web.Response(status=answer.status, body=body, headers=headers)
    response = web.StreamResponse(status=answer.status, headers=headers)
    response.content_length = len(body)
    await response.prepare(request)
    await response.write(body[: int(len(body) * answer.cut_connection)])
    hang_up(request)
    return response


def hang_up(request: web.Request) -> None:
    """Close the connection at once, whatever is still in it."""
    if request.transport is not None:
        request.transport.close()
