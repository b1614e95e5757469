"""What the benchmark makes of its figures."""

import re
import xml.etree.ElementTree as ET

import pytest

from benchmarks import charts, goals, plan, telling
from benchmarks.results import Cell, Results

MACHINE = {
    "cores": 2, "processor": "one", "memory_gb": 4, "system": "Linux", "python": "3", "commit": "c",
    "at": "now",
}  # fmt: skip


def results(*cells: tuple[str, str, int, dict[str, float | str]]) -> Results:
    found = Results({"service": "this service", "celery": "Celery 5"}, MACHINE, "quick")
    for number, (contender, kind, size, figures) in enumerate(cells):
        found.cells.append(Cell(contender, kind, size, number, 0.1, dict(figures)))
    return found


def test_a_median_is_over_the_rounds_of_one_contender_and_size():
    found = results(
        ("service", "in_flight", 100, {"requests": 9.0}),
        ("service", "in_flight", 10, {"requests": 1.0}),
        ("service", "in_flight", 10, {"requests": 3.0}),
        ("service", "in_flight", 10, {"requests": 2.0}),
        ("celery", "in_flight", 10, {"requests": 8.0}),
    )
    assert found.median("service", "in_flight", "requests", 10) == 2
    assert found.median("service", "in_flight", "lag_median", 10) is None
    assert found.sizes("in_flight") == [10, 100]


def test_a_table_tells_ratios_to_this_service_and_notes():
    told = telling.tables(
        results(
            ("celery", "instant", 10, {"per_second": 50.0}),
            ("service", "instant", 10, {"per_second": 200.0}),
            ("celery", "in_flight", 10_000, {"note": "7 submitted within 5 s"}),
        )
    )
    assert "| this service | 200 | – |" in told
    assert "| plain Celery | 50 (0.25×) | – |" in told
    assert "| plain Celery (7 submitted within 5 s) | – |" in told


@pytest.mark.parametrize(
    ("rate", "verdict"), [(25_000, "met"), (10_000, "missed, 0.5 times the goal")]
)
def test_a_goal_is_met_or_missed_by_so_much(rate: float, verdict: str):
    told = goals.table(results(("service", "enqueue", 10, {"bulk_per_second": rate})))
    assert f"| `enqueue_many` | ≥ 20,000 rows/s | {rate:,} rows/s | {verdict} |" in told
    assert "| `enqueue`, median | ≤ 3 ms | – | not measured |" in told


def test_results_are_read_as_they_were_written(tmp_path):
    found = results(("service", "instant", 10, {"per_second": 200.0}))
    found.write(tmp_path / "results.json")
    assert Results.read(tmp_path / "results.json") == found


def test_a_line_chart_puts_greater_values_higher_and_further_right():
    chart = charts.lines("Cost", "ms", "tasks", {"a <b>": [(100, 2.0), (1_000, 9.0)]})
    ET.fromstring(chart)
    (x1, y1), (x2, y2) = (
        (float(x), float(y))
        for x, y in re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)" r="4"', chart)
    )
    assert x1 < x2
    assert y1 > y2
    assert charts.LEFT <= x1 <= x2 <= charts.WIDTH - charts.RIGHT
    assert charts.TOP <= y2 <= y1 <= charts.HEIGHT - charts.BOTTOM
    assert "9 ms at 1,000" in chart


def test_bars_are_as_long_as_their_values():
    chart = charts.bars("Rate", {"a": 50.0, "b": 200.0})
    ET.fromstring(chart)
    short, long = (float(width) for width in re.findall(r'<rect [^>]*width="([\d.]+)"', chart))
    assert long == pytest.approx(4 * short, rel=0.01)


def test_a_plan_takes_other_numbers():
    changed = plan.changed(plan.QUICK, ["rounds=7", "seconds=[1, 2]"])
    assert (changed.rounds, changed.seconds, changed.form) == (7, (1, 2), "quick")


@pytest.mark.parametrize("change", ["round=7", "rounds=seven", "rounds=[7]", "seconds=7", "rounds"])
def test_a_plan_refuses_what_it_has_not(change: str):
    with pytest.raises(ValueError, match=re.escape(repr(change))):
        plan.changed(plan.QUICK, [change])
