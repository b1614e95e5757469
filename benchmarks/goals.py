"""The goals of this service, and what a run says of each."""

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.results import Results
from benchmarks.trouble.bars import BARS, is_measured

MANY = 10_000
SEVERAL = 1_000
"""In flight where it is compared with others."""


@dataclass(frozen=True)
class Goal:
    """A bound on one figure."""

    measure: str
    value: Callable[[Results], float | None]
    bound: float
    unit: str = ""
    at_least: bool = False

    def told(self, results: Results) -> str:
        """A row of the table: what was measured, and whether that meets the goal."""
        sign = "≥" if self.at_least else "≤"
        goal = f"{sign} {_number(self.bound)} {self.unit}".strip()
        value = self.value(results)
        if value is None:
            return f"| {self.measure} | {goal} | – | not measured |"
        met = value >= self.bound if self.at_least else value <= self.bound
        verdict = "met" if met else f"missed, {_number(value / self.bound)} times the goal"
        return f"| {self.measure} | {goal} | {_number(value)} {self.unit} | {verdict} |"


def _ours(kind: str, name: str, size: int | None = None) -> Callable[[Results], float | None]:
    return lambda results: results.median("service", kind, name, size)


def _against(
    other: str, kind: str, name: str, size: int | None = None
) -> Callable[[Results], float | None]:
    def ratio(results: Results) -> float | None:
        ours = results.median("service", kind, name, size)
        theirs = results.median(other, kind, name, size)
        return ours / theirs if ours and theirs else None

    return ratio


def _against_best(results: Results) -> float | None:
    others = (
        results.median(name, "instant", "per_second")
        for name in results.contenders("instant")
        if name != "service"
    )
    best = max(filter(None, others), default=None)
    ours = results.median("service", "instant", "per_second")
    return ours / best if ours and best else None


def _growth(results: Results) -> float | None:
    resting = results.median("service", "in_flight", "resting_mb", MANY)
    full = results.median("service", "in_flight", "memory_mb", MANY)
    return full - resting if full is not None and resting is not None else None


GOALS = (
    Goal("requests per generation, 10,000 in flight", _ours("in_flight", "requests", MANY), 1.3),
    Goal("lag at 10,000 in flight, median", _ours("in_flight", "lag_median", MANY), 3.5, "s"),
    Goal("lag at 10,000 in flight, 99th", _ours("in_flight", "lag_99th", MANY), 8, "s"),
    Goal("memory of all processes, 0 → 10,000 in flight: growth", _growth, 50, "MB"),
    Goal("generations/s, instant tasks, of plain Celery's",
         _against("celery", "instant", "per_second"), 2, "×", at_least=True),
    Goal("generations/s, instant tasks, of the best other's", _against_best, 1, "×", at_least=True),
    Goal("CPU per generation, 60–120 s tasks, 1,000 in flight, of plain Celery's",
         _against("celery", "in_flight", "cpu_ms", SEVERAL), 0.2, "×"),
    Goal("CPU per generation, instant tasks", _ours("instant", "cpu_ms"), 3, "ms"),
    Goal("`enqueue_many`", _ours("enqueue", "bulk_per_second"), 20_000, "rows/s", at_least=True),
    Goal("`enqueue`, median", _ours("enqueue", "single_ms"), 3, "ms"),
    Goal("enqueue to submitted, idle, median", _ours("instant", "idle_ms"), 50, "ms"),
)  # fmt: skip


def table(results: Results) -> str:
    """The goals as a Markdown table."""
    lines = ["## Goals", "", "| measure | goal | measured | |", "|---|---|---|---|"]
    lines += [goal.told(results) for goal in GOALS]
    lines += [
        f"| in trouble: {bar.measure} | {bar.goal()} | {bar.shown(results, 'service')}"
        f" | {bar.verdict(results)} |"
        for bar in BARS
        if bar.bound is not None and is_measured(results)
    ]
    return "\n".join(lines) + "\n"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
