"""How fast a producer enqueues while nothing works on it: one by one, and many at once."""

import statistics

from benchmarks.arena import Host, arena
from benchmarks.cells import Figures
from benchmarks.entrants import Entrant
from benchmarks.producing import producer


def measure(entrant: Entrant, servers: Host, *, singles: int, bulk: int) -> Figures:
    """The median of single calls, and rows a second of one call for many (or of a loop)."""
    if not entrant.queue:
        return {"note": "has no queue"}
    with arena(servers) as here:
        entrant.prepare(here)
        if not entrant.bulk:
            bulk = min(bulk, 2_000)  # a loop is no faster for being longer
        with producer(entrant, here) as source:
            source.enqueue(3, (60, 60), single=True)  # connections, caches
            calls = source.enqueue(singles, (60, 60), single=True)
            ((began, ended),) = source.enqueue(bulk, (60, 60))
    return {
        "single_ms": statistics.median(1000 * (after - before) for before, after in calls),
        "bulk_per_second": bulk / (ended - began),
        "bulk_rows": bulk,
    }
