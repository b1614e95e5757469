"""How `make test` shares the tests among several processes, each with servers of its own.

What waits on other processes comes first, what needs the processor last: so the tests with the
tightest clocks don't compete with those that compute, and the short ones fill up the end.
"""

import os
from pathlib import PurePosixPath
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling
from xdist.workermanage import NodeManager

_FIRST = ("chaos", "acceptance", "model")
"""Folders in the order in which they are handed out; the others follow as they are."""

ONE_BY_ONE = ("acceptance", "model")
"""Their tests are handed out singly: they take seconds each, and no fixture outlives them but the
servers. Of the other folders a file stays together, with what it set up once.
"""


class Sharing(LoadScopeScheduling):
    """Files, or single tests, in the order in which they were collected.

    (`--dist loadgroup` would do, but does nothing from pytest 9.2 on: pytest-xdist issue 1386.)
    """

    def _split_scope(self, nodeid: str) -> str:
        path = nodeid.split("::", 1)[0]
        return nodeid if folder(path) in ONE_BY_ONE else path


def scheduler(config: pytest.Config, log: Any) -> Sharing:
    """Who gets what."""
    # Where a run is broken off, its processes have time to stop their servers.
    NodeManager.EXIT_TIMEOUT = 60
    config.option.loadscopereorder = False
    return Sharing(config, log)


def processes() -> int:
    """What `-n auto` means: one more than there are processors, since most tests wait."""
    return min(8, (os.cpu_count() or 1) + 1)


def sort(items: list[pytest.Item]) -> None:
    """Alike in every process."""
    items.sort(key=lambda item: _place(folder(item.nodeid)))


def folder(nodeid: str) -> str:
    """The part of the tests that it belongs to."""
    return PurePosixPath(nodeid.split("::", 1)[0]).parts[1]


def _place(name: str) -> int:
    return _FIRST.index(name) if name in _FIRST else len(_FIRST)
