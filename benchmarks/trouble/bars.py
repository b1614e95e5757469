"""The goals of the section "In trouble", and its tables."""

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.results import Results
from benchmarks.trouble.conditions import CONDITIONS

_FULL = 0.95
"""Share of the cores from which on the processors count as full."""

Value = Callable[[Results, str], float | None]
"""Returns a figure of a contender."""


@dataclass(frozen=True)
class Bar:
    """A bound on one figure of one condition; without a bound the figure is information."""

    condition: str
    measure: str
    value: Value
    bound: float | None = None
    unit: str = "×"
    at_least: bool = False
    detail: Callable[[Results, str], str] = lambda _results, _contender: ""
    """Returns what is shown behind the figure."""

    @property
    def kind(self) -> str:
        """The name of the cells in the results."""
        return f"trouble:{self.condition}"

    def note(self, results: Results, contender: str) -> str | None:
        """Return why there is no complete figure, if so."""
        return results.note(contender, self.kind) if self.condition else None

    def shown(self, results: Results, contender: str) -> str:
        """Return the figure as text, with notes and details."""
        value = self.value(results, contender)
        note = self.note(results, contender)
        if value is None:
            return note or "–"
        detail = "; ".join(filter(None, [self.detail(results, contender), note or ""]))
        return f"{_number(value)} {self.unit}".strip() + (f" ({detail})" if detail else "")

    def goal(self) -> str:
        """Return the bound as text."""
        if self.bound is None:
            return "–"
        return f"{'≥' if self.at_least else '≤'} {_number(self.bound)} {self.unit}".strip()

    def verdict(self, results: Results) -> str:
        """Return whether this service meets the bound."""
        if self.bound is None:
            return ""
        value = self.value(results, "service")
        if value is None:
            return "missed" if self.note(results, "service") else "not measured"
        met = value >= self.bound if self.at_least else value <= self.bound
        if met:
            return "met"
        busy = results.median("service", self.kind, "busy_cores")
        full = busy is not None and busy >= _FULL * results.machine["cores"]
        return "missed, processors full" if full else "missed"


def figure(condition: str, name: str, divided_by: float = 1.0) -> Value:
    """Return the median of a figure, divided by a constant."""

    def value(results: Results, contender: str) -> float | None:
        found = results.median(contender, f"trouble:{condition}", name)
        return None if found is None else found / divided_by

    return value


def over_calm(condition: str, name: str = "seconds", share: float = 1.0) -> Value:
    """Return a time divided by the same contender's in calm, with `share` of the generations."""

    def value(results: Results, contender: str) -> float | None:
        found = results.median(contender, f"trouble:{condition}", name)
        calm = results.median(contender, "trouble:calm", name)
        return found / (calm * share) if found is not None and calm else None

    return value


def over_celery(condition: str, name: str) -> Value:
    """Return this service's figure divided by plain Celery's."""

    def value(results: Results, contender: str) -> float | None:
        ours = results.median("service", f"trouble:{condition}", name)
        other = results.median("celery", f"trouble:{condition}", name)
        return ours / other if contender == "service" and ours and other else None

    return value


def wrong(results: Results, contender: str) -> float | None:
    """Return the doubled, lost and wrongly failed generations of all conditions."""
    cells = [
        cell
        for cell in results.cells
        if cell.contender == contender and cell.kind.startswith("trouble:")
        if "doubled" in cell.figures
    ]
    if not cells:
        return None
    return sum(
        cell.figures.get(name, 0) for cell in cells for name in ("doubled", "lost", "failed")
    )


def _cores(condition: str) -> Callable[[Results, str], str]:
    def detail(results: Results, contender: str) -> str:
        kind = f"trouble:{condition}"
        rate = results.median(contender, kind, "per_second")
        busy = results.median(contender, kind, "busy_cores")
        own = results.median(contender, kind, "trial_cores")
        worker = results.median(contender, kind, "busiest_worker")
        if rate is None or busy is None or own is None or worker is None:
            return ""
        return (
            f"{rate:.0f}/s; {busy:.1f} of {results.machine['cores']} cores busy,"
            f" {own:.1f} by this trial, {worker:.1f} by its busiest worker"
        )

    return detail


def _latency(ms: int, threads: int, *, goal: bool) -> tuple[Bar, ...]:
    name = f"latency_{ms}_{threads}"
    measure = f"{ms} ms, {threads} threads: submits/s over threads ÷ latency"
    share = Bar(
        name, measure, figure(name, "ideal_share"), 0.9 if goal else None, at_least=True,
        detail=_cores(name),
    )  # fmt: skip
    if not goal:
        return (share,)
    ahead = Bar(
        name, f"{ms} ms, {threads} threads: submits/s over plain Celery's",
        over_celery(name, "per_second"), 1, at_least=True,
    )  # fmt: skip
    return share, ahead


def _outage(name: str, about: str) -> tuple[Bar, ...]:
    return (
        Bar(name, f"30 s of {about}: submits during it", figure(name, "submits_during"), 40, ""),
        Bar(name, f"30 s of {about}: rate 5 s after it over the rate before",
            figure(name, "recovered_share"), 0.8, at_least=True),
    )  # fmt: skip


BARS: tuple[Bar, ...] = (
    Bar("calm", "300 generations, no faults", figure("calm", "seconds"), unit="s"),
    Bar("busy_10", "10 % SERVICE_BUSY: time over calm", over_calm("busy_10"), 1.5),
    Bar("busy_50", "50 % SERVICE_BUSY: time over calm", over_calm("busy_50", share=2 / 3), 4),
    Bar("ambiguous_10", "10 % bare 500: time until 90 % ended over calm",
        over_calm("ambiguous_10", "seconds_90"), 1.5),
    Bar("failed_10", "10 % TASK_SUBMIT_FAILED: time over calm", over_calm("failed_10")),
    Bar("poisoned", "5 requests refused for ever: time of 300 others over calm",
        over_calm("poisoned"), 1.2),
    *_latency(20, 16, goal=False),
    *_latency(100, 16, goal=False),
    *_latency(300, 16, goal=True),
    *_latency(300, 64, goal=True),
    Bar("throttled", "10 requests/s allowed: time over ideal (8 s)",
        figure("throttled", "seconds", 8), 1.6),
    Bar("throttled", "10 requests/s allowed: share of requests refused",
        figure("throttled", "throttled_share", 0.01), 10, "%"),
    Bar("throttled_unlimited", "the same with SEEDANCE_RATE_LIMIT=1000/second: time over ideal",
        figure("throttled_unlimited", "seconds", 8)),
    Bar("throttled_unlimited", "the same with SEEDANCE_RATE_LIMIT=1000/second: share refused",
        figure("throttled_unlimited", "throttled_share", 0.01), unit="%"),
    Bar("concurrency_5", "5 tasks at a time allowed: time over ideal (24 s)",
        figure("concurrency_5", "seconds", 24), 1.4),
    Bar("concurrency_5", "5 tasks at a time allowed: refusals",
        figure("concurrency_5", "concurrency_refusals"), 15, ""),
    Bar("limit_rises", "limit raised from 5 to 50: until 80 % used",
        figure("limit_rises", "used_after"), 60, "s"),
    *_outage("outage", "bare 503"),
    *_outage("outage_busy", "SERVICE_BUSY"),
    Bar("lost_answers", "answer lost: until the task is followed, median",
        figure("lost_answers", "followed_median"), 10, "s"),
    Bar("lost_answers", "answer lost: until the task is followed, worst of 20",
        figure("lost_answers", "followed_worst"), 20, "s"),
    Bar("kill_one", "kill -9 of one of two workers: until all other work is submitted",
        figure("kill_one", "moved_after"), 10, "s"),
    Bar("kill_one", "the same, work without an intent at the kill",
        figure("kill_one", "unclaimed_moved_after"), unit="s"),
    Bar("fixed_seeds", "8 equal requests with one seed, 4 answers lost: until all ended",
        figure("fixed_seeds", "seconds"), unit="s"),
    Bar("", "doubled, lost or wrongly failed generations, all conditions", wrong, 0, ""),
)  # fmt: skip


def is_measured(results: Results) -> bool:
    """Return whether any condition was measured."""
    return any(cell.kind.startswith("trouble:") for cell in results.cells)


def section(results: Results) -> str:
    """Return the goals and the figures of each condition as Markdown, or nothing if none ran."""
    if not is_measured(results):
        return ""
    measured = {cell.kind for cell in results.cells}
    rows = [
        "## In trouble", "",
        "| condition | measure | goal | measured | | plain Celery |",
        "|---|---|---|---|---|---|",
    ]  # fmt: skip
    rows += [
        f"| {bar.condition or 'all'} | {bar.measure} | {bar.goal()}"
        f" | {bar.shown(results, 'service')} | {bar.verdict(results)}"
        f" | {bar.shown(results, 'celery')} |"
        for bar in BARS
        if not bar.condition or bar.kind in measured
    ]
    rows += ["", *_figures(results)]
    return "\n".join(rows) + "\n"


_COLUMNS = (
    ("seconds_90", "90 % ended, s"),
    ("seconds", "all ended, s"),
    ("submits", "submits each"),
    ("requests", "requests each"),
    ("doubled", "doubled"),
    ("lost", "lost"),
    ("failed", "wrongly failed"),
)


def _figures(results: Results) -> list[str]:
    head = " | ".join(label for _, label in _COLUMNS)
    rows = [f"| condition | | {head} | |", "|---|---|" + "---:|" * len(_COLUMNS) + "---|"]
    for condition in CONDITIONS:
        for contender in results.contenders(condition.kind):
            values = [results.median(contender, condition.kind, name) for name, _ in _COLUMNS]
            cells = " | ".join("–" if value is None else _number(value) for value in values)
            note = results.note(contender, condition.kind) or ""
            rows.append(f"| {condition.title} | {contender} | {cells} | {note} |")
    return rows


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"
