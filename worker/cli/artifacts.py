"""How a generation's stored, awaited and lost results are shown."""

from collections.abc import Iterator, Sequence
from datetime import datetime

from models.artifacts.reading import ArtifactView
from worker.cli.output import span_text, time_text

_NAMES = {"video": "video", "last_frame": "last frame"}


def lines(artifacts: Sequence[ArtifactView], now: datetime) -> Iterator[str]:
    """A line for each, and one more for what is wrong with it."""
    for one in artifacts:
        name = _NAMES[one.kind]
        if one.stored_at is not None:
            yield f"{name}: {one.uri}"
            size = f"{one.bytes:,} bytes, sha256 {one.sha256}"
            yield f"  stored at {time_text(one.stored_at)}, {size}"
        elif one.lost_at is not None:
            yield f"{name}: lost at {time_text(one.lost_at)} after {one.tries} tries: {one.error}"
        elif one.error is None:
            yield f"{name}: to be stored"
        else:
            again = span_text((one.due_at - now).total_seconds()) if one.due_at else "–"
            left = span_text((one.available_until - now).total_seconds())
            yield f"{name}: not stored after {one.tries} tries, again in {again}: {one.error}"
            yield f"  the provider keeps it for {left}"
