"""Requests to addresses that others named: how they are looked up, and where they may lead.

The operating system's name lookups know no timeout that a caller could set, so here they run beside
the caller, who goes on without them; what they hold is a thread that ends when they do.
"""

import queue
import socket
import threading
from collections.abc import Callable
from typing import Any, TypeVar
from urllib.parse import urlsplit

import requests
from requests_hardened import Config, HTTPSession
from requests_hardened.ip_filter_adapter import IPFilterAdapter

T = TypeVar("T")


class NotHttpsError(requests.RequestException):
    """It is no https, or a redirect leads away from it. Nothing was sent there."""


def within(seconds: float, look_up: Callable[[], T]) -> T:
    """What `look_up` returns or raises. Raises requests.ConnectTimeout where that takes longer."""
    answers: queue.SimpleQueue[tuple[T | None, BaseException | None]] = queue.SimpleQueue()

    def ask() -> None:
        try:
            answers.put((look_up(), None))
        except BaseException as error:  # noqa: BLE001  (raised again by who waits)
            answers.put((None, error))

    threading.Thread(target=ask, name="name lookup", daemon=True).start()
    try:
        found, error = answers.get(timeout=seconds)
    except queue.Empty:
        raise requests.ConnectTimeout(f"its name was not looked up in {seconds:g} s") from None
    if error is not None:
        raise error
    return found  # type: ignore[return-value]  # what `look_up` returned


class CheckedAdapter(IPFilterAdapter):  # type: ignore[misc]  # it has no types
    """Refuses private addresses, and connects to the one that was checked."""

    def __init__(self, *, https: bool, seconds: float) -> None:
        self._seconds = seconds
        super().__init__(is_https_proto=https)

    def build_connection_pool_key_attributes(self, *args: Any, **kwargs: Any) -> Any:
        """requests asks this where to connect to; here the name is looked up."""
        ask = super().build_connection_pool_key_attributes
        return within(self._seconds, lambda: ask(*args, **kwargs))


class OpenAdapter(requests.adapters.HTTPAdapter):
    """Any address. It is looked up once more to connect, which just worked."""

    def __init__(self, *, seconds: float) -> None:
        self._seconds = seconds
        super().__init__()

    def build_connection_pool_key_attributes(self, *args: Any, **kwargs: Any) -> Any:
        where = super().build_connection_pool_key_attributes(*args, **kwargs)
        host, port = where[0]["host"], where[0]["port"]
        within(self._seconds, lambda: _look_up(host, port))
        return where


def _look_up(host: str, port: int | None) -> None:
    try:
        socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        raise requests.ConnectionError("its name is not known") from error


class Downloads(HTTPSession):  # type: ignore[misc]  # it has no types
    """A session that reads what others named. Knows no key.

    `private`: whether it may read from private addresses. `https_only`: it sends nothing
    by anything else, wherever it was redirected.
    """

    def __init__(
        self, *, private: bool, https_only: bool, connect_timeout: float, timeout: float
    ) -> None:
        self._https_only = https_only
        super().__init__(
            Config(
                default_timeout=(connect_timeout, timeout),
                never_redirect=False,
                ip_filter_enable=not private,
                ip_filter_allow_loopback_ips=False,
                user_agent_override="seedance-worker",
            )
        )
        # Neither a netrc entry nor a proxy of the environment may change where it goes.
        self.trust_env = False
        for scheme in ("http", "https"):
            self.mount(
                f"{scheme}://",
                OpenAdapter(seconds=connect_timeout)
                if private
                else CheckedAdapter(https=scheme == "https", seconds=connect_timeout),
            )

    def send(self, request: requests.PreparedRequest, **kwargs: Any) -> requests.Response:
        """Each hop passes here. Raises NotHttpsError."""
        if self._https_only and urlsplit(request.url or "").scheme.lower() != "https":
            raise NotHttpsError
        answer: requests.Response = super().send(request, **kwargs)
        return answer
