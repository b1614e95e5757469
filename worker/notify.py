"""`notify` at the door: whom a producer wants told, checked before anything is stored."""

import ipaddress
import os
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from api_client import InvalidRequest

ALLOW_PRIVATE = "SEEDANCE_ALLOW_PRIVATE_WEBHOOKS"

_KEYS = ("webhook", "task", "queue", "on")
_SHAPE = (
    'an object: {"webhook": "https://…"}, {"task": "shop.video_done", "queue": "shop"}, or both;'
    ' and "on": "end" or "change"'
)
_LONGEST = 2_000
_ADDRESS = re.compile(r"[\x21-\x7e]+")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:@/-]{0,199}")
# The service's own, and what kombu keeps in Redis beside the queues.
_OURS = re.compile(r"(seedance\..*|celery|_kombu\..*|unacked.*)")
# What inet_aton takes for an address beside four decimal numbers: 127.1, 0x7f000001, 2130706433.
_NUMERIC = re.compile(r"(0x[0-9a-f]*|\d+)(\.(0x[0-9a-f]*|\d+))*", re.I)
_LOCAL_NAMES = ("localhost", "local", "internal", "home.arpa")


def private_allowed(environ: Mapping[str, str] | None = None) -> bool:
    """Whether the environment allows private webhooks: a producer has no other settings."""
    given = (os.environ if environ is None else environ).get(ALLOW_PRIVATE, "")
    return given.strip().lower() in ("1", "true", "t", "yes", "y", "on")


def check_notify(value: Any, *, private: bool) -> dict[str, Any] | None:
    """What is stored as `notify`; None for none. Raises InvalidRequest.

    `private`: whether webhooks may be plain http, and go to private addresses. A name is looked
    up again whenever a notice is sent; here only what stands there literally is refused.
    """
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise InvalidRequest("notify", value, _SHAPE)
    for key in value:
        if key not in _KEYS:
            raise InvalidRequest(f"notify.{key}"[:80], value[key], f"only {', '.join(_KEYS)}")
    given = {key: value[key] for key in _KEYS if value.get(key) is not None}
    on = given.setdefault("on", "end")
    if on not in ("end", "change"):
        raise InvalidRequest("notify.on", on, '"end" or "change"')
    if "webhook" not in given and "task" not in given:
        missing = "notify.task" if "queue" in given else "notify"
        raise InvalidRequest(missing, value.get("task") if "queue" in given else value, _SHAPE)
    if "webhook" in given:
        given["webhook"] = _check_webhook(given["webhook"], private=private)
    if "task" in given:
        _check_task(given)
    elif "queue" in given:
        raise InvalidRequest("notify.queue", given["queue"], "a queue only beside a task")
    return given


def _check_task(given: Mapping[str, Any]) -> None:
    for key, meaning in (("task", "shop.video_done"), ("queue", "shop")):
        name = given.get(key)
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            allowed = f"the name of a Celery {key}, such as {meaning!r}, of up to 200 characters"
            raise InvalidRequest(f"notify.{key}", name, allowed)
        if _OURS.fullmatch(name):
            raise InvalidRequest(f"notify.{key}", name, f"a {key} of your own, not the service's")


def _check_webhook(address: Any, *, private: bool) -> str:
    """The address, its scheme in small letters."""
    field = "notify.webhook"
    schemes = "https:// or http://" if private else "https://"
    if not isinstance(address, str) or not _ADDRESS.fullmatch(address) or len(address) > _LONGEST:
        allowed = f"an address that begins with {schemes}, of up to {_LONGEST} characters"
        raise InvalidRequest(field, address, allowed)
    try:
        parts = urlsplit(address)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise InvalidRequest(field, address, "an address that can be read") from None
    if parts.scheme not in (("https", "http") if private else ("https",)):
        hint = "" if private else f" (http:// only where {ALLOW_PRIVATE} is set)"
        raise InvalidRequest(field, address, f"an address that begins with {schemes}{hint}")
    if not host or port == 0:
        raise InvalidRequest(field, address, f"{schemes}host/path")
    if parts.username is not None or parts.password is not None or parts.fragment:
        raise InvalidRequest(field, address, "an address without user, password and fragment")
    if not private and _is_private(host):
        raise InvalidRequest(
            field, address, f"a public host; private ones only where {ALLOW_PRIVATE} is set"
        )
    return parts.scheme + address[len(parts.scheme) :]


def _is_private(host: str) -> bool:
    name = host.rstrip(".").lower()
    try:
        ip = ipaddress.ip_address(name.partition("%")[0])
    except ValueError:
        local = any(name == one or name.endswith(f".{one}") for one in _LOCAL_NAMES)
        return local or _NUMERIC.fullmatch(name) is not None
    mapped = getattr(ip, "ipv4_mapped", None)
    if mapped is not None:
        ip = mapped
    return not ip.is_global or ip.is_multicast
