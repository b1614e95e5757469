"""`seedance up`: everything runs, is found from another terminal, survives deaths, and ends."""

import base64
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

SEEDANCE = Path(sys.executable).parent / "seedance"


class Up:
    """A `seedance up` in a folder, and commands from another terminal there."""

    def __init__(self, folder: Path, *options: str, **env: str) -> None:
        self.folder = folder
        self._log = folder / "up.log"
        self._env = {**os.environ, **env}
        with self._log.open("wb") as output:
            self.process = psutil.Popen(
                [SEEDANCE, "up", *options],
                cwd=folder,
                env=self._env,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def text(self) -> str:
        return self._log.read_text()

    def wait_for(self, what: str, condition: Callable[[], Any] | None = None) -> Any:
        deadline = time.monotonic() + 60
        while not (found := condition() if condition else what in self.text()):
            assert self.process.is_running(), self.text()
            assert time.monotonic() < deadline, f"{what}\n{self.text()}"
            time.sleep(0.1)
        return found

    def command(self, *argv: str, code: int = 0) -> str:
        done = subprocess.run(
            [SEEDANCE, *argv], cwd=self.folder, capture_output=True, text=True, timeout=90
        )
        assert done.returncode == code, f"{argv}\n{done.stdout}\n{done.stderr}\n{self.text()}"
        return done.stdout

    def child(self, *words: str) -> psutil.Process | None:
        for process in self.process.children(recursive=True):
            try:
                line = " ".join(process.cmdline())
            except psutil.Error:
                continue
            if all(word in line for word in words):
                return process
        return None


Start = Callable[..., Up]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a `seedance up` of one worker, with further options; it ends with the test."""
    started: list[Up] = []

    def make(*options: str) -> Up:
        started.append(Up(tmp_path, "--workers", "1", "--speed", "30", *options))
        return started[-1]

    yield make
    for running in started:
        if running.process.is_running():
            for process in [*running.process.children(recursive=True), running.process]:
                process.kill()
            running.process.wait()


@pytest.fixture
def up(start: Start) -> Up:
    return start()


def flower_status(url: str, login: str | None) -> int:
    request = urllib.request.Request(f"{url}/")
    if login:
        request.add_header("Authorization", f"Basic {base64.b64encode(login.encode()).decode()}")
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


@pytest.mark.timeout(180)
def test_runs_everything_and_ends_everything(up: Up) -> None:
    up.wait_for("Ctrl-C stops everything")
    made = up.folder / "seedance-data" / "up.json"
    assert made.stat().st_mode & 0o077 == 0

    checks = json.loads(up.command("doctor", "--json"))
    assert [check for check in checks if check["level"] != "ok"] == []

    line = next(line for line in up.text().splitlines() if "Flower: " in line)
    url, user, password = line.split()[3], line.split()[5], line.split()[7]
    assert flower_status(url, None) == 401
    assert flower_status(url, f"{user}:{password}") == 200

    line = next(line for line in up.text().splitlines() if "figures for Prometheus: " in line)
    with urllib.request.urlopen(line.split()[-1], timeout=20) as answer:
        assert b"seedance_dispatchers 1" in answer.read()

    # A worker that is killed, and PostgreSQL as well, come back; what was enqueued is done.
    worker = up.child("worker.cli worker")
    assert worker is not None
    postmaster = up.folder / "seedance-data" / "postgres" / "postmaster.pid"
    worker.kill()
    os.kill(int(postmaster.read_text().split()[0]), signal.SIGKILL)
    up.wait_for("PostgreSQL had died and was started again")
    up.wait_for("worker1 ended (by SIGKILL); start 2")
    done = json.loads(up.command("generate", "--text", "a cat", "--wait", "--json"))
    assert done["status"] == "completed"

    started = up.process.children(recursive=True)
    up.process.send_signal(signal.SIGINT)
    assert up.process.wait(60) == 0, up.text()
    assert "everything is stopped" in up.text()
    _, alive = psutil.wait_procs(started, timeout=5)
    assert alive == []
    assert not made.exists()
    up.command("list", code=2)


@pytest.mark.timeout(180)
def test_what_it_tells_to_type_works_with_a_folder_of_its_own(start: Start, tmp_path: Path) -> None:
    data = tmp_path / "data of mine"
    up = start("--no-flower", "--data-dir", str(data))
    up.wait_for("Ctrl-C stops everything")
    line = next(line for line in up.text().splitlines() if "in another terminal" in line)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    typed = line.split(": ", 2)[2].replace("seedance generate", f"{SEEDANCE} generate")
    done = subprocess.run(
        typed, shell=True, cwd=elsewhere, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, f"{typed}\n{done.stderr}"


def test_refuses_to_mix_simulated_and_real(tmp_path: Path) -> None:
    folder = tmp_path / "seedance-data"
    folder.mkdir()
    (folder / "provider").write_text("the provider\n")
    done = subprocess.run(
        [SEEDANCE, "up", "--no-flower"], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert "were made with the provider" in done.stderr
    assert not (folder / "servers.json").exists(), "what was started is stopped again"
