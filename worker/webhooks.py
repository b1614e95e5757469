"""Sending one webhook: signed as Standard Webhooks has it, to a checked address, once.

What a receiver may do to us is bounded: its address is checked after the name was looked up and
is the one connected to, no redirect is followed, the whole exchange has a time, and of its answer
only the status and one header are read.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from http.client import HTTPException
from typing import Any

import requests
import urllib3
from requests_hardened.ip_filter import InvalidIPAddress
from standardwebhooks import Webhook

from api_client import redact, wire
from api_client.transport import retry_after
from worker.notify import ALLOW_PRIVATE
from worker.outgoing import CheckedAdapter, OpenAdapter

GONE = 410
_BUSY = frozenset({408, 425, 429})
_SERVER_ERROR = 500


@dataclass(frozen=True)
class Taken:
    """The receiver has it."""


@dataclass(frozen=True)
class Refused:
    """It was not taken. `why` names no address."""

    why: str
    alive: bool
    """Whether the receiver is well and means this notice alone."""
    retry_after: float | None = None
    """Seconds until it wants to hear again."""
    for_good: bool = False
    """It says that it will never take one."""


Answer = Taken | Refused


class _CheckedAdapter(CheckedAdapter, wire.Adapter):
    """Refuses private addresses, connects to the one that was checked, and minds the time."""


class _OpenAdapter(OpenAdapter, wire.Adapter):
    """Minds the time."""


@dataclass(frozen=True)
class Sender:
    """How webhooks are sent; safe to share between threads."""

    secrets: Sequence[str]
    private: bool
    """Whether private addresses and plain http are allowed."""
    connect_timeout: float
    total_timeout: float

    def send(
        self, address: str, notice_id: str, payload: Mapping[str, Any], *, at: datetime
    ) -> Answer:
        """One POST of a notice. Needs at least one secret.

        `at`: the time, by a clock that can be trusted; receivers refuse what is minutes off.
        """
        body = json.dumps(payload, ensure_ascii=False, separators=(",", ":"))
        with requests.Session() as session:
            # Neither a netrc entry nor a proxy of the environment may change where it goes.
            session.trust_env = False
            session.mount("http://", self._adapter(https=False))
            session.mount("https://", self._adapter(https=True))
            return self._post(session, address, body.encode(), self._headers(notice_id, body, at))

    def _adapter(self, *, https: bool) -> requests.adapters.HTTPAdapter:
        if self.private:
            return _OpenAdapter(seconds=self.connect_timeout)
        return _CheckedAdapter(https=https, seconds=self.connect_timeout)

    def _headers(self, notice_id: str, body: str, at: datetime) -> dict[str, str]:
        now = at.astimezone(UTC)
        signed = [Webhook(secret).sign(notice_id, now, body) for secret in self.secrets]
        return {
            "Content-Type": "application/json",
            "User-Agent": "seedance-worker",
            "webhook-id": notice_id,
            "webhook-timestamp": str(int(now.timestamp())),
            "webhook-signature": " ".join(signed),
        }

    def _post(
        self, session: requests.Session, address: str, body: bytes, headers: Mapping[str, str]
    ) -> Answer:
        timeout, total = self.connect_timeout, self.total_timeout
        state = wire.Wire(timeout=total, total=total, max_idle=0.0)
        try:
            # Asked again here: the setting may have changed since it was enqueued.
            if not self.private and not address.startswith("https://"):
                return Refused(f"plain http is sent only where {ALLOW_PRIVATE} is set", alive=True)
            with (
                wire.using(state),
                session.post(
                    address,
                    data=body,
                    headers=headers,
                    timeout=(timeout, total),
                    allow_redirects=False,
                    stream=True,  # of the body nothing is read
                ) as answer,
            ):
                return judge(answer.status_code, answer.headers.get("Retry-After"))
        except InvalidIPAddress:
            return Refused(
                f"its address is private, which {ALLOW_PRIVATE} would have to allow", alive=True
            )
        except (
            requests.RequestException,
            urllib3.exceptions.HTTPError,
            HTTPException,
            OSError,
            ValueError,  # a host name that can't be encoded
        ) as error:
            return Refused(_reason(error), alive=False)


def judge(status: int, wait: str | None) -> Answer:
    """What an answer means. Only 2xx is a yes, and only 410 a no for good."""
    if 200 <= status < 300:
        return Taken()
    why = f"HTTP {status}"
    if status == GONE:
        return Refused(f"{why}: it wants no more", alive=True, for_good=True)
    busy = status in _BUSY or status >= _SERVER_ERROR
    return Refused(why, alive=not busy, retry_after=retry_after(wait, None) if busy else None)


def _reason(error: Exception) -> str:
    """The innermost of the nested errors, by name: their texts have addresses in them."""
    for _ in range(8):
        inner = getattr(error, "reason", None) or next(
            (arg for arg in error.args if isinstance(arg, BaseException)), None
        )
        if not isinstance(inner, Exception):
            break
        error = inner
    text = redact(str(error)).rsplit(">: ", 1)[-1].rsplit("): ", 1)[-1]
    # Some of it the receiver may have written: one line, that the table can keep.
    text = "".join(c if c.isprintable() else " " for c in text).strip()
    return f"{type(error).__name__}: {text}"[:200]
