"""kill -9 of all processes in the middle of submitting; they are started again at once.

Each POST is processed at once and answered a second later, so that many are on the wire at the
blow. Lost: no end is known of it when time is up. Doubled: the provider has (and charges) more than
one task for it.
"""

import contextlib
import time
from collections import Counter
from collections.abc import Callable

import psutil

from benchmarks import accounting
from benchmarks.arena import Arena, Host, arena, running
from benchmarks.cells import Figures
from benchmarks.entrants import Entrant, Work
from benchmarks.producing import Seconds, producer
from benchmarks.watching import reached

ANSWER_AFTER = 1.0
FEWEST = 5
"""POSTs on the wire, for the blow to mean anything."""
STILL_ARRIVING = 0.3
"""What was sent before the blow has arrived by then, and no process is up again."""


def measure(
    entrant: Entrant,
    servers: Host,
    *,
    generations: int,
    seconds: Seconds,
    within: float,
    struck: Callable[[], object] = lambda: None,
) -> Figures:
    """Lost and doubled ones, and seconds from the blow until all have ended.

    `struck` is called when the blow has fallen.
    """
    with arena(servers, "--speed", "1") as here:
        entrant.prepare(here)
        here.admin.fault("submit", "delay_after", seconds=ANSWER_AFTER)
        with (
            running(here, "contender", entrant.processes(here, Work(in_flight=generations))),
            producer(entrant, here) as source,
        ):
            source.enqueue(generations, seconds)
            waiting = _wait_for_posts(here, generations // 2)
            blow = _kill(here)
            struck()
            reached(lambda: len(_known(here, entrant)), generations, within)
            figures = _reckon(here, entrant, generations, blow)
            return {"on_the_wire": waiting, "within": within} | figures


def _wait_for_posts(here: Arena, received: int) -> int:
    """Wait until so many have come in and several are not answered yet; how many those are."""
    here.admin.wait(endpoint="submit", received=received, timeout=60)
    deadline = time.monotonic() + 30
    while True:
        count = here.admin.requests()["endpoints"]["submit"]
        waiting = int(count["received"] - sum(count["outcomes"].values()))
        if waiting >= FEWEST or time.monotonic() > deadline:
            return waiting
        time.sleep(0.02)


def _kill(here: Arena) -> float:
    for process in accounting.tree(here.pids()):
        with contextlib.suppress(psutil.Error):
            process.kill()
    return time.time()


def _known(here: Arena, entrant: Entrant) -> dict[str, float]:
    """When the end of each request was first known, by its prompt."""
    prompts = _prompts(here)
    known: dict[str, float] = {}
    for task_id, at in entrant.endings(here).items():
        known[prompts[task_id]] = min(at, known.get(prompts[task_id], at))
    return known


def _prompts(here: Arena) -> dict[str, str]:
    return {task["task_id"]: task["body"]["content"][0]["text"] for task in here.admin.tasks()}


def _reckon(here: Arena, entrant: Entrant, generations: int, blow: float) -> Figures:
    known = _known(here, entrant)
    tasks = Counter(_prompts(here).values())
    submitted = sorted(submit["time"] for submit in here.admin.submits())
    after = [at for at in submitted if at > blow + STILL_ARRIVING]
    figures: Figures = {
        "submitted_before": sum(1 for at in submitted if at <= blow + STILL_ARRIVING),
        "generations": generations,
        "lost": generations - len(known),
        "doubled": sum(1 for count in tasks.values() if count > 1),
        "submitting_again": after[0] - blow if after else None,
    }
    if len(known) == generations:
        figures["all_ended"] = max(known.values()) - blow
    return figures
