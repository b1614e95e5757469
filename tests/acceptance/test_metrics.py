"""`seedance metrics` as a process: it serves, tells of a database that is away, and ends."""

import json
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import requests

from tests.acceptance.conftest import Service, wait_for
from worker.embedded_postgres import EmbeddedPostgres


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def scraping(port: int, **headers: str) -> Callable[[], requests.Response | None]:
    def scrape() -> requests.Response | None:
        try:
            return requests.get(f"http://127.0.0.1:{port}/metrics", headers=headers, timeout=30)
        except requests.ConnectionError:
            return None

    return scrape


def test_it_serves_the_figures_of_other_processes_and_ends(service: Service) -> None:
    worker = service.ready(service.worker(SEEDANCE_METRICS_EVERY="0.2"))
    service.ended(service.enqueue())
    port = free_port()
    token = "a-token-for-scrapers"
    metrics = service._start(
        "metrics", ["seedance", "metrics", "--port", str(port)], {"SEEDANCE_METRICS_TOKEN": token}
    )
    scrape = scraping(port, Authorization=f"Bearer {token}")

    def told(line: str) -> Callable[[], bool]:
        def there() -> bool:
            answer = scrape()
            return answer is not None and line in answer.text.splitlines()

        return there

    wait_for(told('seedance_provider_requests_total{endpoint="submit",outcome="ok"} 1.0'))
    wait_for(told('seedance_transitions_total{event="complete"} 1.0'))
    wait_for(told("seedance_dispatchers 1.0"))
    refused = scraping(port)()
    assert refused is not None
    assert refused.status_code == 401
    assert metrics.terminate() == 0
    assert worker.alive
    lines = [json.loads(line) for line in metrics.text().splitlines()]
    assert {line["process"] for line in lines} == {"metrics"}
    assert token not in metrics.text()


@pytest.mark.timeout(180)
def test_a_database_that_is_frozen_or_gone_is_told_and_holds_nobody(
    tmp_path: Path, service: Service
) -> None:
    with EmbeddedPostgres(tmp_path / "own", durable=False) as own:
        url = own.create_database("own")
        migrated = service._start(
            "migrate", ["seedance", "migrate"], {"SEEDANCE_DATABASE_URL": url}
        )
        assert migrated.wait() == 0
        port = free_port()
        service._start(
            "metrics",
            ["seedance", "metrics", "--port", str(port)],
            {"SEEDANCE_DATABASE_URL": url},
        )
        scrape = scraping(port)

        def status() -> int | None:
            answer = scrape()
            return None if answer is None else answer.status_code

        wait_for(lambda: status() == 200, "the figures are served")
        pid_file = next((tmp_path / "own").rglob("postmaster.pid"))
        postmaster = psutil.Process(int(pid_file.read_text().split()[0]))
        frozen = [postmaster, *postmaster.children(recursive=True)]
        for process in frozen:
            os.kill(process.pid, signal.SIGSTOP)
        try:
            wait_for(lambda: status() == 503, "the scrape says so")
        finally:
            for process in frozen:
                os.kill(process.pid, signal.SIGCONT)
        wait_for(lambda: status() == 200, "it recovers")
    wait_for(lambda: status() == 503, "a server that is gone is told as well")
