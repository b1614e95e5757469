"""How a task looks in the provider's answers."""

import json
from datetime import UTC, datetime
from math import gcd
from typing import Any

from simulator.config import Config
from simulator.pricing import as_number
from simulator.tasks import TERMINAL, Task
from simulator.world import World

_HEIGHTS = {"480p": 480, "720p": 720, "1080p": 1080}


def stamp(wall: float, config: Config) -> str:
    """ISO 8601 in UTC, in whole seconds like the document's example unless set otherwise."""
    at = datetime.fromtimestamp(wall + config.stamp_skew, UTC)
    if config.truncate_stamps:
        at = at.replace(microsecond=0)
    return at.isoformat(timespec="auto" if config.truncate_stamps else "microseconds")[:-6] + "Z"


def task_object(world: World, task: Task, origin: str) -> dict[str, Any]:
    """The whole task object of the document, with freshly signed URLs."""
    config, work = world.config, task.work
    status = task.status_at(world.clock.now())
    video_url = last_frame_url = None
    if status == "completed":
        expires = int(world.clock.validity_now()) + config.url_seconds
        video_url = world.signer.media_url(origin, f"{task.task_id}.mp4", expires)
        if work.return_last_frame:
            last_frame_url = world.signer.media_url(origin, f"{task.task_id}.jpg", expires)
    failed = status == "failed"
    free = status in TERMINAL and status != "completed" and config.cost_of_unsuccessful == "zero"
    return {
        "task_id": task.task_id,
        "model": work.model,
        "status": status,
        "resolution": work.resolution,
        "ratio": ratio(work.ratio, work.resolution, config.ratio_echo),
        "duration": work.duration,
        "generate_audio": work.generate_audio,
        "seed": _seed(task, config.seed_echo),
        "video_url": video_url,
        "last_frame_url": last_frame_url,
        "error_code": task.outcome.error_code if failed else None,
        "error_message": task.outcome.error_message if failed else None,
        "credit_cost": 0 if free else as_number(task.cost),
        "created_at": stamp(task.created_wall, config),
        "updated_at": stamp(world.updated_wall(task), config),
    }


def list_item(world: World, task: Task, origin: str) -> dict[str, Any] | str:
    """The task object as the list shows it: the document's example has strings."""
    shown = task_object(world, task, origin)
    style = world.config.list_items
    if style == "string" or (style == "mixed" and world.rng.random() < 0.5):
        return json.dumps(shown)
    return shown


def ratio(given: str, resolution: str, echo: str) -> str:
    """The ratio as given, or normalised in a way that no longer equals what was sent."""
    if echo == "given" or given == "adaptive":
        return given
    width, height = map(int, given.split(":"))
    if echo == "decimal":
        return f"{width / height:.2f}:1"
    factor = gcd(width, height)
    width, height = width // factor, height // factor
    lines = _HEIGHTS[resolution]
    return f"{round(lines * width / height)}x{lines}"


def _seed(task: Task, echo: str) -> int | str | None:
    if echo == "used":
        return task.seed_used
    if echo == "given":
        return task.work.seed
    if echo == "string":
        return str(task.seed_used)
    return -1 if echo == "minus_one" else None
