"""Many processes on one screen: each line under the name of who wrote it."""

import os
import threading
from typing import IO, TextIO

# Readable on dark and light grounds alike; red is left for errors.
_COLOURS = (36, 33, 32, 35, 34, 96, 93, 92, 95, 94)
_LONGEST_LINE = 64 * 1024


class PrefixedOutput:
    """Writes whole lines with an aligned name, coloured on a terminal and plain elsewhere."""

    def __init__(self, stream: TextIO, names: list[str]) -> None:
        self._stream = stream
        self._width = max(map(len, names), default=0)
        self._colours = {name: _COLOURS[i % len(_COLOURS)] for i, name in enumerate(names)}
        self._coloured = stream.isatty() and "NO_COLOR" not in os.environ
        self._lock = threading.Lock()
        self._open = True

    def line(self, name: str, text: str) -> None:
        """Write one line; once the reader has gone nothing is written, and nobody stumbles."""
        prefix = f"{name:<{self._width}} |"
        if self._coloured and name in self._colours:
            prefix = f"\x1b[{self._colours[name]}m{prefix}\x1b[0m"
        with self._lock:
            if not self._open:
                return
            try:
                self._stream.write(f"{prefix} {text}\n")
                self._stream.flush()
            except (OSError, ValueError):
                self._open = False

    def copy(self, name: str, pipe: IO[bytes]) -> None:
        """Copy a process's output until its end (also when it can't be written any more)."""
        with pipe:
            while raw := pipe.readline(_LONGEST_LINE):
                self.line(name, raw.decode(errors="replace").rstrip("\r\n"))
