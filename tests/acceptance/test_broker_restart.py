"""The broker goes and comes back: no worker dies of it, and nothing is lost.

This decides which Celery may be used: 5.7.0 with kombu 5.7.0 lost a worker that held
unacknowledged messages.
"""

import json
from pathlib import Path

import pytest

import simulator
from models.lifecycle import Status
from tests.acceptance.conftest import Service, wait_for
from worker.embedded_valkey import EmbeddedValkey


@pytest.fixture
def own_valkey(tmp_path: Path):
    with EmbeddedValkey(tmp_path / "valkey", durable=False) as server:
        yield server


@pytest.mark.parametrize("pool", ["threads", "prefork"])
def test_workers_outlive_a_broker_restart(
    pool: str, service: Service, sim: simulator.Simulator, own_valkey: EmbeddedValkey
):
    service.env["SEEDANCE_BROKER_URL"] = own_valkey.url()
    worker = service.ready(service.celery_worker("--pool", pool))
    # Slow answers keep messages in hand while the broker goes.
    sim.fault("get", "delay_after", probability=1.0, seconds=0.5)
    ids = [service.enqueue(f"cat {number} [sim: seconds=60]") for number in range(8)]
    wait_for(lambda: len(sim.submits()) == len(ids), "all are submitted")

    for _ in range(2):
        own_valkey.kill()
        own_valkey.start()
        seen = sim.received("get")
        wait_for(lambda before=seen: sim.received("get") > before, "looking goes on")

    sim.clear_faults()
    for generation_id in ids:
        assert service.ended(generation_id).status is Status.COMPLETED
    assert worker.alive, worker.text()[-2000:]
    assert len(sim.submits()) == len(ids)


def test_an_outage_is_a_warning_and_no_error(service: Service, own_valkey: EmbeddedValkey):
    """It mends itself: whoever is called by errors, or has them reported, is not called by it."""
    service.env["SEEDANCE_BROKER_URL"] = own_valkey.url()
    processes = [service.ready(service.worker()), service.beat(SEEDANCE_BALANCE_EVERY="1")]
    wait_for(lambda: "Sending due task balance" in processes[1].text(), "beat sends")

    own_valkey.kill()
    for process in processes:
        wait_for(lambda said=process.text: said().count("the broker is away") > 1, "it says so")
    own_valkey.start()
    generation_id = service.enqueue()
    assert service.ended(generation_id).status is Status.COMPLETED

    for process in processes:
        process.terminate(60)  # so that no line is half written
    written = [line for process in processes for line in process.text().splitlines()]
    assert [line for line in written if not line.startswith("{")] == [], "each line is JSON"
    lines = [json.loads(line) for line in written]
    assert [line for line in lines if line["level"] not in ("info", "warning")] == []
