"""What tasks leave: a real clip and a real picture, each task's with bytes of its own.

`assets/video.mp4` is a clip of three seconds: 36 frames of H.264 (libx264) in MP4, without sound. A
task's id is put where players look past it, so that its file can be told from all others.
"""

import hashlib
from functools import cache
from importlib.resources import files
from pathlib import Path

ASSETS = Path(str(files("simulator") / "assets"))


@cache
def _asset(name: str) -> bytes:
    return (ASSETS / name).read_bytes()


def video(mark: str) -> bytes:
    """The clip, with a mark in a box that is to be skipped (ISO/IEC 14496-12, "Free Space Box")."""
    text = mark.encode()
    return _asset("video.mp4") + (8 + len(text)).to_bytes(4, "big") + b"free" + text


def last_frame(mark: str) -> bytes:
    """The picture, with a mark in a comment (JPEG's marker COM), which follows its first one."""
    text, picture = mark.encode(), _asset("last_frame.jpg")
    return picture[:2] + b"\xff\xfe" + (2 + len(text)).to_bytes(2, "big") + text + picture[2:]


def sha256(data: bytes) -> str:
    """As the admin API shows it."""
    return hashlib.sha256(data).hexdigest()
