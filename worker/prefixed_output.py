"""Many processes on one screen: each line under the name of who wrote it.

Where JSON is asked for each line is an object, with that name in `service`: what a process wrote
so goes through as it is, other text becomes an event.
"""

import json
import os
import threading
from datetime import UTC, datetime
from typing import IO, TextIO

from worker import redaction

# Readable on dark and light grounds alike; red is left for errors.
_COLOURS = (36, 33, 32, 35, 34, 96, 93, 92, 95, 94)
_LONGEST_LINE = 64 * 1024


class PrefixedOutput:
    """Writes whole lines with an aligned name, coloured on a terminal and plain elsewhere."""

    def __init__(self, stream: TextIO, names: list[str], *, as_json: bool = False) -> None:
        self._stream = stream
        self._redactor = redaction.of_environment() if as_json else None
        self._width = max(map(len, names), default=0)
        self._colours = {name: _COLOURS[i % len(_COLOURS)] for i, name in enumerate(names)}
        self._coloured = stream.isatty() and "NO_COLOR" not in os.environ
        self._lock = threading.Lock()
        self._open = True

    def line(self, name: str, text: str) -> None:
        """Write one line; once the reader has gone nothing is written, and nobody stumbles."""
        shown = self._prefixed(name, text) if self._redactor is None else self._object(name, text)
        with self._lock:
            if not self._open:
                return
            try:
                self._stream.write(f"{shown}\n")
                self._stream.flush()
            except (OSError, ValueError):
                self._open = False

    def _prefixed(self, name: str, text: str) -> str:
        prefix = f"{name:<{self._width}} |"
        if self._coloured and name in self._colours:
            prefix = f"\x1b[{self._colours[name]}m{prefix}\x1b[0m"
        return f"{prefix} {text}"

    def _object(self, name: str, text: str) -> str:
        if text.startswith('{"timestamp": ') and text.endswith("}"):
            return f'{text[:-1]}, "service": {json.dumps(name)}}}'
        now = datetime.now(UTC).isoformat().replace("+00:00", "Z")
        said = text if self._redactor is None else self._redactor.text(text)
        event = {"timestamp": now, "level": "info", "event": said, "service": name}
        return json.dumps(event, ensure_ascii=False)

    def copy(self, name: str, pipe: IO[bytes]) -> None:
        """Copy a process's output until its end (also when it can't be written any more)."""
        with pipe:
            while raw := pipe.readline(_LONGEST_LINE):
                self.line(name, raw.decode(errors="replace").rstrip("\r\n"))
