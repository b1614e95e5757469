"""What the document says a request must be. Pure: needs only to be told which files exist."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from simulator.errors import invalid, missing
from simulator.pricing import PRICES

CONTENT_TYPES = {
    "image/png": (".png",),
    "image/jpeg": (".jpg", ".jpeg"),
    "image/webp": (".webp",),
    "video/mp4": (".mp4",),
    "video/quicktime": (".mov",),
    "video/webm": (".webm",),
}
STATUSES = ("pending", "queued", "processing", "completed", "failed", "cancelled", "expired")
ITEM_TYPES = ("text", "image_url", "video_url", "audio_url", "sample_id")
MODELS = tuple(dict.fromkeys(model for model, _ in PRICES))
RESOLUTIONS = ("480p", "720p", "1080p")

_RATIO = re.compile(r"[1-9][0-9]{0,3}:[1-9][0-9]{0,3}|adaptive")

FindUpload = Callable[[str], str | None]
"""From a file_path to the content type of the bytes stored there, None if there are none."""


@dataclass(frozen=True, slots=True)
class Submission:
    """A submit body that passed, with the document's defaults filled in."""

    model: str
    content: tuple[dict[str, str], ...]
    resolution: str
    ratio: str
    duration: int
    generate_audio: bool
    seed: int | None
    watermark: bool
    callback_url: str | None
    return_last_frame: bool

    @property
    def texts(self) -> list[str]:
        """The text prompts."""
        return [item["text"] for item in self.content if item["type"] == "text"]


def submission(body: Any, find_upload: FindUpload) -> Submission:
    """Check a submit body against the document's table of fields."""
    if not isinstance(body, dict):
        raise invalid("request body must be a JSON object")
    content = body.get("content")
    if content is None:
        raise missing("content")
    if not isinstance(content, list):
        raise invalid("content must be an array")
    if not content:
        raise invalid("content must have at least 1 item")
    return Submission(
        model=_choice(body, "model", "seedance-2.0", MODELS),
        content=tuple(_item(item, at, find_upload) for at, item in enumerate(content)),
        resolution=_choice(body, "resolution", "720p", RESOLUTIONS),
        ratio=_ratio(body),
        duration=_duration(body),
        generate_audio=_flag(body, "generate_audio"),
        seed=_seed(body),
        watermark=_flag(body, "watermark"),
        callback_url=_callback(body),
        return_last_frame=_flag(body, "return_last_frame"),
    )


def presign(query: Mapping[str, str]) -> tuple[str, str]:
    """Check the query of a presign call: filename and content type."""
    for name in ("filename", "content_type"):
        if not query.get(name):
            raise missing(name)
    filename, content_type = query["filename"], query["content_type"]
    if len(filename) > 128:
        raise invalid("filename must be at most 128 characters")
    if content_type not in CONTENT_TYPES:
        raise invalid(f"content_type must be one of {', '.join(CONTENT_TYPES)}")
    endings = CONTENT_TYPES[content_type]
    if not filename.lower().endswith(endings):
        raise invalid(f"filename must end in {' or '.join(endings)} for {content_type}")
    return filename, content_type


def list_query(query: Mapping[str, str]) -> tuple[int, int, str | None]:
    """Check the query of a list call: page, page size, status."""
    page = _whole(query, "page", 1)
    if page < 1:
        raise invalid("page must be 1 or above")
    size = _whole(query, "page_size", 20)
    if not 1 <= size <= 100:
        raise invalid("page_size must be 1-100")
    status = query.get("status") or None
    if status is not None and status not in STATUSES:
        raise invalid(f"status must be one of {', '.join(STATUSES)}")
    return page, size, status


def _item(item: Any, at: int, find_upload: FindUpload) -> dict[str, str]:
    where = f"content[{at}]"
    if not isinstance(item, dict):
        raise invalid(f"{where} must be an object")
    kind = item.get("type")
    if kind is None:
        raise missing(f"{where}.type")
    if kind not in ITEM_TYPES:
        raise invalid(f"{where}.type must be one of {', '.join(ITEM_TYPES)}")
    if kind not in item:
        raise missing(f"{where}.{kind}")
    for name in item:
        if name not in ("type", kind):
            raise invalid(f"{where} of type {kind} must not have {name}")
    value = item[kind]
    if not isinstance(value, str) or not value.strip():
        raise invalid(f"{where}.{kind} must be a non-empty string")
    if kind.endswith("_url") and not _is_url(value):
        stored = find_upload(value)
        if stored is None:
            raise invalid(f"{where}.{kind} is neither an uploaded file_path nor an http(s) URL")
        wanted = kind.removesuffix("_url")
        if wanted in ("image", "video") and not stored.startswith(wanted):
            raise invalid(f"{where}.{kind} must be {wanted}, the file is {stored}")
    return {"type": kind, kind: value}


def _is_url(value: str) -> bool:
    try:
        parts = urlsplit(value)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.netloc)


def _choice(body: dict[str, Any], name: str, default: str, allowed: tuple[str, ...]) -> str:
    value = body.get(name, default)
    if not isinstance(value, str) or value not in allowed:
        raise invalid(f"{name} must be one of {', '.join(allowed)}")
    return value


def _ratio(body: dict[str, Any]) -> str:
    # The document's list of ratios is blank, so only the form is checked.
    value = body.get("ratio", "16:9")
    if not isinstance(value, str) or not _RATIO.fullmatch(value):
        raise invalid("ratio must be W:H or adaptive")
    return value


def _duration(body: dict[str, Any]) -> int:
    value = body.get("duration", 5)
    if type(value) is not int or not 4 <= value <= 15:
        raise invalid("duration must be 4-15")
    return value


def _seed(body: dict[str, Any]) -> int | None:
    value = body.get("seed")
    if value is not None and (type(value) is not int or value < -1):
        raise invalid("seed must be -1 or above")
    return value


def _flag(body: dict[str, Any], name: str) -> bool:
    value = body.get(name, False)
    if not isinstance(value, bool):
        raise invalid(f"{name} must be a boolean")
    return value


def _callback(body: dict[str, Any]) -> str | None:
    value = body.get("callback_url")
    if value is None:
        return None
    if not isinstance(value, str) or not _is_url(value):
        raise invalid("callback_url must be an http(s) URL")
    if len(value) > 512:
        raise invalid("callback_url must be at most 512 characters")
    return value


def _whole(query: Mapping[str, str], name: str, default: int) -> int:
    value = query.get(name)
    if value is None or value == "":
        return default
    if not value.isascii() or not value.isdigit() or len(value) > 9:
        raise invalid(f"{name} must be an integer")
    return int(value)
