"""What processes have used: CPU from /proc, children included, and memory."""

import contextlib
from collections.abc import Iterable

import psutil


def tree(pids: Iterable[int]) -> list[psutil.Process]:
    """These processes and all below them."""
    found: dict[int, psutil.Process] = {}
    for pid in pids:
        with contextlib.suppress(psutil.Error):
            parent = psutil.Process(pid)
            for process in (parent, *parent.children(recursive=True)):
                found[process.pid] = process
    return list(found.values())


def cpu(pids: Iterable[int]) -> float:
    """Seconds of CPU of these processes and all that they have started, the ended ones included."""
    total = 0.0
    for process in tree(pids):
        with contextlib.suppress(psutil.Error):
            times = process.cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
    return total


def memory(pids: Iterable[int]) -> float:
    """Megabytes (10⁶ bytes) resident in these processes and those below them, all together."""
    total = 0
    for process in tree(pids):
        with contextlib.suppress(psutil.Error):
            total += process.memory_info().rss
    return total / 1e6
