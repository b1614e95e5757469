"""Whether what was fetched is what it should be: by its first bytes, and whole by its structure."""

import mimetypes
from typing import BinaryIO

from api_client.media import EXTENSIONS, sniff
from models.artifacts import Kind

_FAMILY = {Kind.VIDEO: "video", Kind.LAST_FRAME: "image"}
_SAYS_NOTHING = frozenset({"", "application/octet-stream", "binary/octet-stream"})
_BY_TYPE = {type_: extension for extension, type_ in reversed(EXTENSIONS.items())}
_BOX_HEADER = 8
_MOST_BOXES = 100_000


class NotMediaError(Exception):
    """The bytes are not what the provider was asked for."""


def content_type(kind: Kind, declared: str, head: bytes, file: BinaryIO, size: int) -> str:
    """The type of a fetched file. Raises NotMediaError, which names what it is instead.

    A video in the MP4 family is also looked through: its boxes must fill the file and describe a
    movie, so that one that was cut off before it got here isn't taken for whole.
    """
    family = _FAMILY[kind]
    if declared not in _SAYS_NOTHING and not declared.startswith(f"{family}/"):
        raise NotMediaError(f"it is declared {declared[:80]!r}, {family}/… was expected")
    found = sniff(head)
    if not found.startswith(f"{family}/"):
        raise NotMediaError(f"its content is {found or 'of an unknown type'}, no {family}")
    if found in ("video/mp4", "video/quicktime"):
        _look_through(file, size)
    return found


def extension(type_: str) -> str:
    """What the names of such files end with."""
    return _BY_TYPE.get(type_) or mimetypes.guess_extension(type_) or ""


def _look_through(file: BinaryIO, size: int) -> None:
    """The top-level boxes of ISO/IEC 14496-12: sizes, `moov` and no end beyond the file's."""
    at, found = 0, set()
    for _ in range(_MOST_BOXES):
        if at + _BOX_HEADER > size:
            break
        file.seek(at)
        header = file.read(16)
        length, name = int.from_bytes(header[:4], "big"), header[4:8]
        if length == 1:
            length = int.from_bytes(header[8:16], "big")
        elif length == 0:
            length = size - at  # to the end
        if length < _BOX_HEADER or at + length > size:
            raise NotMediaError(f"its box {name!r} at {at} does not end within its {size} bytes")
        found.add(name)
        at += length
    if b"moov" not in found:
        raise NotMediaError("it has no box 'moov': no player could make anything of it")
