"""One contender under one condition: enqueue, wait with a limit, and count what went wrong."""

import contextlib
import json
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import psutil
import psycopg

from benchmarks import accounting
from benchmarks.arena import Arena, Host, arena, running
from benchmarks.cells import Figures
from benchmarks.entrants import Entrant, Work
from benchmarks.producing import AT_ONCE, Producer, Seconds, producer, requests
from benchmarks.trouble.contenders import Setup, contender
from benchmarks.watching import reached
from simulator.client import AdminError

WARM = 8
"""Generations before the measured ones: connections, imports and caches."""
POLL_EVERY = 0.1

_ENDED_GENERATIONS = (
    "SELECT request->'content'->0->>'text', status, extract(epoch FROM finished_at)::float8"
    " FROM generations WHERE finished_at IS NOT NULL"
)
_ENDED_VIDEOS = "SELECT task_id, url, extract(epoch FROM at)::float8 FROM videos"
_STATUSES = "SELECT request->'content'->0->>'text', status FROM generations"

UNSUBMITTED = frozenset({"accepted", "uploading", "submitting", "uncertain"})
"""Statuses of a generation whose remote task is not known."""
IN_DOUBT = frozenset({"submitting", "uncertain"})


@dataclass(frozen=True)
class Ending:
    """The end of one generation, as the contender stored it."""

    prompt: str
    completed: bool
    at: float
    """Seconds since 1970."""


@dataclass
class Trial:
    """A running contender, and the prompts of the generations that are measured."""

    here: Arena
    entrant: Entrant
    source: Producer
    connection: psycopg.Connection[tuple[Any, ...]]
    expected: Counter[str] = field(default_factory=Counter)
    """Prompts, and how many generations have each."""
    began: float = 0.0
    """When the first measured request was enqueued, in seconds since 1970."""
    prompts: dict[str, str] = field(default_factory=dict)
    """The prompt of each remote task that was read from the simulator."""

    @property
    def is_service(self) -> bool:
        """Whether the contender is this service."""
        return self.entrant.name == "service"

    @property
    def count(self) -> int:
        """How many generations are measured."""
        return self.expected.total()

    def enqueue(
        self, count: int, seconds: Seconds, *, directives: str = "", seed: int | None = None
    ) -> None:
        """Enqueue generations that are measured; `benchmarks.producing.requests` has the rest."""
        batch = requests(count, self.source.next_number, seconds, directives=directives, seed=seed)
        self.expected.update(request["content"][0]["text"] for request in batch)
        calls = self.source.enqueue(count, seconds, directives=directives, seed=seed)
        self.began = self.began or calls[0][0]

    def enqueue_unmeasured(self, count: int, seconds: Seconds, *, directives: str = "") -> None:
        """Enqueue generations whose end is neither awaited nor counted."""
        self.source.enqueue(count, seconds, directives=directives)

    def endings(self) -> list[Ending]:
        """Return the ends of measured generations, in the order of their times."""
        if self.is_service:
            found = [
                Ending(prompt, status == "completed", at)
                for prompt, status, at in self.connection.execute(_ENDED_GENERATIONS)
            ]
        else:
            rows = self.connection.execute(_ENDED_VIDEOS).fetchall()
            if any(task_id not in self.prompts for task_id, _, _ in rows):
                self.prompts = self.prompts_of_tasks()
            found = [
                Ending(self.prompts[task_id], url is not None, at) for task_id, url, at in rows
            ]
        room = Counter(self.expected)
        kept = []
        for ending in sorted(found, key=lambda ending: ending.at):
            if room[ending.prompt] > 0:  # a second task of a generation ends nothing
                room[ending.prompt] -= 1
                kept.append(ending)
        return kept

    def wait_until_ended(self, limit: float) -> bool:
        """Wait until every measured generation has ended, up to `limit` seconds."""

        def ended() -> int:
            if self.entrant.ended(self.here) < self.count:
                return 0  # cheap, and true for most of the time
            return len(self.endings())

        return reached(ended, self.count, limit)

    def statuses(self) -> dict[str, str]:
        """Return the status of each generation of this service, by prompt."""
        return dict(self.connection.execute(_STATUSES).fetchall())  # type: ignore[arg-type]

    def prompts_of_tasks(self) -> dict[str, str]:
        """Return the prompt of every remote task."""
        return {
            task["task_id"]: task["body"]["content"][0]["text"] for task in self.here.admin.tasks()
        }

    def submits(self) -> list[dict[str, Any]]:
        """Return the submits of measured generations that the simulator received, by time."""
        found = [
            submit | {"prompt": json.loads(submit["body"])["content"][0]["text"]}
            for submit in self.here.admin.submits()
        ]
        return sorted(
            (submit for submit in found if submit["prompt"] in self.expected),
            key=lambda submit: submit["time"],
        )

    def timing(self, limit: float) -> Figures:
        """Wait for all ends, and return the seconds from the first enqueuing to them."""
        complete = self.wait_until_ended(limit)
        return self.times(None if complete else limit)

    def times(self, gave_up_after: float | None) -> Figures:
        """Return the seconds until 90 % and until all have ended, or a note of what is missing."""
        ends = [ending.at - self.began for ending in self.endings()]
        figures: Figures = {}
        part = math.ceil(0.9 * self.count)
        if len(ends) >= part:
            figures["seconds_90"] = ends[part - 1]
        if len(ends) == self.count:
            figures["seconds"] = ends[-1]
        elif gave_up_after is not None:
            figures["note"] = f"{len(ends)} of {self.count} after {gave_up_after:.0f} s"
        return figures

    def errors(self, *, awaited: bool = True) -> Figures:
        """Count doubled, wrongly failed and, where all ends were awaited, lost generations."""
        ends = self.endings()
        tasks = Counter(self.prompts_of_tasks().values())
        extra = (tasks[prompt] - wanted for prompt, wanted in self.expected.items())
        figures: Figures = {
            "doubled": sum(max(0, more) for more in extra),
            "failed": sum(1 for ending in ends if not ending.completed),
        }
        if awaited:
            figures["lost"] = self.count - len(ends)
        return figures

    def outcomes(self) -> Counter[str]:
        """Count the requests that the simulator received (`received`), by outcome."""
        counted: Counter[str] = Counter()
        for endpoint, count in self.here.admin.requests()["endpoints"].items():
            if endpoint in ("submit", "get", "list", "balance", "cancel"):
                counted["received"] += count["received"]
                counted.update(count["outcomes"])
        return counted


@contextlib.contextmanager
def trial(
    name: str,
    servers: Host,
    setup: Setup,
    *,
    before_warm_up: Callable[[Arena], object] | None = None,
) -> Iterator[Trial]:
    """Run a contender that has ended a few generations.

    `before_warm_up` is called with the arena before the contender starts.
    """
    entrant = contender(name, setup)
    with arena(servers, "--seed", "1") as here:
        entrant.prepare(here)
        if before_warm_up is not None:
            before_warm_up(here)
        work = Work(in_flight=0, poll_seconds=setup.poll_seconds)
        with (
            running(here, "contender", entrant.processes(here, work)),
            producer(entrant, here) as source,
            psycopg.connect(here.libpq_url, autocommit=True) as connection,
        ):
            source.enqueue(WARM, AT_ONCE)
            reached(lambda: entrant.ended(here), WARM, 60)
            yield Trial(here, entrant, source, connection)


def waited(here: Arena, timeout: float, **conditions: Any) -> bool:
    """Wait for a condition of the simulator (`simulator.waiting.Wait`), up to `timeout` seconds."""
    try:
        here.admin.wait(timeout=timeout, **conditions)
    except AdminError:
        return False
    return True


@dataclass(frozen=True)
class Usage:
    """Processor time at one moment."""

    at: float
    machine: float
    """Seconds of all cores that were not idle, whichever process used them."""
    trial: float
    """Seconds of the contender, its servers and the simulator."""
    workers: dict[int, float]
    """Seconds of each process of the contender."""

    @classmethod
    def now(cls, here: Arena) -> "Usage":
        """Read the counters."""
        times = psutil.cpu_times()
        busy = sum(times[:8]) - times.idle - getattr(times, "iowait", 0.0)
        workers = {pid: accounting.cpu([pid]) for pid in here.pids()}
        return cls(time.monotonic(), busy, sum(here.cpu().values()), workers)

    def since(self, earlier: "Usage") -> Figures:
        """Return how many cores were busy: in all, by this trial, and by its busiest worker."""
        seconds = self.at - earlier.at
        used = [now - earlier.workers.get(pid, 0.0) for pid, now in self.workers.items()]
        return {
            "busy_cores": (self.machine - earlier.machine) / seconds,
            "trial_cores": (self.trial - earlier.trial) / seconds,
            "busiest_worker": max(used, default=0.0) / seconds,
        }
