"""Whether bytes are the video or the picture that they should be."""

import io
from pathlib import Path

import pytest

from models.artifacts import Kind
from worker.archive.media import NotMediaError, content_type, extension

MEDIA = Path(__file__).parents[2] / "examples" / "media"
VIDEO = (MEDIA / "camera-move.mp4").read_bytes()
PICTURE = (MEDIA / "lake.jpg").read_bytes()


def box(name: bytes, content: bytes = b"") -> bytes:
    return (8 + len(content)).to_bytes(4, "big") + name + content


FTYP = box(b"ftyp", b"isom\0\0\2\0isomiso2avc1mp41")
MOOV = box(b"moov", box(b"mvhd", b"x" * 100))


def found(data: bytes, kind: Kind = Kind.VIDEO, declared: str = "") -> str:
    return content_type(kind, declared, data[:4096], io.BytesIO(data), len(data))


@pytest.mark.parametrize(
    "declared", ["", "video/mp4", "application/octet-stream", "binary/octet-stream"]
)
def test_a_video_is_a_video(declared):
    assert found(VIDEO, declared=declared) == "video/mp4"


def test_a_picture_is_a_picture():
    assert found(PICTURE, Kind.LAST_FRAME, "image/jpeg") == "image/jpeg"


@pytest.mark.parametrize("declared", ["text/html", "application/xml", "image/jpeg", "audio/mp4"])
def test_what_is_declared_as_something_else_is_refused(declared):
    with pytest.raises(NotMediaError, match=f"declared '{declared}', video/"):
        found(VIDEO, declared=declared)


@pytest.mark.parametrize(
    ("data", "named"),
    [
        (b"<html>We are down</html>", "unknown type"),
        (b'{"code": "500"}', "unknown type"),
        (PICTURE, "image/jpeg"),
        (box(b"ftyp", b"M4A \0\0\0\0") + MOOV, "audio/mp4"),
        (b"\0" * 5000, "unknown type"),
        (b"", "unknown type"),
    ],
)
def test_what_is_no_video_is_refused_by_its_content(data, named):
    with pytest.raises(NotMediaError, match=named):
        found(data)


def test_a_video_is_no_last_frame():
    with pytest.raises(NotMediaError, match="video/mp4, no image"):
        found(VIDEO, Kind.LAST_FRAME)


@pytest.mark.parametrize("length", [40, 1_000, len(VIDEO) // 2, len(VIDEO) - 1])
def test_a_video_that_was_cut_off_is_not_whole(length):
    with pytest.raises(NotMediaError, match=r"does not end|no box b?'moov'"):
        found(VIDEO[:length])


@pytest.mark.parametrize(
    "data",
    [
        FTYP + MOOV + box(b"mdat", b"x" * 50),
        FTYP + box(b"mdat", b"x" * 50) + MOOV,
        FTYP + MOOV + b"\0\0\0\0mdat" + b"x" * 50,  # a box without a size: to the end
        FTYP + MOOV + b"\0\0\0\1mdat" + (66).to_bytes(8, "big") + b"x" * 50,  # one of 64 bits
        FTYP + MOOV + box(b"mdat", b"x" * 50) + b"\0\0\0",  # fewer bytes than any box has
        MOOV + box(b"mdat"),  # an old QuickTime movie
    ],
)
def test_boxes_in_every_order_and_size(data):
    assert found(data) in ("video/mp4", "video/quicktime")


@pytest.mark.parametrize(
    ("data", "named"),
    [
        (FTYP + box(b"mdat", b"x" * 50), "moov"),
        (FTYP + MOOV + b"\0\0\0\5mdat", "does not end"),
        (FTYP + MOOV + b"\0\0\0\1mdat" + (2**62).to_bytes(8, "big"), "does not end"),
        (FTYP + MOOV + (2**31).to_bytes(4, "big") + b"mdat", "does not end"),
    ],
)
def test_boxes_that_can_not_be_are_refused(data, named):
    with pytest.raises(NotMediaError, match=named):
        found(data)


@pytest.mark.parametrize(
    ("type_", "ending"),
    [
        ("video/mp4", ".mp4"),
        ("video/webm", ".webm"),
        ("video/quicktime", ".mov"),
        ("image/jpeg", ".jpg"),
        ("image/png", ".png"),
        ("video/x-unheard-of", ""),
    ],
)
def test_names_end_as_their_content_wants(type_, ending):
    assert extension(type_) == ending
