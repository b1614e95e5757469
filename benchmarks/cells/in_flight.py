"""Many tasks at work at once: what following them costs, and how late their ends are learned.

The simulator's time stands still until all are submitted, so that they are in flight together; then
they take 60 to 120 seconds. Requests and CPU of the standing time count as submitting.
"""

import statistics
import time

from benchmarks import accounting
from benchmarks.arena import Arena, Host, arena, running
from benchmarks.cells import Figures
from benchmarks.entrants import Entrant, Work
from benchmarks.producing import AT_ONCE, Producer, Seconds, producer
from benchmarks.watching import reached

WARM = 20
"""Generations before those that are measured."""


def measure(
    entrant: Entrant, servers: Host, *, generations: int, seconds: Seconds, within: float
) -> Figures:
    """Lag, requests and CPU for each generation, memory; `within`: seconds to submit all."""
    with arena(servers, "--speed", "0") as here:
        entrant.prepare(here)
        with (
            running(here, "contender", entrant.processes(here, Work(in_flight=generations))),
            producer(entrant, here) as source,
        ):
            _warm(here, entrant, source)
            resting = accounting.memory(here.pids())
            cpu, began = here.cpu(), time.monotonic()
            source.enqueue(generations, seconds)
            if not reached(lambda: here.received()["submit"] - WARM, generations, within):
                submitted = here.received()["submit"] - WARM
                return {
                    "note": f"{submitted} submitted within {within:g} s",
                    "submitted": submitted,
                }
            submitting = time.monotonic() - began
            figures = _follow(here, entrant, generations, seconds)
            used = {
                name: 1000 * (now - cpu[name]) / generations for name, now in here.cpu().items()
            }
    return figures | {
        "submit_seconds": submitting,
        "resting_mb": resting,
        "cpu_ms": used["contender"],
        "postgres_ms": used["postgres"],
        "valkey_ms": used["valkey"],
        "simulator_ms": used["simulator"],
    }


def _warm(here: Arena, entrant: Entrant, source: Producer) -> None:
    """Connections, imports and caches, which cost the same for any number."""
    source.enqueue(WARM, AT_ONCE)
    reached(lambda: entrant.ended(here), WARM, 60)


def _follow(here: Arena, entrant: Entrant, generations: int, seconds: Seconds) -> Figures:
    memory = [accounting.memory(here.pids())]
    before, cpu, began = here.received(), here.cpu(), time.monotonic()
    here.admin.configure(speed=1)
    limit = 2 * seconds[1] + 60
    done = reached(
        lambda: entrant.ended(here),
        WARM + generations,
        limit,
        lambda: memory.append(accounting.memory(here.pids())),
    )
    took = time.monotonic() - began
    used = {name: now - cpu[name] for name, now in here.cpu().items()}
    requests = here.received()
    submits = requests["submit"] - WARM
    looks = sum(requests[name] - before[name] for name in ("get", "list"))
    lags = _lags(here, entrant)
    figures: Figures = {
        "lag_median": statistics.median(lags),
        "lag_99th": statistics.quantiles(lags, n=100)[98],
        "requests": (submits + looks) / generations,
        "follow_ms": 1000 * used["contender"] / generations,
        "busy_cores": sum(used.values()) / took,
        "memory_mb": max(memory),
    }
    if not done:
        figures["note"] = f"{len(lags)} of {generations} learned within {limit:g} s"
    return figures


def _lags(here: Arena, entrant: Entrant) -> list[float]:
    """Seconds from each remote end to its being known."""
    ended = {
        task["task_id"]: task["ended_at"]
        for task in here.admin.tasks()
        if task["body"]["resolution"] == "720p"
    }
    known = entrant.endings(here)
    return [known[task_id] - at for task_id, at in ended.items() if task_id in known]
