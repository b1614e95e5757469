"""Charts as SVG: small, the same for the same figures, readable on light and dark pages.

Written by hand, as a plotting library would add its version to each picture, and dark pages to its
troubles.
"""

import math
from collections.abc import Mapping, Sequence
from html import escape

Series = Mapping[str, Sequence[tuple[float, float]]]
"""Points (x, y), both above zero, by title; each title keeps its place among the colours."""

WIDTH, HEIGHT = 720, 400
LEFT, RIGHT, TOP, BOTTOM = 64, 190, 48, 52
# Okabe and Ito's colours, told apart by most eyes; the first is this service.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
STYLE = (
    "text{font:13px system-ui,sans-serif;fill:#24292f}.t{font-size:15px;font-weight:600}"
    ".g{stroke:#8c959f;stroke-opacity:.35}.s{fill:none;stroke-width:2.2}"
    "@media(prefers-color-scheme:dark){text{fill:#e6edf3}}"
)


def lines(title: str, unit: str, x_label: str, series: Series) -> str:
    """Lines with a point for each value, both axes logarithmic."""
    points = [point for line in series.values() for point in line]
    x = _Scale([p[0] for p in points], LEFT, WIDTH - RIGHT)
    y = _Scale([p[1] for p in points], HEIGHT - BOTTOM, TOP)
    parts = [
        *(_horizontal(y.at(tick), f"{_number(tick)} {unit}".strip()) for tick in y.ticks()),
        *(_vertical(x.at(tick), _number(tick)) for tick in x.ticks(only_tens=True)),
        _centred((LEFT + WIDTH - RIGHT) // 2, HEIGHT - 12, x_label),
    ]
    for number, (name, line) in enumerate(series.items()):
        colour = COLOURS[number % len(COLOURS)]
        path = " ".join(f"{x.at(px):.1f},{y.at(py):.1f}" for px, py in line)
        if len(line) > 1:
            parts.append(f'<polyline class="s" stroke="{colour}" points="{path}"/>')
        for px, py in line:
            told = f"{name}: {_number(py)} {unit} at {_number(px)}"
            parts.append(_point(x.at(px), y.at(py), colour, told))
        parts.append(_legend(number, colour, name))
    return _picture(title, parts, HEIGHT)


def bars(title: str, values: Mapping[str, float]) -> str:
    """A horizontal bar for each value."""
    left, step = 190, 34
    most = max(values.values())
    parts = []
    for number, (name, value) in enumerate(values.items()):
        y = TOP + number * step
        width = (WIDTH - left - 80) * value / most
        colour = COLOURS[number % len(COLOURS)]
        parts += [
            f'<text x="{left - 10}" y="{y + 16}" text-anchor="end">{escape(name)}</text>',
            f'<rect x="{left}" y="{y}" width="{width:.1f}" height="22" rx="3" fill="{colour}"/>',
            f'<text x="{left + width + 8:.1f}" y="{y + 16}">{_number(value)}</text>',
        ]
    return _picture(title, parts, TOP + len(values) * step + 12)


class _Scale:
    """A logarithmic axis over whole steps of 1, 2, 5, 10."""

    def __init__(self, values: Sequence[float], start: float, end: float) -> None:
        self._low = _step(min(values), down=True)
        self._high = _step(max(values), down=False)
        if self._low == self._high:
            self._high = self._low * 10
        self._start, self._end = start, end

    def at(self, value: float) -> float:
        """Where a value stands in the picture."""
        share = math.log(value / self._low) / math.log(self._high / self._low)
        return self._start + share * (self._end - self._start)

    def ticks(self, *, only_tens: bool = False) -> list[float]:
        """Where to write a number; every 1, 2 and 5, or fewer if those are many."""
        decades = range(math.floor(math.log10(self._low)), math.ceil(math.log10(self._high)) + 1)
        factors = (1,) if only_tens or len(decades) > 5 else (1, 2, 5)
        found = [factor * 10.0**decade for decade in decades for factor in factors]
        return [tick for tick in found if self._low * 0.999 <= tick <= self._high * 1.001]


def _step(value: float, *, down: bool) -> float:
    decade = 10.0 ** math.floor(math.log10(value))
    steps = [factor * decade for factor in (1, 2, 5, 10)]
    if down:
        return max(step for step in steps if step <= value * 1.001)
    return min(step for step in steps if step >= value * 0.999)


def _centred(x: float, y: float, text: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="middle">{escape(text)}</text>'


def _point(x: float, y: float, colour: str, told: str) -> str:
    circle = f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}">'
    return f"{circle}<title>{escape(told)}</title></circle>"


def _horizontal(y: float, label: str) -> str:
    return (
        f'<line class="g" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{label}</text>'
    )


def _vertical(x: float, label: str) -> str:
    return (
        f'<line class="g" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>'
        + _centred(x, HEIGHT - BOTTOM + 18, label)
    )


def _legend(number: int, colour: str, name: str) -> str:
    x, y = WIDTH - RIGHT + 16, TOP + 8 + number * 24
    return (
        f'<circle cx="{x}" cy="{y}" r="5" fill="{colour}"/>'
        f'<text x="{x + 12}" y="{y + 4}">{escape(name)}</text>'
    )


def _picture(title: str, parts: Sequence[str], height: int) -> str:
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n"
        f'<text class="t" x="{LEFT}" y="26">{escape(title)}</text>\n{body}\n</svg>\n'
    )


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"
