"""How a client behaves: one frozen value, checked when it is built."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlsplit

from api_client.errors import InvalidRequest

DEFAULT_BASE_URL: Final = "https://api.seedance2.movie"

_KEY = re.compile(r"[\x21-\x7e]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientConfig:
    """Settings of a `SeedanceClient`; times in seconds, sizes in bytes.

    One HTTP request lasts at most `connect_timeout` for each address of the host, plus
    `total_timeout`, also if the server trickles its answer byte by byte; only the look-up of the
    name is left to the system. A call makes at most `max_attempts` of them, with pauses of at most
    `backoff_cap` (or `max_retry_after`, if the server asks) in between.
    """

    api_key: str = field(repr=False)
    base_url: str = DEFAULT_BASE_URL
    connect_timeout: float = 3.05
    read_timeout: float = 30.0
    """Longest silence while waiting for the server, or for it to take what is written."""
    total_timeout: float = 60.0
    """From the first byte of a request to the last of its answer. Uploads have their own."""
    upload_timeout: float = 600.0
    """The same for the PUT of a file."""
    max_attempts: int = 4
    """1 means that nothing is ever tried again."""
    backoff_base: float = 0.5
    """A pause is drawn evenly from 0 to base × 2ⁿ (full jitter)."""
    backoff_cap: float = 8.0
    max_retry_after: float = 30.0
    """A longer Retry-After is not waited for: the error is raised and carries it."""
    max_answer: int = 16 * 1024 * 1024
    """A longer answer is refused, not read."""
    pool_size: int = 64
    """Connections kept open to each host; at least the number of threads that share the client."""
    max_idle: float = 20.0
    """A connection idle for longer is not used again: the server may be closing it just then,
    and a submit lost that way is in doubt."""
    ca_bundle: str | None = None
    """A file or folder of certificates to trust, instead of the usual ones."""

    def __post_init__(self) -> None:
        if not isinstance(self.api_key, str) or not _KEY.fullmatch(self.api_key):
            # The message must not hold the key.
            raise InvalidRequest("api_key", "…", "printable ASCII without spaces, not empty")
        url = urlsplit(self.base_url)
        if (
            url.scheme not in ("http", "https")
            or not url.hostname
            or url.query
            or url.fragment
            or "@" in url.netloc
        ):
            raise InvalidRequest("base_url", self.base_url, "http(s)://host[:port][/path]")
        object.__setattr__(self, "base_url", self.base_url.rstrip("/"))
        for name in (
            "connect_timeout",
            "read_timeout",
            "total_timeout",
            "upload_timeout",
            "max_idle",
        ):
            self._check(name, above=0)
        for name in ("backoff_base", "backoff_cap", "max_retry_after"):
            self._check(name, above=-math.ulp(0.0))
        for name in ("max_attempts", "max_answer", "pool_size"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise InvalidRequest(name, value, "a whole number of at least 1")

    def _check(self, name: str, *, above: float) -> None:
        value = getattr(self, name)
        if (
            not isinstance(value, int | float)
            or isinstance(value, bool)
            or not math.isfinite(value)
            or value <= above
        ):
            bound = "a number above 0" if above == 0 else "a number of at least 0"
            raise InvalidRequest(name, value, bound)
