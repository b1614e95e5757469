"""The address at which the provider calls back for one attempt: written, read, and hidden.

Its path is a secret: whoever knows it can make one look at the provider happen now and then. It
goes to the provider and nowhere else.
"""

import re
import secrets
import uuid
from collections.abc import Mapping
from typing import Any

from models.callbacks import Address
from worker.settings import Settings

PREFIX = "/callbacks/"
_SECRET_BYTES = 32
_PATH = re.compile(r"/callbacks/([0-9a-f]{32})/([1-9][0-9]{0,5})/([A-Za-z0-9_-]{43})")
_HIDDEN = re.compile(r"(/callbacks/[^\s/\"'<>]{1,64}/[^\s/\"'<>]{1,16}/)[^\s/\"'<>]+")


def draw(settings: Settings, request: Mapping[str, Any]) -> str | None:
    """A fresh secret of 256 bits for one attempt; None where we ask for no callback.

    That is without SEEDANCE_PUBLIC_URL, and for a request with a `callback_url` of its producer's.
    """
    if not settings.public_url or request.get("callback_url"):
        return None
    return secrets.token_urlsafe(_SECRET_BYTES)


def url(settings: Settings, to: Address) -> str:
    """The address that the provider is given."""
    return f"{settings.public_url}{PREFIX}{to.generation_id.hex}/{to.attempt}/{to.secret}"


def read(path: str) -> Address | None:
    """Whom a path addresses; None for one that `url` never wrote."""
    found = _PATH.fullmatch(path)
    if found is None:
        return None
    return Address(uuid.UUID(hex=found[1]), int(found[2]), found[3])


def hidden(text: str) -> str:
    """A text without the secrets of the addresses in it."""
    return _HIDDEN.sub(r"\1…", text)
