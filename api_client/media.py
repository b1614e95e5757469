"""Which files may be uploaded: six types, told by content and by extension.

The signatures are those of the MIME Sniffing Standard (https://mimesniff.spec.whatwg.org/,
section 6) and, for what follows `ftyp`, of ISO/IEC 14496-12 and Apple's QuickTime File Format.
General detectors were tried and found to know only a few of the brands that MP4 files begin with.
"""

from __future__ import annotations

from pathlib import PurePosixPath, PureWindowsPath
from typing import Final

from api_client.errors import InvalidRequest

EXTENSIONS: Final[dict[str, str]] = {
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".webp": "image/webp",
    ".mp4": "video/mp4",
    ".mov": "video/quicktime",
    ".webm": "video/webm",
}
"""Section "Allowed Content Types"."""

HEAD: Final = 4096
"""How many of a file's first bytes `media_type` wants to see."""

MAX_FILENAME: Final = 128
"""Characters (section "Get Presigned Upload URL")."""

_ALLOWED: Final = ", ".join(f"{type_} ({ext})" for ext, type_ in EXTENSIONS.items())

# First atoms of a QuickTime movie without `ftyp`, which is younger than the format.
_QUICKTIME_ATOMS: Final = frozenset({b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot"})

# Brands of the same container that are no MP4 video.
_OTHER_BRANDS: Final[dict[bytes, str]] = {
    b"heic": "image/heic",
    b"heix": "image/heic",
    b"heim": "image/heic",
    b"heis": "image/heic",
    b"hevc": "image/heic-sequence",
    b"mif1": "image/heif",
    b"msf1": "image/heif-sequence",
    b"avif": "image/avif",
    b"avis": "image/avif",
    b"crx ": "image/x-canon-cr3",
    b"M4A ": "audio/mp4",
    b"M4B ": "audio/mp4",
    b"M4P ": "audio/mp4",
}


def sniff(head: bytes) -> str:
    """The type that a file's first bytes tell, "" for an unknown one."""
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if head.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if head.startswith(b"RIFF") and head[8:14] == b"WEBPVP":
        return "image/webp"
    if head.startswith(b"\x1aE\xdf\xa3"):
        return "video/webm" if _doctype(head) == b"webm" else "video/x-matroska"
    return _iso_media(head)


def _doctype(head: bytes) -> bytes:
    """DocType (0x4282) of an EBML header: the identifier, a length of one byte, the text."""
    at = head.find(b"\x42\x82")
    if at < 0 or at + 3 > len(head) or not head[at + 2] & 0x80:
        return b""
    return head[at + 3 : at + 3 + (head[at + 2] & 0x7F)].rstrip(b"\0")


def _iso_media(head: bytes) -> str:
    kind = head[4:8]
    if kind in _QUICKTIME_ATOMS:
        return "video/quicktime"
    if kind != b"ftyp" or len(head) < 12:
        return ""
    major = head[8:12]
    if major == b"qt  ":
        return "video/quicktime"
    if major in _OTHER_BRANDS:
        return _OTHER_BRANDS[major]
    size = int.from_bytes(head[:4], "big")
    compatible = {head[at : at + 4] for at in range(16, min(size, len(head)), 4)}
    mp4 = any(brand[:3] in (b"iso", b"mp4", b"avc") for brand in compatible)
    if major[:2] == b"3g" and not mp4:
        return "video/3gpp"
    return "video/mp4"


def media_type(head: bytes, filename: str) -> str:
    """The content type of a file that may be uploaded.

    `head` is the file's beginning (`HEAD` bytes, or all of it). Content and extension must agree
    on one of the six allowed types; otherwise raises `InvalidRequest`, which names both.
    """
    extension = PurePosixPath(filename).suffix.lower()
    by_name = EXTENSIONS.get(extension, "")
    by_content = sniff(head)
    if by_name and by_name == by_content:
        return by_name
    found = f"content is {by_content or 'of an unknown type'}"
    named = f"extension is {extension or 'missing'}"
    hint = ""
    if by_content.startswith("audio/") or head.startswith((b"ID3", b"OggS", b"fLaC")):
        hint = "; audio can't be uploaded, give audio_url a URL or path that exists"
    raise InvalidRequest(
        "file", f"{filename}: {found}, {named}", f"{_ALLOWED}, content and extension alike{hint}"
    )


def check_filename(filename: str) -> str:
    """The bare name, at most `MAX_FILENAME` characters; raises `InvalidRequest`."""
    name = PureWindowsPath(filename).name
    if not name or len(name) > MAX_FILENAME:
        raise InvalidRequest("filename", filename, f"1 to {MAX_FILENAME} characters")
    return name
