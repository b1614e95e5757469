"""The admin API: look into the provider, and make it misbehave. No key is asked for."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from simulator.accounts import Account
from simulator.config import Config
from simulator.effects import KINDS
from simulator.errors import ApiError
from simulator.faults import FaultOrder
from simulator.injection import Change, Injection, change, chosen, inject, view
from simulator.page import render
from simulator.pricing import as_number
from simulator.tasks import Task
from simulator.waiting import Wait, holds
from simulator.world import World

Handler = Callable[[web.Request], Coroutine[Any, Any, web.StreamResponse]]


class AccountChange(BaseModel):
    """What `PATCH /admin/accounts` takes."""

    model_config = ConfigDict(extra="forbid")

    credits: str | float | None = Field(None, description="New total.")
    used: str | float | None = None
    enabled: bool | None = None
    keys: list[str] | None = Field(None, description="The keys that open it, instead of its own.")
    max_concurrent: int | None = Field(None, ge=0, description="null: as configured.")


class HttpAdmin:
    """The admin API as aiohttp handlers."""

    def __init__(self, world: World) -> None:
        self.world = world

    def routes(self) -> list[web.RouteDef]:
        """The routes of the admin API."""
        table: list[tuple[str, str, Handler]] = [
            ("GET", "", self._page),
            ("GET", "config", self._config),
            ("PATCH", "config", self._configure),
            ("GET", "faults", self._faults),
            ("POST", "faults", self._order_fault),
            ("DELETE", "faults", self._clear_faults),
            ("DELETE", "faults/{id}", self._clear_faults),
            ("GET", "tasks", self._tasks),
            ("POST", "tasks", self._inject),
            ("GET", "tasks/{id}", self._task),
            ("PATCH", "tasks/{id}", self._change),
            ("DELETE", "tasks/{id}", self._forget),
            ("GET", "submits", self._submits),
            ("GET", "requests", self._requests),
            ("GET", "uploads", self._uploads),
            ("GET", "uploads/{path:.+}", self._upload),
            ("GET", "accounts", self._accounts),
            ("PATCH", "accounts", self._change_account),
            ("POST", "clock", self._clock),
            ("POST", "wait", self._wait),
            ("POST", "reset", self._reset),
        ]
        return [web.route(m, f"/admin/{path}", _explained(h)) for m, path, h in table]

    async def _page(self, _: web.Request) -> web.StreamResponse:
        self.world.tasks.advance()
        return web.Response(text=render(self.world), content_type="text/html")

    async def _config(self, _: web.Request) -> web.StreamResponse:
        return _json(self.world.config.model_dump(mode="json"))

    async def _configure(self, request: web.Request) -> web.StreamResponse:
        config = self.world.configure(await request.json())
        return _json(config.model_dump(mode="json"))

    async def _faults(self, request: web.Request) -> web.StreamResponse:
        if "kinds" in request.query:
            return _json({name: build.__doc__ for name, build in KINDS.items()})
        return _json(self.world.faults.view())

    async def _order_fault(self, request: web.Request) -> web.StreamResponse:
        order = FaultOrder.model_validate(await request.json())
        return _json(self.world.faults.order(order).view())

    async def _clear_faults(self, request: web.Request) -> web.StreamResponse:
        fault_id = request.match_info.get("id")
        gone = self.world.faults.clear(int(fault_id) if fault_id else None)
        return _json({"removed": gone})

    async def _tasks(self, request: web.Request) -> web.StreamResponse:
        self.world.tasks.advance()
        return _json([view(self.world, task) for task in chosen(self.world, request.query)])

    async def _task(self, request: web.Request) -> web.StreamResponse:
        self.world.tasks.advance()
        return _json(view(self.world, self._found(request)))

    async def _inject(self, request: web.Request) -> web.StreamResponse:
        self.world.tasks.advance()
        tasks = inject(self.world, Injection.model_validate(await request.json()))
        return _json({"task_ids": [task.task_id for task in tasks]})

    async def _change(self, request: web.Request) -> web.StreamResponse:
        task = self._found(request)
        change(self.world, task, Change.model_validate(await request.json()))
        return _json(view(self.world, task))

    async def _forget(self, request: web.Request) -> web.StreamResponse:
        self.world.tasks.remove(self._found(request))
        return _json({})

    async def _submits(self, _: web.Request) -> web.StreamResponse:
        return _json([submit.view() for submit in self.world.records.submits])

    async def _requests(self, request: web.Request) -> web.StreamResponse:
        return _json(self.world.records.view(int(request.query.get("log", 0))))

    async def _uploads(self, _: web.Request) -> web.StreamResponse:
        return _json([upload.view() for upload in self.world.uploads.all()])

    async def _upload(self, request: web.Request) -> web.StreamResponse:
        upload = self.world.uploads.find(request.match_info["path"])
        if upload is None or upload.data is None:
            raise web.HTTPNotFound(text="no such upload")
        return web.Response(body=upload.data, content_type=upload.content_type)

    async def _accounts(self, _: web.Request) -> web.StreamResponse:
        self.world.tasks.advance()
        return _json([_account_view(account) for account in self.world.accounts.values()])

    async def _change_account(self, request: web.Request) -> web.StreamResponse:
        account = self.world.named_account(request.query.get("api_key"))
        order = AccountChange.model_validate(await request.json())
        self.world.change_account(account, order.model_dump(exclude_unset=True))
        return _json(_account_view(account))

    async def _clock(self, request: web.Request) -> web.StreamResponse:
        self.world.tasks.advance()
        self.world.clock.advance(float((await request.json())["advance"]))
        self.world.tasks.advance()
        return _json({"now": self.world.clock.now()})

    async def _wait(self, request: web.Request) -> web.StreamResponse:
        wait = Wait.model_validate(await request.json())
        try:
            async with asyncio.timeout(wait.timeout):
                while not holds(self.world, wait):
                    await asyncio.sleep(0.005)
        except TimeoutError:
            asked = wait.model_dump(exclude_unset=True)
            raise ValueError(f"waited in vain for {asked}") from None
        return _json({})

    async def _reset(self, request: web.Request) -> web.StreamResponse:
        changes = await request.json() if request.can_read_body else {}
        self.world.reset(Config.model_validate(changes) if changes else self.world.config)
        return _json({})

    def _found(self, request: web.Request) -> Task:
        task = self.world.tasks.find(request.match_info["id"])
        if task is None:
            raise web.HTTPNotFound(text="no such task")
        return task


def _account_view(account: Account) -> dict[str, Any]:
    return {
        "api_key": account.api_key,
        "number": account.number,
        "enabled": account.enabled,
        "total": str(account.total),
        "used": str(account.used),
        "remaining": str(account.remaining),
        "pending_cost": str(account.pending_cost),
        "remain_credits": as_number(account.remaining),
        "at_work": account.at_work,
        "waiting": len(account.waiting),
        "max_concurrent": account.max_concurrent,
    }


def _json(data: Any) -> web.Response:
    return web.json_response(data)


def _explained(handler: Handler) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    """Answer a wrong order with 400 and its reason."""

    async def handle(request: web.Request) -> web.StreamResponse:
        try:
            return await handler(request)
        except ValidationError as error:
            problems = [f"{'.'.join(map(str, p['loc']))}: {p['msg']}" for p in error.errors()]
            return web.json_response({"error": "; ".join(problems)}, status=400)
        except (ValueError, KeyError, TypeError, ApiError) as error:
            return web.json_response({"error": str(error)}, status=400)

    return handle
