"""What Celery's events, Flower and `celery inspect` show of a message: short, and safe.

A message's own words for its arguments come from whoever sent it: those of `seedance.generate` hold
the prompt. So a worker shows what it makes of the arguments itself: which generation, which lease,
and of a request nothing but what is no text of its producer's.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

GENERATE = "seedance.generate"

_NAME = re.compile(r"[A-Za-z0-9][\w.:@-]{0,63}")
"""What a tenant's or a model's name looks like: one word, not too long."""
_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}(\.[a-z_]{1,20})?")
_KIND = re.compile(r"[a-z_]{1,20}")

_OF_REQUEST = ("model", "resolution", "duration")
_CUT = "…"
_MOST = 3
_ITEMS = 20
_SUBJECTS = {"seedance.deliver": "notice", "seedance.archive": "result"}


def arguments(task: str, args: Sequence[Any]) -> str:
    """As `generation 0b0e7f1a-… lease 3`; empty for a task without arguments. Never raises."""
    if task == GENERATE or not args:
        return ""
    if task in ("seedance.resolve", "seedance.submit"):
        return _several(args[0])
    return f"{_SUBJECTS.get(task, 'generation')} {_claim(args)}"


def keywords(task: str, kwargs: Mapping[str, Any]) -> str:
    """As `tenant=acme model=seedance-2.0 content=text,image_url`; empty but for requests."""
    if task != GENERATE:
        return ""
    told = {name: _plain(kwargs[name]) for name in ("tenant", "priority") if name in kwargs}
    request = kwargs.get("request")
    if isinstance(request, Mapping):
        told |= {name: _plain(request[name]) for name in _OF_REQUEST if name in request}
        told["content"] = _kinds(request.get("content"))
    return " ".join(f"{name}={value}" for name, value in told.items())


def is_id(value: Any) -> bool:
    """Whether it is the id of a row, so that it may be shown."""
    return isinstance(value, str) and _ID.fullmatch(value) is not None


def only(args: Sequence[Any]) -> str | None:
    """Return the id of the generation whose claim is the only one of a shared message."""
    try:
        [[generation_id, _]] = args[0]
    except (TypeError, ValueError, IndexError):
        return None
    return generation_id if is_id(generation_id) else None


def _several(claims: Any) -> str:
    if not isinstance(claims, Sequence) or isinstance(claims, str):
        return _CUT
    if len(claims) == 1:
        return f"generation {_claim(claims[0])}"
    shown = ", ".join(_claim(claim) for claim in claims[:_MOST])
    more = len(claims) - _MOST
    return f"generations {shown}" + (f" and {more} more" if more > 0 else "")


def _claim(claim: Any) -> str:
    if not isinstance(claim, Sequence) or isinstance(claim, str):
        return _CUT
    of, lease = [*claim, None, None][:2]
    told = of if is_id(of) else _CUT
    return f"{told} lease {lease if isinstance(lease, int) else _CUT}"


def _kinds(content: Any) -> str:
    """Of what sort a request's items are, without what they say."""
    if not isinstance(content, Sequence) or isinstance(content, str):
        return _CUT
    kinds = [item.get("type") if isinstance(item, Mapping) else None for item in content[:_ITEMS]]
    return ",".join(k if isinstance(k, str) and _KIND.fullmatch(k) else _CUT for k in kinds)


def _plain(value: Any) -> str:
    """Numbers and names. Anything else may be a sentence, an address or a key."""
    if isinstance(value, int | float):
        return str(value)[:40]
    return value if isinstance(value, str) and _NAME.fullmatch(value) else _CUT
