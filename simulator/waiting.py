"""Conditions that a test can wait for, instead of sleeping."""

from pydantic import BaseModel, ConfigDict, Field

from simulator.tasks import TERMINAL
from simulator.world import World


class Wait(BaseModel):
    """What `POST /admin/wait` takes: every condition given must hold."""

    model_config = ConfigDict(extra="forbid")

    timeout: float = 30
    endpoint: str | None = Field(None, description="Counted endpoint, with received, answered.")
    received: int = Field(0, ge=0, description="At least this many requests came in.")
    answered: int = Field(0, ge=0, description="At least this many requests were done with.")
    tasks: int = Field(0, ge=0, description="At least this many tasks exist.")
    ended: int = Field(0, ge=0, description="At least this many tasks have ended.")
    task_id: str | None = Field(None, description="This task has `status`, or any terminal one.")
    status: str | None = None
    fault: int | None = Field(None, description="The fault of this id has hit `hits` times.")
    hits: int = 1


def holds(world: World, wait: Wait) -> bool:
    """Whether every condition holds now."""
    world.tasks.advance()
    return (
        _requests(world, wait)
        and len(world.tasks) >= wait.tasks
        and world.tasks.ended_count >= wait.ended
        and _task(world, wait)
        and _fault(world, wait)
    )


def _requests(world: World, wait: Wait) -> bool:
    if wait.endpoint is None:
        return True
    count = world.records.counts.get(wait.endpoint)
    if count is None:
        return wait.received == wait.answered == 0
    return count.received >= wait.received and count.outcomes.total() >= wait.answered


def _task(world: World, wait: Wait) -> bool:
    if wait.task_id is None:
        return True
    task = world.tasks.find(wait.task_id)
    if task is None:
        return False
    status = task.status_at(world.clock.now())
    return status in TERMINAL if wait.status is None else status == wait.status


def _fault(world: World, wait: Wait) -> bool:
    return wait.fault is None or any(
        fault["id"] == wait.fault and fault["hits"] >= wait.hits for fault in world.faults.view()
    )
