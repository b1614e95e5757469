"""What a run has measured: cells, the machine, and medians over its rounds."""

import json
import os
import platform
import statistics
import subprocess
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.cells import Figures


@dataclass(frozen=True)
class Cell:
    """One measurement of one contender."""

    contender: str
    kind: str
    """`enqueue`, `instant`, `in_flight`, `kill`, or `trouble:` and the name of a condition."""
    size: int
    """Generations."""
    round: int
    load: float
    """The machine's load average (one minute) before it."""
    figures: Figures


@dataclass
class Results:
    """A whole run."""

    about: dict[str, str]
    """What each contender is, with its version."""
    machine: dict[str, Any]
    form: str
    cells: list[Cell] = field(default_factory=list)

    def median(self, contender: str, kind: str, name: str, size: int | None = None) -> float | None:
        """The median of a figure over the rounds; None where nobody has it."""
        found = [
            cell.figures[name]
            for cell in self.of(kind, size)
            if cell.contender == contender and cell.figures.get(name) is not None
        ]
        return statistics.median(found) if found else None

    def note(self, contender: str, kind: str, size: int | None = None) -> str | None:
        """What was said instead of a figure, or about it."""
        notes = [c.figures.get("note") for c in self.of(kind, size) if c.contender == contender]
        return next((note for note in notes if note), None)

    def of(self, kind: str, size: int | None = None) -> list[Cell]:
        """The cells of a kind, and of a size if one is named."""
        found = [c for c in self.cells if c.kind == kind and size in (None, c.size)]
        return sorted(found, key=lambda cell: (self._place(cell.contender), cell.size))

    def _place(self, contender: str) -> int:
        names = list(self.about)
        return names.index(contender) if contender in names else len(names)

    def contenders(self, kind: str) -> list[str]:
        """Who was measured in this kind, in their own order."""
        return list(dict.fromkeys(cell.contender for cell in self.of(kind)))

    def sizes(self, kind: str) -> list[int]:
        """Which sizes were measured in this kind."""
        return sorted({cell.size for cell in self.of(kind)})

    def write(self, path: Path) -> None:
        """As JSON."""
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def read(cls, path: Path) -> "Results":
        """What `write` wrote."""
        found = json.loads(path.read_text())
        found["cells"] = [Cell(**cell) for cell in found["cells"]]
        return cls(**found)


def rounded(figures: Figures) -> Figures:
    """Four digits: more would be noise, and a change of every line at every run."""
    return {k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in figures.items()}


def machine() -> dict[str, Any]:
    """This machine, as far as it matters."""
    return {
        "cores": os.cpu_count(),
        "processor": _processor(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9),
        "system": f"{platform.system()} {platform.release().split('-')[0]}",
        "python": platform.python_version(),
        "commit": _commit(),
        "at": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _commit() -> str:
    argv = ["git", "describe", "--always", "--dirty", "--abbrev=9"]
    done = subprocess.run(
        argv, cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or "unknown"
