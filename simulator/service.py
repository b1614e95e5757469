"""The provider's calls as plain functions: a call comes in, an answer goes out, no I/O."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from simulator import validation
from simulator.accounts import Account
from simulator.answers import Answer, failure, success
from simulator.directives import parse
from simulator.effects import NO_EFFECT, Effect
from simulator.errors import ApiError, invalid
from simulator.faults import Subject
from simulator.pricing import as_number, cost
from simulator.records import Submit
from simulator.rendering import list_item, task_object
from simulator.tasks import TERMINAL, Task
from simulator.wishes import from_directive
from simulator.world import World


@dataclass(slots=True)
class Call:
    """One request of the API, read completely."""

    endpoint: str
    api_key: str | None
    # scheme://host:port of storage and CDN, as the caller can reach it.
    origin: str
    task_id: str | None = None
    query: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    content_type: str = "application/json"
    # Filled in on the way, for the records.
    submit: Submit | None = None


class Service:
    """Answers the document's seven calls (the PUT is storage's)."""

    def __init__(self, world: World) -> None:
        self.world = world
        self._calls = {
            "presign": self._presign,
            "get": self._get,
            "list": self._list,
            "cancel": self._cancel,
            "balance": self._balance,
        }

    def answer(self, call: Call, effect: Effect = NO_EFFECT) -> Answer:
        """Process a call."""
        world = self.world
        world.tasks.advance()
        try:
            account = self._account(call)
            if call.endpoint == "submit":
                return self._submit(account, call, effect)
            return self._calls[call.endpoint](account, call)
        except ApiError as error:
            return failure(error, world.config.error_style)

    def subject(self, call: Call) -> Subject:
        """What faults may look at."""
        task = self.world.tasks.find(call.task_id) if call.task_id else None
        text = call.body.decode(errors="replace")
        if task is not None:
            text = " ".join([task.task_id, *task.work.texts])
        elif call.query:
            text = " ".join([*call.query.values(), text])
        return Subject(
            call.endpoint,
            call.api_key,
            text,
            call.task_id,
            None if task is None else self.world.clock.wall() - task.added_wall,
        )

    def wished_effect(self, call: Call) -> tuple[str, Effect] | None:
        """The fault that the prompt itself asks for, for its first submits or GETs."""
        if call.endpoint == "submit" and b"[sim:" in call.body:
            return self._wished_for_submit(call)
        if call.endpoint == "get" and call.task_id:
            task = self.world.tasks.find(call.task_id)
            wish = task.directives.word("get") if task else None
            if task is not None and wish is not None:
                task.reads += 1
                effect, times = from_directive(wish)
                return (f"directive {wish}", effect) if task.reads <= times else None
        return None

    def _wished_for_submit(self, call: Call) -> tuple[str, Effect] | None:
        account = self.world.account_of(call.api_key)
        try:
            texts = _texts(json.loads(call.body))
            wish = parse(texts).word("submit")
            if account is None or wish is None:
                return None
            effect, times = from_directive(wish)
        except (ValueError, ApiError):
            return None  # the submit itself will say what is wrong
        prompt = "\n".join(texts)
        seen = account.seen_prompts[prompt] = account.seen_prompts.get(prompt, 0) + 1
        return (f"directive {wish}", effect) if seen <= times else None

    def _account(self, call: Call) -> Account:
        account = self.world.account_of(call.api_key)
        if account is None:
            raise ApiError("INVALID_API_KEY")
        config = self.world.config
        if config.rate_limit is not None and not account.take_token(
            config.rate_limit, config.rate_burst, self.world.clock.wall()
        ):
            raise ApiError("RATE_LIMIT_EXCEEDED", retry_after=config.retry_after)
        return account

    def _presign(self, account: Account, call: Call) -> Answer:
        filename, content_type = validation.presign(call.query)
        valid = self.world.config.presign_seconds
        url, path = self.world.uploads.presign(
            api_key=account.api_key,
            account=account.number,
            filename=filename,
            content_type=content_type,
            origin=call.origin,
            now=self.world.clock.validity_now(),
            valid=valid,
        )
        return success({"presigned_url": url, "file_path": path, "expires_in": valid})

    def _submit(self, account: Account, call: Call, effect: Effect) -> Answer:
        world = self.world
        body = _json_body(call)
        work = validation.submission(
            body, lambda path: world.uploads.stored_type(account.api_key, path)
        )
        directives = parse(work.texts)
        for name in ("submit", "get"):
            wish = directives.word(name)
            if wish is not None:
                _check_wish(name, wish)
        refusal = directives.word("refuse")
        if refusal is not None:
            raise ApiError(refusal)
        spare = account.remaining
        if world.config.count_pending:
            spare -= account.pending_cost
        if spare < cost(work.model, work.resolution, work.duration):
            raise ApiError("INSUFFICIENT_CREDIT")
        has_slot = world.tasks.has_slot(account)
        mode = effect.concurrency or (None if has_slot else world.config.concurrency_mode)
        if mode == "refused":
            raise ApiError("CONCURRENCY_LIMIT_REACHED")
        task = world.create(
            account,
            work,
            body,
            directives=directives,
            headers=call.submit.headers if call.submit else None,
            take_slot=has_slot,
        )
        if call.submit is not None:
            call.submit.task_id = task.task_id
        result: dict[str, object] = {
            "task_id": task.task_id,
            "status": task.status_at(world.clock.now()),
            "credit_cost": as_number(task.cost),
        }
        if mode is not None:
            shown = result if mode == "created_with_id" else None
            raise ApiError("CONCURRENCY_LIMIT_REACHED", result=shown)
        return success(result)

    def _get(self, account: Account, call: Call) -> Answer:
        return success(task_object(self.world, self._own(account, call), call.origin))

    def _list(self, account: Account, call: Call) -> Answer:
        page, size, status = validation.list_query(call.query)
        world = self.world
        world.drift(account)
        now = world.clock.now()
        tasks, total = account.listing.page(
            order=world.config.list_order,
            status=status,
            page=page,
            size=size,
            visible=lambda task: world.may_see(task, "list_lag"),
            status_of=lambda task: task.status_at(now),
            updated=world.updated_wall,
            rng=world.rng,
        )
        data = [list_item(world, task, call.origin) for task in tasks]
        return success({"data": data, "total": total, "page": page, "page_size": size})

    def _cancel(self, account: Account, call: Call) -> Answer:
        task = self._own(account, call)
        if task.status_at(self.world.clock.now()) in TERMINAL:
            raise ApiError("TASK_CANCEL_NOT_ALLOWED")
        status = self.world.cancel(task)
        return success({"task_id": task.task_id, "status": status})

    def _balance(self, account: Account, _: Call) -> Answer:
        return success(
            {
                "total_credits": as_number(account.total),
                "used_credits": as_number(account.used),
                "remain_credits": as_number(account.remaining),
            }
        )

    def _own(self, account: Account, call: Call) -> Task:
        task = self.world.tasks.find(call.task_id or "")
        if (
            task is None
            or task.api_key != account.api_key
            or not self.world.may_see(task, "get_lag")
        ):
            raise ApiError("TASK_NOT_FOUND")
        return task


def _json_body(call: Call) -> Any:
    if call.content_type != "application/json":
        raise invalid("Content-Type must be application/json")
    try:
        return json.loads(call.body)
    except ValueError:
        raise invalid("request body must be JSON in UTF-8") from None


def _texts(body: Any) -> list[str]:
    content = body.get("content") if isinstance(body, dict) else None
    items = content if isinstance(content, list) else []
    texts = [item.get("text") for item in items if isinstance(item, dict)]
    return [text for text in texts if isinstance(text, str)]


def _check_wish(name: str, wish: str) -> None:
    try:
        from_directive(wish)
    except ValueError as error:
        raise invalid(f"[sim: {name}={error}]") from None
