"""What must never be shown, cut in one place: for logs, error reports, traces and terminals.

Cut are the secrets of this process's environment and of the files that it names, whoever quotes
them; the queries and user names
of URLs (signed addresses are as good as keys); the secrets of callbacks' addresses; what follows
`Authorization:`, `password=` and the like; and prompts, wherever they stand as data. What an
exception says is text like any other.
"""

import contextlib
import os
import re
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import unquote, urlsplit

from api_client import redaction as urls
from models.secret_files import SUFFIX
from worker import callback_address
from worker.variables import FILES, SettingsError, secret

CUT = "…"

_SHORTEST_SECRET = 6
_DEEPEST = 12
_MOST_ITEMS = 200

_SECRET_VARIABLE = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD|PASSWD|AUTH|DSN)S?$")
_ADDRESS_VARIABLE = re.compile(r"_URL$")

_NAMES = r"authorization|x-api-key|api[_-]?key|passwords?|passwd|secrets?|(?:access[_-]?)?tokens?"
_SECRET_NAME = re.compile(rf"(?:.*[_-])?(?:{_NAMES}|auth|cookies?|set-cookie|dsn)", re.IGNORECASE)
_PROMPT_NAMES = frozenset({"text", "prompt", "prompts", "args", "kwargs", "argsrepr", "kwargsrepr"})

# One cheap look decides whether the dear patterns are tried at all: most lines have nothing. To
# search a text for each of these takes a fraction of what one pattern of them all does.
_SUSPECT = (
    *("auth", "key", "passw", "secret", "token", "bearer", "basic", "whsec_"),
    *("text", "prompt", "/callbacks/"),
)
_NAMED = re.compile(
    rf"(\b(?:{_NAMES})['\"]?\s*[:=]\s*['\"]?)(?:(?:bearer|basic)\s+)?[^\s'\",;&)\]}}]+",
    re.IGNORECASE,
)
_BORNE = re.compile(r"\b(bearer|basic)\s+[\w.~+/=-]{6,}", re.IGNORECASE)
_SIGNING = re.compile(r"\bwhsec_[\w+/=-]+")
_PROMPT = re.compile(
    r"""(['"](?:text|prompt)['"]\s*:\s*)(?:"(?:[^"\\]|\\.)*(?:"|$)|'(?:[^'\\]|\\.)*(?:'|$))""",
    re.DOTALL,
)

# The same in JSON that stands as a text in JSON, as messages do: its quotes are escaped.
_NESTED_PROMPT = re.compile(
    r"""((\\{1,7})(['"])(?:text|prompt)\2\3\s*:\s*\2\3)(?:.*?(?<!\\)\2\3|.*)""", re.DOTALL
)


class Redactor:
    """Cuts what must not be shown out of texts and nested values."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        """`secrets` are cut wherever they stand; shorter than six characters they can't be."""
        long = {secret for secret in secrets if len(secret) >= _SHORTEST_SECRET}
        # The longest first: one may be part of another.
        found = "|".join(re.escape(s) for s in sorted(long, key=lambda s: (-len(s), s)))
        self._secrets = re.compile(found) if found else None

    def text(self, text: str) -> str:
        """A text without them; usually the very same."""
        if self._secrets is not None:
            text = self._secrets.sub(CUT, text)
        text = urls.redact(text)
        folded = text.casefold()
        if not any(suspect in folded for suspect in _SUSPECT):
            return text
        text = callback_address.hidden(text)
        text = _PROMPT.sub(rf"\1'{CUT}'", text)
        text = _NESTED_PROMPT.sub(rf"\1{CUT}\2\3", text)
        text = _BORNE.sub(rf"\1 {CUT}", text)
        text = _NAMED.sub(rf"\1{CUT}", text)
        return _SIGNING.sub(f"whsec_{CUT}", text)

    def event(self, event: Mapping[str, Any]) -> Mapping[str, Any]:
        """The fields of a line, each as by `value`. One look at all texts together spares most
        lines a look at each.
        """
        texts = [value for value in event.values() if isinstance(value, str)]
        others = (value for value in event.values() if not isinstance(value, str))
        plain = all(value is None or isinstance(value, bool | int | float) for value in others)
        together = "\n".join(texts)
        if plain and self.text(together) == together:
            return event
        return {name: self.value(value) for name, value in event.items()}

    def value(self, value: Any, *, _depth: int = 0) -> Any:
        """The same for all that a value holds, by the names of its parts as well (a copy).

        What is no plain data becomes its text: a repr may quote anything.
        """
        if value is None or isinstance(value, bool | int | float):
            return value
        if isinstance(value, str):
            return self.text(value)
        if _depth >= _DEEPEST:
            return CUT
        if isinstance(value, Mapping):
            return {
                self._name(name): self._part(name, part, _depth)
                for name, part in list(value.items())[:_MOST_ITEMS]
            }
        if isinstance(value, list | tuple | set | frozenset):
            return [self.value(part, _depth=_depth + 1) for part in list(value)[:_MOST_ITEMS]]
        if isinstance(value, bytes | bytearray | memoryview):
            return f"{len(value)} bytes"
        return self.text(str(value))

    def _name(self, name: Any) -> str:
        return self.text(str(name))

    def _part(self, name: Any, part: Any, depth: int) -> Any:
        if isinstance(name, str):
            if part is not None and _SECRET_NAME.fullmatch(name):
                return CUT
            if isinstance(part, str) and name in _PROMPT_NAMES:
                return CUT
        return self.value(part, _depth=depth + 1)


def of_environment(environ: Mapping[str, str] | None = None) -> Redactor:
    """One that knows the secrets of an environment: keys, tokens, the passwords in addresses."""
    return Redactor(_secrets(os.environ if environ is None else environ))


def _secrets(environ: Mapping[str, str]) -> Iterable[str]:
    for name, value in (*environ.items(), *_from_files(environ)):
        if _SECRET_VARIABLE.search(name):
            yield value
            # Several may stand in one variable; of `user:password` the second half is one, too.
            for one in re.split(r"[\s,]+", value):
                yield from (one, one.partition(":")[2])
        elif _ADDRESS_VARIABLE.search(name):
            yield from _password(value)


def _from_files(environ: Mapping[str, str]) -> Iterable[tuple[str, str]]:
    for file in FILES & environ.keys():
        name = file.removesuffix(SUFFIX)
        with contextlib.suppress(SettingsError):
            yield name, secret(name, {file: environ[file]}) or ""


def _password(url: str) -> Iterable[str]:
    try:
        found = urlsplit(url).password
    except ValueError:
        return
    if found:
        yield from (found, unquote(found))


def redact(text: str) -> str:
    """A text as it may be shown to whoever runs a command here."""
    return of_environment().text(text)
