"""One run of pytest in a process that has the libraries loaded already, and nothing of the project.

Most of a short run's time is importing. The server that these processes are forked from imports
what is not ours, once; each then sees the copy, and only the copy, as the project.
"""

import os
import sys
from pathlib import Path

import pytest

LIBRARIES = [
    "aiohttp.web",
    "alembic.command",
    "celery",
    "celery.bin.celery",
    "cryptography.x509",
    "fsspec",
    "kombu.transport.redis",
    "limits.storage",
    "psutil",
    "psycopg",
    "pydantic_settings",
    "pytest",
    "redis",
    "requests_hardened",
    "rich.table",
    "sqlalchemy.dialects.postgresql",
    "sqlalchemy.orm",
]

_OURS = ("api_client", "models", "simulator", "tests", "worker")


def run(root: Path, checkout: Path, tests: list[str], record: Path, output: Path) -> None:
    """Run the tests of the copy at `root`; output and records go to the files."""
    for name in [m for m in sys.modules if m.split(".")[0] in _OURS]:
        del sys.modules[name]
    os.chdir(root)
    sys.path[:] = [str(root), *(p for p in sys.path if p and Path(p) != checkout)]
    # Worker processes that a test starts import the copy as well.
    os.environ |= {"PYTHONPATH": str(root), "RECORD_TO": str(record)}
    with output.open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    import worker

    assert Path(worker.__path__[0]).parent == root, "another project than the copy was imported"
    # By signal: a test that hangs fails, and the others still run.
    options = ["-q", "-p", "tests.protections.recorder", "-p", "no:cacheprovider"]
    options += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]
    code = pytest.main([*options, "--timeout-method=signal", *tests])
    sys.stdout.flush()
    os._exit(int(code))
