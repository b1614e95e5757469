"""Tasks that have ended before anybody looks: what a generation costs, and how many a second.

Before that, with nothing to do: how long from enqueuing one until its submission arrives.
"""

import random
import statistics
import time

from benchmarks.arena import Arena, Host, arena, running
from benchmarks.cells import Figures
from benchmarks.entrants import Entrant, Work
from benchmarks.producing import AT_ONCE, Producer, producer
from benchmarks.watching import reached

WITHIN = 180.0
"""Seconds that all may take."""
POLL_SECONDS = 1.0
"""Who can't look at once shall not be judged by how long he waits."""


def measure(entrant: Entrant, servers: Host, *, generations: int, singles: int) -> Figures:
    """Generations a second, CPU and requests of each; time from enqueuing to submission."""
    with arena(servers, "--speed", "1") as here:
        entrant.prepare(here)
        work = Work(in_flight=generations, poll_seconds=POLL_SECONDS)
        with (
            running(here, "contender", entrant.processes(here, work)),
            producer(entrant, here) as source,
        ):
            return _idle(here, source, singles) | _busy(here, entrant, source, generations)


def _idle(here: Arena, source: Producer, singles: int) -> Figures:
    source.enqueue(1, AT_ONCE, single=True)  # connections, caches
    here.admin.wait(endpoint="submit", answered=1, timeout=60)
    began = []
    for number in range(2, singles + 2):
        # At no fixed place in anybody's tick.
        time.sleep(random.uniform(0.1, 0.5))
        began.append(source.enqueue(1, AT_ONCE, single=True)[0][0])
        here.admin.wait(endpoint="submit", answered=number, timeout=60)
    arrived = sorted(submit["time"] for submit in here.admin.submits())[1:]
    taken = [1000 * (then - start) for start, then in zip(began, arrived, strict=True)]
    return {"idle_ms": statistics.median(taken), "idle_worst_ms": max(taken)}


def _busy(here: Arena, entrant: Entrant, source: Producer, generations: int) -> Figures:
    before = here.received()
    there = before["submit"]
    reached(lambda: entrant.ended(here), there, 60)
    cpu = here.cpu()
    began = time.monotonic()
    source.enqueue(generations, AT_ONCE)
    done = reached(lambda: entrant.ended(here), there + generations, WITHIN)
    took = time.monotonic() - began
    if not done:
        ended = entrant.ended(here) - there
        return {"note": f"{ended} of {generations} ended within {WITHIN:g} s"}
    used = {name: 1000 * (now - cpu[name]) / generations for name, now in here.cpu().items()}
    total = sum(here.received().values()) - sum(before.values())
    return {
        "per_second": generations / took,
        "cpu_ms": used["contender"],
        "postgres_ms": used["postgres"],
        "valkey_ms": used["valkey"],
        "simulator_ms": used["simulator"],
        "simulator_ms_per_request": used["simulator"] * generations / total,
        "requests": total / generations,
    }
