"""What the demo asks for, by which way, and how each has to end."""

import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

from models.lifecycle import Status
from worker.broker_client import client
from worker.producer import enqueue

REFUSAL = "CONTENT_MODERATION_FAILED"
_PACKAGE = Path(__file__).parent.parent.parent
# In a checkout the pictures of the examples, in a wheel those that the simulator serves.
_MEDIA = (
    (_PACKAGE / "examples" / "media", "lake.jpg", "camera-move.mp4"),
    (_PACKAGE / "simulator" / "assets", "last_frame.jpg", "video.mp4"),
)


@dataclass(frozen=True)
class Job:
    """One generation of the demo."""

    name: str
    request: Mapping[str, Any]
    ends: Status = Status.COMPLETED
    error_code: str | None = None
    events: tuple[str, ...] = ()
    """Events that its history must have."""
    by: str = "enqueue()"
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def charged(self) -> bool:
        """Only what completes is charged."""
        return self.ends is Status.COMPLETED


def media() -> tuple[Path, str, str]:
    """The folder of the references, a picture and a video in it."""
    for folder, picture, video in _MEDIA:
        if (folder / picture).is_file() and (folder / video).is_file():
            return folder, picture, video
    raise FileNotFoundError("neither examples/media nor the simulator's assets are there")


def jobs() -> list[Job]:
    """The generations that the demo makes."""
    _, picture, video = media()
    return [
        Job(
            "text to video",
            _request("A paper boat crosses a puddle at dawn", duration=8),
            options={"metadata": {"order": 1}, "priority": 5},
        ),
        Job(
            "image to video",
            _request("Mist lifts off the lake", image_url=f"path:{picture}", ratio="adaptive"),
            events=("uploaded",),
        ),
        Job(
            "video reference",
            _request(
                "The same move through a library",
                video_url=f"path:{video}",
                model="seedance-2.0-fast",
                resolution="480p",
            ),
            events=("uploaded",),
        ),
        Job(
            "refused prompt",
            _request(f"What no provider would show [sim: refuse={REFUSAL}]"),
            ends=Status.FAILED,
            error_code=REFUSAL,
            events=("refuse",),
        ),
        Job(
            "any Celery client",
            _request("Lanterns rise over a river", generate_audio=True),
            by="send_task()",
        ),
        Job(
            "answer lost",
            _request("A fox in the snow looks back [sim: submit=lost]"),
            events=("doubt", "adopt"),
        ),
    ]


def _request(text: str, **fields: Any) -> dict[str, Any]:
    kinds = [kind for kind in ("image_url", "video_url") if kind in fields]
    references = [{"type": kind, kind: fields.pop(kind)} for kind in kinds]
    return {"content": [{"type": "text", "text": text}, *references], **fields}


def send(job: Job, broker_url: str, webhook: str) -> uuid.UUID:
    """Enqueue a job the way it says, and return the generation's id; `webhook` is told its end."""
    options = {"tenant": "demo", "notify": {"webhook": webhook}, **job.options}
    if job.by == "send_task()":
        return _bare_client(broker_url)(job.request, options)
    return enqueue(job.request, **options)


def _bare_client(
    broker_url: str,
) -> Callable[[Mapping[str, Any], Mapping[str, Any]], uuid.UUID]:
    """A Celery client that knows the broker's address and the task's name, and nothing else."""

    def send_task(request: Mapping[str, Any], options: Mapping[str, Any]) -> uuid.UUID:
        with client(broker_url) as app:
            sent = app.send_task("seedance.generate", kwargs={"request": dict(request), **options})
        # The generation's id is the id of the task.
        return uuid.UUID(sent.id)

    return send_task


def total(amounts: list[Decimal | None]) -> Decimal:
    """A sum of credits, of those that are known."""
    return sum((amount for amount in amounts if amount is not None), Decimal(0))
