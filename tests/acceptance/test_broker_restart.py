"""The broker goes and comes back: no worker dies of it, and nothing is lost.

This decides which Celery may be used: 5.7.0 with kombu 5.7.0 lost a worker that held
unacknowledged messages.
"""

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
