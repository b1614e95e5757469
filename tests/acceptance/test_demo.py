"""`seedance demo` as a newcomer runs it: in a pipe, side by side, again, with servers of theirs."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from models import intake
from worker.requests import new_generation

SEEDANCE = Path(sys.executable).parent / "seedance"
WEIRD = {
    "SEEDANCE_API_KEY": "a-real-key-that-must-not-be-used",
    "SEEDANCE_API_BASE_URL": "https://192.0.2.1",
    "SEEDANCE_LEASE": "nonsense",
    "SEEDANCE_MEDIA_ROOTS": "/nowhere",
    "SEEDANCE_RATE_LIMIT": "1/hour",
    "SEEDANCE_CONCURRENCY": "many",
    "SEEDANCE_UNKNOWN": "1",
}


class Demo:
    """A demo that runs in a folder."""

    def __init__(self, folder: Path, **env: str) -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self._log = folder / "output.log"
        with self._log.open("wb") as output:
            self._process = subprocess.Popen(
                [SEEDANCE, "demo"],
                cwd=folder,
                env={**os.environ, **env},
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def end(self) -> tuple[int, str]:
        try:
            code = self._process.wait(200)
        finally:
            self._process.kill()
            self._process.wait()
        return code, self._log.read_text()


def check(text: str) -> None:
    """What the demo prints when all is well."""
    for name in ("text to video", "image to video", "video reference", "any Celery client"):
        assert f"{name:<18} completed: " in text
    assert "refused prompt     failed: CONTENT_MODERATION_FAILED" in text
    assert "answer lost        uncertain" in text
    assert "answer lost        completed: " in text
    assert "54 estimated, 45 charged in the ledger, 45 off the simulator's account" in text
    assert "webhooks: 6 of 6 came to a listener, signatures verified" in text
    assert "videos: 5 stored in " in text
    assert text.rstrip().endswith("all 6 generations ended as they should")


@pytest.mark.timeout(480)
def test_two_side_by_side_whatever_the_environment_says(tmp_path: Path) -> None:
    demos = [Demo(tmp_path / "a"), Demo(tmp_path / "b", **WEIRD)]
    for demo in demos:
        code, text = demo.end()
        assert code == 0, text
        check(text)
        log = (demo.folder / "seedance-data" / "demo" / "processes.log").read_text()
        assert "Traceback" not in log
        assert "a-real-key" not in log + text


@pytest.mark.timeout(480)
def test_with_servers_of_ones_own(
    tmp_path: Path, database_url: str, broker_url: str, rt: Any
) -> None:
    given = {"SEEDANCE_DATABASE_URL": database_url, "SEEDANCE_BROKER_URL": broker_url}
    code, text = Demo(tmp_path, **given).end()
    assert code == 0, text
    check(text)
    assert not (tmp_path / "seedance-data" / "demo" / "postgres").exists()

    # With work of others in that database it does nothing at all.
    with rt.engine.begin() as conn:
        intake.accept(conn, new_generation({"content": [{"type": "text", "text": "theirs"}]}))
    code, text = Demo(tmp_path, **given).end()
    assert code == 2, text
    assert "1 generations that have not ended" in text
