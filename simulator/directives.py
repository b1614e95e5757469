"""Wishes that a prompt carries along: `[sim: seconds=3, fail=CONTENT_MODERATION_FAILED]`."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from simulator.errors import invalid

_BLOCK = re.compile(r"\[sim:([^\]]*)\]")
_PAIR = re.compile(r"\s*([a-z_]+)\s*=\s*([^\s,;]+)\s*")

KNOWN = {
    "refuse": "refuse at submit with this error code",
    "fail": "end failed with this error_code",
    "end": "end as completed, failed, cancelled or expired",
    "seconds": "simulated seconds from creation to the end",
    "pending": "simulated seconds in pending",
    "queued": "simulated seconds in queued",
    "processing": "simulated seconds in processing",
    "cancel": "cancel mode of this task: works, late, completes",
    "list_lag": "real seconds until the task shows in the list",
    "get_lag": "real seconds until the task is found by its id",
    "submit": "fault kind for the submit, as kind, kind:value or kind*times",
    "get": "fault kind for the first GETs of this task, in the same form",
}

_NUMBERS = {"seconds", "pending", "queued", "processing", "list_lag", "get_lag"}
_ENDS = {"completed", "failed", "cancelled", "expired"}


@dataclass(frozen=True, slots=True)
class Directives:
    """What the prompts of one submit ask of the simulator."""

    words: dict[str, str] = field(default_factory=dict)
    numbers: dict[str, float] = field(default_factory=dict)

    def word(self, name: str) -> str | None:
        """The value of a directive, if it was given."""
        return self.words.get(name)


NONE = Directives()


def parse(texts: Iterable[str]) -> Directives:
    """Read every `[sim: …]` block. A misspelt one is refused: a test must not pass by a typo."""
    words: dict[str, str] = {}
    for text in texts:
        for block in _BLOCK.findall(text):
            rest = _PAIR.sub("", block).strip(" ,;")
            if rest:
                raise invalid(f"[sim: …] cannot be read at {rest!r}")
            words.update(_PAIR.findall(block))
    if not words:
        return NONE
    for name in words:
        if name not in KNOWN:
            raise invalid(f"[sim: {name}=…] is none of {', '.join(sorted(KNOWN))}")
    if "end" in words and words["end"] not in _ENDS:
        raise invalid(f"[sim: end=…] must be one of {', '.join(sorted(_ENDS))}")
    if "cancel" in words and words["cancel"] not in {"works", "late", "completes"}:
        raise invalid("[sim: cancel=…] must be works, late or completes")
    return Directives(words, {name: _number(name, words[name]) for name in _NUMBERS & set(words)})


def _number(name: str, value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = -1
    if not 0 <= number <= 10**9:
        raise invalid(f"[sim: {name}=…] must be a number of seconds")
    return number
