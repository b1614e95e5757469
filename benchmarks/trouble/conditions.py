"""The conditions of the section "In trouble", one function for each kind of measurement."""

import dataclasses
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psutil

from benchmarks import accounting
from benchmarks.arena import Arena, Host
from benchmarks.cells import Figures
from benchmarks.producing import Seconds
from benchmarks.trouble.contenders import SHORT_TIMES, Setup
from benchmarks.trouble.trial import (
    IN_DOUBT,
    POLL_EVERY,
    UNSUBMITTED,
    WARM,
    Trial,
    Usage,
    trial,
    waited,
)

SHORT: Seconds = (1.0, 2.0)
"""How long the remote tasks take where nothing else is asked for."""
LIMIT = 90.0
"""Seconds after which a measurement is given up."""

Fault = dict[str, Any]
"""Arguments of `Admin.fault`."""


def stream(
    name: str,
    servers: Host,
    *,
    generations: int,
    seconds: Seconds = SHORT,
    setup: Setup | None = None,
    fault: Fault | None = None,
    config: dict[str, Any] | None = None,
    poisoned: int = 0,
    seed: int | None = None,
) -> Figures:
    """Enqueue generations at once, and measure the time until all have ended.

    `fault` and `config` apply from the first of them on; `poisoned` further requests are refused
    with SERVICE_BUSY for ever, and their end is not awaited.
    """
    with trial(name, servers, setup or Setup()) as run:
        run.here.admin.configure(**config or {})
        if fault is not None:
            run.here.admin.fault(**fault)
        before = run.outcomes()
        if poisoned:
            run.enqueue_unmeasured(poisoned, seconds, directives="refuse=SERVICE_BUSY")
        run.enqueue(generations, seconds, seed=seed)
        figures = run.timing(LIMIT) | run.errors()
        counted = run.outcomes() - before
        received = counted["received"]
        return figures | {
            "requests": received / generations,
            "submits": len(run.submits()) / generations,
            "throttled_share": counted["RATE_LIMIT_EXCEEDED"] / received if received else None,
            "concurrency_refusals": counted["CONCURRENCY_LIMIT_REACHED"],
        }


def latency(name: str, servers: Host, *, generations: int, threads: int, seconds: float) -> Figures:
    """Measure submits a second while the provider answers each submit `seconds` late.

    The middle 80 % of the submits count; `ideal_share` is the rate over threads ÷ latency.
    """
    setup = Setup(
        {
            "SEEDANCE_RATE_LIMIT": "5000/second",
            "SEEDANCE_MAX_IN_FLIGHT": str(generations + WARM),
        },
        threads=threads,
        poll_seconds=5.0,
    )
    tenth = generations // 10

    def slow(here: Arena) -> None:
        here.admin.fault("submit", "delay_after", seconds=seconds)

    with trial(name, servers, setup, before_warm_up=slow) as run:
        before = run.here.received()["submit"]
        began = time.monotonic()

        def arrived(count: int) -> bool:
            left = max(0.1, began + LIMIT - time.monotonic())
            return waited(run.here, left, endpoint="submit", received=before + count)

        run.enqueue(generations, (600, 600))
        arrived(tenth)
        usage = Usage.now(run.here)
        complete = arrived(generations - tenth)
        usage_figures = Usage.now(run.here).since(usage)
        complete = complete and arrived(generations)
        times = [submit["time"] for submit in run.submits()]
        figures = usage_figures | run.errors(awaited=False)
    if not complete:
        figures["note"] = f"{len(times)} of {generations} submitted after {LIMIT:.0f} s"
    middle = times[len(times) // 10 : -max(1, len(times) // 10)]
    if len(middle) > 1:
        rate = (len(middle) - 1) / (middle[-1] - middle[0])
        figures |= {"per_second": rate, "ideal_share": rate * seconds / (2 * threads)}
    return figures


def limit_rises(name: str, servers: Host, *, generations: int, low: int, high: int) -> Figures:
    """Measure the time from a raised concurrency limit until 80 % of the new one is used."""
    environment = {**Setup().environment, "SEEDANCE_MAX_IN_FLIGHT": str(2 * high)}
    with trial(name, servers, Setup(environment)) as run:
        admin = run.here.admin
        admin.configure(max_concurrent=low, concurrency_mode="refused")
        run.enqueue(generations, (2, 2))
        waited(run.here, 60, ended=WARM + 6 * low)
        admin.configure(max_concurrent=high)
        raised = time.monotonic()
        wanted = math.ceil(0.8 * high)
        most = 0
        while most < wanted and time.monotonic() < raised + LIMIT:
            most = max(most, *(account["at_work"] for account in admin.accounts()))
            time.sleep(POLL_EVERY)
        passed = time.monotonic() - raised
        figures = run.errors(awaited=False)
        if most >= wanted:
            return figures | {"used_after": passed}
        return figures | {"note": f"{most} of {high} used after {passed:.0f} s"}


def outage(
    name: str, servers: Host, *, calm: int, waiting: int, seconds: float, fault: Fault
) -> Figures:
    """Measure submits during a total outage, and the rate from 5 s after its end.

    The outage begins when `calm` generations have been submitted and `waiting` have not. Submits
    are answered a second late, so that threads limit the rate before and after. Slots must not:
    during an outage no end is observed, so no slot becomes free and nothing is submitted.
    """
    environment = {**Setup().environment, "SEEDANCE_MAX_IN_FLIGHT": str(2 * (calm + waiting))}
    with trial(name, servers, Setup(environment)) as run:
        admin = run.here.admin
        admin.fault("submit", "delay_after", seconds=1)
        run.enqueue(calm + waiting, SHORT)
        waited(run.here, LIMIT, tasks=WARM + calm)
        began = time.time()
        admin.clear_faults()
        admin.fault("*", **fault)
        time.sleep(seconds)
        admin.clear_faults()
        admin.fault("submit", "delay_after", seconds=1)
        ended = time.time()
        run.wait_until_ended(LIMIT)
        figures = run.times(ended + LIMIT - run.began) | run.errors()
        submits = run.submits()
    created = [submit["time"] for submit in submits if submit["task_id"] is not None]
    before = [at for at in created if at < began][calm // 4 :]
    figures |= {
        "submits_during": sum(1 for submit in submits if began <= submit["time"] < ended),
        "calm_rate": _rate(before),
        "rate_after": _rate_from(created, ended + 5, ended + 15),
    }
    if figures["calm_rate"] and figures["rate_after"] is not None:
        figures["recovered_share"] = figures["rate_after"] / figures["calm_rate"]
    return figures


def _rate(times: list[float]) -> float | None:
    if len(times) < 2 or times[-1] <= times[0]:
        return None
    return (len(times) - 1) / (times[-1] - times[0])


def _rate_from(times: list[float], begin: float, end: float) -> float | None:
    """Return the rate between two moments; the window ends sooner where the work does."""
    if not times:
        return None
    if times[-1] < begin + 1:  # all was submitted within the first seconds
        return _rate([at for at in times if at > begin - 5])
    window = min(end, times[-1]) - begin
    return sum(1 for at in times if begin <= at <= begin + window) / window


def lost_answers(name: str, servers: Host, *, generations: int) -> Figures:
    """Measure the time from a submit without an answer until its task is followed.

    The service has its default settings; a task is listed a second after its creation.
    """
    with trial(name, servers, Setup({}, poll_seconds=5.0)) as run:
        run.here.admin.configure(list_lag=1)
        run.here.admin.fault("submit", "lost", times=generations)
        run.enqueue(generations, (10, 10))
        if not run.is_service:
            return run.timing(LIMIT) | run.errors()
        followed = _first_followed(run, LIMIT + 20)
        lost = {s["prompt"]: s["time"] for s in reversed(run.submits()) if s["fault"] == "lost"}
        delays = [at - lost[prompt] for prompt, at in followed.items() if prompt in lost]
        if len(followed) == generations:
            run.wait_until_ended(30)
            return run.errors() | {
                "followed_median": statistics.median(delays),
                "followed_worst": max(delays),
            }
        note = f"{len(followed)} of {generations} followed after {LIMIT + 20:.0f} s"
        return run.errors() | {"note": note}


def _first_followed(run: Trial, limit: float) -> dict[str, float]:
    """Return when each generation was first seen with its remote task."""
    followed: dict[str, float] = {}
    deadline = time.monotonic() + limit
    while len(followed) < run.count and time.monotonic() < deadline:
        statuses, now = run.statuses(), time.time()
        for prompt in run.expected:
            if statuses.get(prompt, "accepted") not in UNSUBMITTED:
                followed.setdefault(prompt, now)
        time.sleep(POLL_EVERY)
    return followed


def kill_one(name: str, servers: Host, *, generations: int) -> Figures:
    """Kill one of two workers, and measure when the work without a POST in progress is submitted.

    `moved_after` counts every generation whose POST had not arrived, `unclaimed_moved_after` those
    without an intent as well. The killed worker is not started again: the other one takes over.
    The service has its default times.
    """
    environment = {
        "SEEDANCE_RATE_LIMIT": "1000/second",
        "SEEDANCE_MAX_IN_FLIGHT": str(2 * generations),
    }
    setup = Setup(environment, poll_seconds=5.0, restart=False)
    answer_after = 1.0
    with trial(name, servers, setup) as run:
        run.here.admin.fault("submit", "delay_after", seconds=answer_after)
        run.enqueue(generations, (9, 11))
        waited(run.here, 60, endpoint="submit", received=WARM + generations // 2)
        _kill_first(run.here)
        killed = time.time()
        statuses = run.statuses() if run.is_service else {}
        submits = run.submits()
        sent = {submit["prompt"] for submit in submits if submit["time"] <= killed}
        waiting = set(run.expected) - sent
        unclaimed = {prompt for prompt in waiting if statuses.get(prompt) not in IN_DOUBT}
        limit = LIMIT if run.is_service else LIMIT / 2
        moved = _first_submits(run, waiting, killed + limit)
        # Generations that were on the wire settle after 90 s with the default times.
        run.wait_until_ended(killed + limit + 40 - time.time() if run.is_service else 15)
        figures: Figures = run.errors() | {
            "on_wire": sum(1 for s in submits if killed - answer_after < s["time"] <= killed),
            "waiting": len(waiting),
            "unclaimed": len(unclaimed),
        }
        if len(moved) == len(waiting):
            figures["moved_after"] = max(moved.values(), default=killed) - killed
        else:
            figures["note"] = f"{len(moved)} of {len(waiting)} submitted after {limit:.0f} s"
        if unclaimed <= moved.keys():
            times = [moved[prompt] for prompt in unclaimed]
            figures["unclaimed_moved_after"] = max(times, default=killed) - killed
        return figures


def _kill_first(here: Arena) -> None:
    supervisor, names = here.running["contender"]
    pid = supervisor.pid(names[0])
    for process in accounting.tree([pid] if pid else []):
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue


def _first_submits(run: Trial, prompts: set[str], deadline: float) -> dict[str, float]:
    """Return when each of these generations was first submitted, waiting until `deadline`."""
    while True:
        found: dict[str, float] = {}
        for submit in run.submits():
            if submit["prompt"] in prompts:
                found.setdefault(submit["prompt"], submit["time"])
        if len(found) == len(prompts) or time.time() > deadline:
            return found
        time.sleep(POLL_EVERY)


@dataclass(frozen=True)
class Condition:
    """One condition, and what it takes to measure it."""

    name: str
    title: str
    generations: int
    measure: Callable[[str, Host], Figures]
    """Takes the contender's name and the servers."""
    contenders: tuple[str, ...] = ("service", "celery")
    concurrent: bool = False
    """Whether it mostly waits, and so is measured beside others."""
    needs: float = LIMIT + 20
    """Seconds that it takes at most."""
    baseline: str = ""
    """The condition that its figures are divided by."""

    @property
    def kind(self) -> str:
        """The name of its cells in the results."""
        return f"trouble:{self.name}"


CALM = 300
_DEFAULT_RATE = Setup(SHORT_TIMES)
_EQUAL_REQUESTS = Setup(
    {
        **Setup().environment,
        "SEEDANCE_LIST_LAG": "4",
        "SEEDANCE_KEY_EXCLUSIVE": "true",
    }
)


def _stream(
    name: str, title: str, generations: int, *, baseline: str = "calm", **options: Any
) -> Condition:
    return Condition(
        name, title, generations,
        lambda name, servers: stream(name, servers, generations=generations, **options),
        baseline=baseline,
    )  # fmt: skip


def _latency(ms: int, threads: int, generations: int, **options: Any) -> Condition:
    return Condition(
        f"latency_{ms}_{threads}",
        f"submits answered {ms} ms late, {threads} threads a worker",
        generations,
        lambda name, servers: latency(
            name, servers, generations=generations, threads=threads, seconds=ms / 1000
        ),
        **options,
    )


def _outage(name: str, title: str, fault: Fault, **options: Any) -> Condition:
    return Condition(
        name, title, 700,
        lambda name, servers: outage(
            name, servers, calm=200, waiting=500, seconds=30, fault=fault
        ),
        concurrent=True, needs=2 * LIMIT + 30, **options,
    )  # fmt: skip


def _random(kind: str, probability: float, **order: Any) -> Fault:
    return {"endpoint": "submit", "kind": kind, "probability": probability, **order}


_SERVICE = ("service",)

CONDITIONS: tuple[Condition, ...] = (
    _stream("calm", "no faults", CALM, baseline=""),
    _stream("busy_10", "10 % of the submits answered SERVICE_BUSY", CALM,
            fault=_random("service_busy", 0.1)),
    _stream("busy_50", "50 % of the submits answered SERVICE_BUSY", 200,
            fault=_random("service_busy", 0.5)),
    # As many faults as 10 %, so that 90 % of the generations have none, whatever is drawn.
    _stream("ambiguous_10", "10 % of the submits answered a bare 500", CALM,
            fault=_random("bare", 0.1, status=500, times=CALM // 10)),
    dataclasses.replace(
        _stream("failed_10", "10 % of the submits answered TASK_SUBMIT_FAILED", CALM,
                fault=_random("error", 0.1, code="TASK_SUBMIT_FAILED")),
        contenders=_SERVICE,
    ),
    _stream("poisoned", "5 further requests refused for ever", CALM, poisoned=5),
    _latency(20, 16, 1500, contenders=_SERVICE),
    _latency(100, 16, 1500, contenders=_SERVICE),
    _latency(300, 16, 850),
    _latency(300, 64, 3000),
    dataclasses.replace(
        _stream("throttled", "10 requests/s allowed", 60, baseline="", setup=_DEFAULT_RATE,
                config={"rate_limit": 10, "rate_burst": 10, "retry_after": "1"}),
        concurrent=True,
    ),
    dataclasses.replace(
        _stream("throttled_unlimited", "10 requests/s allowed, SEEDANCE_RATE_LIMIT=1000/second", 60,
                baseline="", config={"rate_limit": 10, "rate_burst": 10, "retry_after": "1"}),
        concurrent=True, contenders=_SERVICE,
    ),
    dataclasses.replace(
        _stream("concurrency_5", "5 tasks at a time allowed", 60, baseline="", seconds=(2, 2),
                config={"max_concurrent": 5, "concurrency_mode": "refused"}),
        concurrent=True,
    ),
    Condition(
        "limit_rises", "limit raised from 5 to 50 tasks", 600,
        lambda name, servers: limit_rises(name, servers, generations=600, low=5, high=50),
        concurrent=True, needs=LIMIT + 80,
    ),
    _outage("outage", "30 s of bare 503", {"kind": "bare", "status": 503}),
    _outage("outage_busy", "30 s of SERVICE_BUSY", {"kind": "service_busy"}, contenders=_SERVICE),
    Condition(
        "lost_answers", "answer lost, task listed after 1 s, default settings", 20,
        lambda name, servers: lost_answers(name, servers, generations=20),
        concurrent=True, needs=LIMIT + 60,
    ),
    Condition(
        "kill_one", "kill -9 of one of two workers, default times", 200,
        lambda name, servers: kill_one(name, servers, generations=200),
        concurrent=True, needs=LIMIT + 80,
    ),
    dataclasses.replace(
        _stream("fixed_seeds", "8 equal requests with one seed, 4 answers lost", 8, baseline="",
                setup=_EQUAL_REQUESTS, config={"list_lag": 1}, seed=4242,
                fault={"endpoint": "submit", "kind": "lost", "times": 4}),
        concurrent=True,
    ),
)  # fmt: skip
