"""A run as Markdown tables, and as charts."""

from collections.abc import Sequence
from pathlib import Path

from benchmarks.charts import Series, bars, lines
from benchmarks.entrants import TITLES
from benchmarks.results import Results
from benchmarks.trouble.bars import section as in_trouble

_OURS = "service"

_INSTANT = (
    ("per_second", "generations/s"),
    ("cpu_ms", "CPU ms each"),
    ("postgres_ms", "+ PostgreSQL ms"),
    ("valkey_ms", "+ Valkey ms"),
    ("requests", "requests each"),
    ("simulator_ms_per_request", "simulator: CPU ms a request"),
)
_IDLE = (
    ("idle_ms", "median ms"),
    ("idle_worst_ms", "worst ms"),
)
_PRODUCER = (
    ("single_ms", "one call, ms"),
    ("bulk_per_second", "many, rows/s"),
)
_IN_FLIGHT = (
    ("lag_median", "lag, median s"),
    ("lag_99th", "lag, 99th s"),
    ("requests", "requests each"),
    ("cpu_ms", "CPU ms each"),
    ("postgres_ms", "+ PostgreSQL ms"),
    ("memory_mb", "memory MB"),
    ("simulator_ms", "simulator: CPU ms each"),
    ("busy_cores", "cores busy in all"),
)
_KILL = (
    ("on_the_wire", "POSTs on the wire"),
    ("lost", "lost"),
    ("doubled", "doubled"),
    ("submitting_again", "submits again after, s"),
    ("all_ended", "all ended after, s"),
)


def tables(results: Results) -> str:
    """Everything but the goals."""
    parts = [
        _heading(results),
        _section(results, "Instant tasks", "instant", _INSTANT, None),
        _section(results, "From enqueuing to the submission, idle", "instant", _IDLE, None),
        _section(results, "Enqueuing", "enqueue", _PRODUCER, None),
        *(
            _section(results, f"{size:,} in flight", "in_flight", _IN_FLIGHT, size)
            for size in results.sizes("in_flight")
        ),
        _section(results, "kill -9 in the middle of submitting", "kill", _KILL, None),
        in_trouble(results),
    ]
    return "\n".join(filter(None, parts)) + "\n"


def _heading(results: Results) -> str:
    m = results.machine
    loads = [cell.load for cell in results.cells]
    about = "; ".join(results.about.values())
    return (
        "# A run of the benchmark\n\n"
        f"{m['at']}, commit {m['commit']}: {m['cores']} cores ({m['processor']}),"
        f" {m['memory_gb']} GB, {m['system']}, Python {m['python']}; form `{results.form}`;"
        f" load before a cell {min(loads):.1f} to {max(loads):.1f}.\n\n{about}.\n\n"
        "In parentheses: the figure divided by this service's.\n"
    )


def _section(
    results: Results, title: str, kind: str, columns: Sequence[tuple[str, str]], size: int | None
) -> str:
    names = [c.contender for c in results.of(kind, size)]
    if not names:
        return ""
    head = " | ".join(label for _, label in columns)
    rows = [f"## {title}", "", f"| | {head} |", "|---|" + "---:|" * len(columns)]
    for name in dict.fromkeys(names):
        cells = " | ".join(_told(results, name, kind, figure, size) for figure, _ in columns)
        note = results.note(name, kind, size)
        rows.append(f"| {TITLES[name]}{f' ({note})' if note else ''} | {cells} |")
    return "\n".join(rows) + "\n"


def _told(results: Results, name: str, kind: str, figure: str, size: int | None) -> str:
    value = results.median(name, kind, figure, size)
    if value is None:
        return "–"
    ours = results.median(_OURS, kind, figure, size)
    plain = f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"
    if name == _OURS or not ours or kind == "kill":
        return plain
    return (
        f"{plain} ({value / ours:.2g}×)"
        if value / ours < 100
        else f"{plain} ({value / ours:,.0f}×)"
    )


_CHARTS = (
    ("requests", "Provider requests for each generation", ""),
    ("cpu_ms", "CPU for each generation", "ms"),
    ("lag_99th", "Lag from the remote end to the local one, 99th percentile", "s"),
    ("memory_mb", "Memory of all processes", "MB"),
)


def draw(results: Results, folder: Path) -> None:
    """Charts, as far as there are figures for them."""
    for figure, title, unit in _CHARTS:
        series = _series(results, figure)
        if any(points for points in series.values()):
            chart = lines(title, unit, "tasks in flight", series)
            (folder / f"{figure}.svg").write_text(chart)
    rates = {
        TITLES[name]: value
        for name in results.contenders("instant")
        if (value := results.median(name, "instant", "per_second")) is not None
    }
    if rates:
        chart = bars("Generations a second, instant tasks", rates)
        (folder / "per_second.svg").write_text(chart)


def _series(results: Results, figure: str) -> Series:
    return {
        TITLES[name]: [
            (size, value)
            for size in results.sizes("in_flight")
            if (value := results.median(name, "in_flight", figure, size))
        ]
        for name in results.contenders("in_flight")
    }
