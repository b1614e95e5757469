"""Tasks that nobody submitted, and hands laid on those that exist: for tests."""

from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from typing import Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from simulator import media
from simulator.directives import parse
from simulator.errors import describe
from simulator.tasks import TERMINAL, Outcome, Phases, Task
from simulator.validation import submission
from simulator.world import World

Status = Literal["pending", "queued", "processing", "completed", "failed", "cancelled", "expired"]


class Shown(BaseModel):
    """What may be laid down about a task, new or existing."""

    model_config = ConfigDict(extra="forbid")

    status: Status | None = Field(None, description="A terminal one ends the task now.")
    error_code: str | None = None
    error_message: str | None = None
    credit_cost: Decimal | None = None
    seed: int | None = Field(None, description="The seed that the task shows as used.")
    created_at: AwareDatetime | None = None
    updated_at: AwareDatetime | None = None


class Injection(Shown):
    """What `POST /admin/tasks` takes: any field of a submit body as well, plus `count`."""

    model_config = ConfigDict(extra="allow")

    api_key: str | None = Field(None, description="Whose task; None: the first key's.")
    task_id: str | None = Field(None, description="The task's id, where an odd one is wanted.")
    count: int = Field(1, ge=1, le=200_000)
    age: float | None = Field(None, description="Created this many seconds ago.")
    seconds: float | None = Field(None, ge=0, description="Simulated seconds until it ends.")
    charge: bool = Field(False, description="Whether a task injected as completed is charged.")


class Change(Shown):
    """What `PATCH /admin/tasks/{id}` takes."""


def inject(world: World, order: Injection) -> list[Task]:
    """Create foreign tasks. Raises ApiError for a bad submit field, ValueError for a bad key."""
    account = world.named_account(order.api_key)
    body: dict[str, Any] = {
        "content": [{"type": "text", "text": "a task of some other program"}],
        **(order.model_extra or {}),
    }
    if order.seed is not None:
        body["seed"] = order.seed
    work = submission(body, lambda _: "image/png")
    directives = parse(work.texts)
    tasks = []
    for _ in range(order.count):
        task = world.prepare(account, work, body, directives=directives)
        task.origin = "injected"
        task.task_id = order.task_id or task.task_id
        if order.age is not None:
            task.created_wall -= order.age
        _lay_down(task, order)
        if order.status in ("queued", "processing") or order.seconds is not None:
            task.phases = _phases(task.phases, order)
        ended = order.status if order.status in TERMINAL else None
        if ended and not order.charge:
            task.outcome, task.final = _outcome(ended, order), ended
            task.ended_sim = task.created_sim
            task.updated_wall = task.updated_wall or task.created_wall
        world.tasks.add(account, task)
        if ended and order.charge:
            world.tasks.end(task, _outcome(ended, order), world.clock.now())
        tasks.append(task)
    return tasks


def change(world: World, task: Task, order: Change) -> None:
    """Change what a task shows, or end it. Raises ValueError when it has ended otherwise."""
    world.tasks.advance()
    if order.status is not None and order.status not in TERMINAL:
        raise ValueError("only a terminal status can be set; use advance or speed for the others")
    if order.status and task.final and task.final != order.status:
        raise ValueError(f"the task is {task.final} already")
    if order.created_at is not None:
        raise ValueError("created_at is fixed once the task is there: inject it so")
    _lay_down(task, order)
    if order.status is not None:
        world.tasks.end(task, _outcome(order.status, order), world.clock.now())


def view(world: World, task: Task) -> dict[str, Any]:
    """A task as the admin API shows it: with all that the provider's callers can't see."""
    now = world.clock.now()
    status = task.status_at(now)
    mark = "" if world.config.same_media else task.task_id
    ends = world.clock.wall_of(task.ended_sim) if task.final is not None else None
    return {
        "task_id": task.task_id,
        "api_key": task.api_key,
        "origin": task.origin,
        "status": status,
        "body": task.body,
        "seed": task.seed_used,
        "seed_given": task.work.seed,
        "cost": str(task.cost),
        "charged": str(task.charged),
        "video_sha256": media.sha256(media.video(mark)) if status == "completed" else None,
        "error_code": task.outcome.error_code if status == "failed" else None,
        "created_at": task.created_wall,
        "updated_at": world.updated_wall(task),
        "ended_at": ends,
        "waiting_for_slot": task.slot_sim is None and task.final is None,
        "cancel_asked": task.cancel_asked_sim is not None,
        "directives": task.directives.words,
        "headers": task.headers,
        "callbacks": task.callbacks,
    }


def chosen(world: World, filters: Mapping[str, str]) -> list[Task]:
    """The tasks that fit the filters: api_key, status, origin, text, limit."""
    now = world.clock.now()
    tasks = [
        task
        for task in world.tasks.all()
        if filters.get("api_key") in (None, task.api_key)
        and filters.get("origin") in (None, task.origin)
        and filters.get("status") in (None, task.status_at(now))
        and ("text" not in filters or any(filters["text"] in text for text in task.work.texts))
    ]
    return tasks[-int(filters["limit"]) :] if "limit" in filters else tasks


def _lay_down(task: Task, order: Shown) -> None:
    if order.seed is not None:
        task.seed_used = order.seed
    if order.created_at is not None:
        task.created_wall = _epoch(order.created_at)
    if order.updated_at is not None:
        task.updated_wall = _epoch(order.updated_at)
    if order.credit_cost is not None and task.final is None:
        task.cost = order.credit_cost


def _phases(drawn: Phases, order: Injection) -> Phases:
    total = drawn.processing if order.seconds is None else order.seconds
    if order.status == "queued":
        return Phases(0, total / 2, total / 2)
    if order.status == "processing":
        return Phases(0, 0, total)
    share = total / (drawn.pending + drawn.queued + drawn.processing)
    return Phases(drawn.pending * share, drawn.queued * share, drawn.processing * share)


def _outcome(status: str, order: Shown) -> Outcome:
    if status != "failed":
        return Outcome(status)
    code = order.error_code or "VIDEO_DOWNLOAD_FAILED"
    return Outcome("failed", code, order.error_message or describe(code))


def _epoch(at: datetime) -> float:
    return at.timestamp()
