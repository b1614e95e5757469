"""The file by which commands find a running `seedance up`: what it made itself, and nothing else.

A key or an address that came from the environment is not written down.
"""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from worker import embedded

_NAME = "up.json"


@contextmanager
def published(folder: Path, environ: Mapping[str, str]) -> Iterator[Path]:
    """Keep the settings where `find` finds them, readable for this user only."""
    path = folder.resolve() / _NAME
    fresh = path.with_suffix(".new")
    fresh.unlink(missing_ok=True)
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump(dict(environ), file, indent=2)
        file.write("\n")
    fresh.replace(path)
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def find(folder: Path) -> dict[str, str]:
    """The settings of the `seedance up` that runs on this folder; empty if none does."""
    servers = embedded.find(folder)
    if servers is None:
        return {}
    try:
        read = json.loads((servers.data_dir / _NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        read = {}  # its owner is just starting or stopping, or it is somebody else's
    if not isinstance(read, dict):
        return {}
    known = {
        "SEEDANCE_DATABASE_URL": servers.database_url,
        "SEEDANCE_BROKER_URL": servers.broker_url,
    }
    return {name: str(value) for name, value in {**known, **read}.items() if value}
