"""Real worker processes against real servers and the simulator; killed, if a test likes."""

import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

import simulator
from models import intake, reads
from models.reads import GenerationView
from tests.waiting import PATIENCE, wait_for
from worker.requests import new_generation
from worker.runtime import Runtime

BIN = Path(sys.executable).parent
ROOT = Path(__file__).parents[2]


class Process:
    """A child in a session of its own, with its output in a file."""

    def __init__(self, argv: list[str], env: Mapping[str, str], log: Path) -> None:
        self.log = log
        with log.open("ab") as output:
            self._popen = subprocess.Popen(
                argv,
                env={**os.environ, **env},
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                start_new_session=True,
            )

    @property
    def alive(self) -> bool:
        return self._popen.poll() is None

    @property
    def returncode(self) -> int | None:
        return self._popen.poll()

    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def signal(self, number: signal.Signals) -> None:
        if self.alive:
            os.killpg(self._popen.pid, number)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        self._popen.wait(10)

    def terminate(self, timeout: float = 30.0) -> int:
        self.signal(signal.SIGTERM)
        return self._popen.wait(timeout)

    def wait(self, timeout: float = PATIENCE) -> int:
        return self._popen.wait(timeout)


class Service:
    """Workers and beats of one test, and what a producer and an operator can see."""

    def __init__(self, rt: Runtime, env: dict[str, str], folder: Path) -> None:
        self.rt = rt
        self.env = env
        self._folder = folder
        self._processes: list[Process] = []

    def worker(self, *options: str, **env: str) -> Process:
        return self._start("worker", ["seedance", "worker", "-c", "4", *options], env)

    def celery_worker(self, *options: str, **env: str) -> Process:
        """A worker as users of Celery start it."""
        command = ["celery", "-A", "worker.app", "worker", "-l", "INFO", "-c", "4", *options]
        return self._start("worker", command, env)

    def beat(self, **env: str) -> Process:
        return self._start("beat", ["seedance", "beat"], env)

    def _start(self, name: str, command: list[str], env: Mapping[str, str]) -> Process:
        log = self._folder / f"{name}-{len(self._processes)}.log"
        program, *options = command
        process = Process([str(BIN / program), *options], {**self.env, **env}, log)
        self._processes.append(process)
        return process

    def ready(self, process: Process) -> Process:
        """Wait until a worker takes messages."""

        def said_so() -> bool:
            assert process.alive, process.text()
            return " ready." in process.text()

        wait_for(said_so, "the worker is ready")
        return process

    def bare_celery(self) -> Celery:
        """A producer that knows nothing but the broker's address."""
        return Celery("elsewhere", broker=self.env["SEEDANCE_BROKER_URL"])

    def enqueue(self, text: str = "a cat", **options: Any) -> uuid.UUID:
        request = options.pop("request", None) or {"content": [{"type": "text", "text": text}]}
        with self.rt.engine.begin() as conn:
            return intake.accept(conn, new_generation(request, **options)).id

    def find(self, generation_id: uuid.UUID | str) -> GenerationView | None:
        with self.rt.engine.connect() as conn:
            return reads.get(conn, uuid.UUID(str(generation_id)))

    def ended(self, generation_id: uuid.UUID | str, timeout: float = PATIENCE) -> GenerationView:
        """Wait until the generation exists and has ended."""

        def view() -> GenerationView | None:
            found = self.find(generation_id)
            return found if found is not None and found.ended else None

        try:
            return wait_for(view, f"{generation_id} ends", timeout)
        except AssertionError:
            self.tell(generation_id)
            raise

    def history(self, generation_id: uuid.UUID) -> list[str]:
        with self.rt.engine.connect() as conn:
            return [event.event for event in reads.events(conn, generation_id)]

    def tell(self, generation_id: uuid.UUID | str) -> None:
        """Print what is known, for a test that fails."""
        with self.rt.engine.connect() as conn:
            print(reads.get(conn, uuid.UUID(str(generation_id))))  # noqa: T201
            for event in reads.events(conn, uuid.UUID(str(generation_id))):
                print(event)  # noqa: T201
        for process in self._processes:
            print(process.log.name, process.text()[-3000:])  # noqa: T201

    def stop(self) -> None:
        for process in self._processes:
            process.signal(signal.SIGCONT)
            process.kill()


@pytest.fixture
def service(
    rt: Runtime, environment: dict[str, str], sim: simulator.Simulator, tmp_path: Path
) -> Iterator[Service]:
    running = Service(rt, environment, tmp_path)
    yield running
    running.stop()
    assert sim.requests()["key_leaks"] == 0
    key = environment["SEEDANCE_API_KEY"]
    for process in running._processes:
        text = process.text()
        assert key not in text, "the API key stands in a log"
        assert "X-Amz-Signature=" not in text, "a signed URL stands in a log"
        assert "token=" not in text, "a signed URL stands in a log"
