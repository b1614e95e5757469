"""The benchmark still runs: its quick form with tiny numbers, this service beside plain Celery."""

import json
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TINY = {"instant": 10, "idle": 1, "singles": 3, "bulk": 20, "beside": 5, "seconds": "[1, 2]"}


@pytest.mark.timeout(420)
def test_the_quick_form_measures_this_service_and_plain_celery(tmp_path: Path):
    changes = [f"--set={name}={value}" for name, value in (TINY | {"minutes": 60}).items()]
    argv = [sys.executable, "-m", "benchmarks.run", "--quick", "--only", "service,celery"]
    done = subprocess.run(
        [*argv, "--out", str(tmp_path), *changes],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "results.json").read_text())
    figures = {(cell["contender"], cell["kind"]): cell["figures"] for cell in results["cells"]}
    assert len(figures) == 6
    for contender in ("service", "celery"):
        assert figures[contender, "enqueue"]["bulk_per_second"] > 0
        instant = figures[contender, "instant"]
        assert instant["per_second"] > 0
        assert instant["cpu_ms"] > 0
        assert instant["idle_ms"] > 0
        assert instant["requests"] >= 1
        followed = figures[contender, "in_flight"]
        assert "note" not in followed
        assert 0 < followed["lag_median"] <= followed["lag_99th"]
        assert followed["requests"] > 1
        assert followed["memory_mb"] > 10
    # Plain Celery submits, and looks once: what has ended is seen at the first look.
    assert figures["celery", "instant"]["requests"] == 2
    tables = (tmp_path / "tables.md").read_text()
    assert "| plain Celery |" in tables
    assert "| `enqueue_many` | ≥ 20,000 rows/s |" in tables
    for picture in tmp_path.glob("*.svg"):
        ET.parse(picture)
    assert (tmp_path / "requests.svg").exists()
