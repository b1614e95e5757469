"""Valkey behind sentinels: the master dies at work, and all is done once."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from celery import Celery

import simulator
from models.lifecycle import Status
from tests.acceptance.conftest import Service, wait_for
from tests.sentinels import MASTER, Sentinels
from worker import broker_address
from worker.checkup.finding import Level
from worker.checkup.valkey import broker
from worker.limiter import Limiter

pytestmark = pytest.mark.timeout(300)

TEXT = {"content": [{"type": "text", "text": "a cat"}]}


@pytest.fixture
def sentinels(tmp_path: Path) -> Iterator[Sentinels]:
    servers = Sentinels(tmp_path / "sentinels")
    try:
        servers.start()
        yield servers
    finally:
        servers.stop()


@pytest.fixture
def broker_url(sentinels: Sentinels) -> str:
    return sentinels.url


def test_the_master_dies_at_work(
    service: Service,
    sim: simulator.Simulator,
    sentinels: Sentinels,
    caplog: pytest.LogCaptureFixture,
):
    worker = service.ready(service.worker())
    limiter = Limiter("1000/second", broker_address.normalise(sentinels.url))
    limiter.wait()
    ids = [str(service.enqueue(f"cat {number} [sim: seconds=60]")) for number in range(10)]
    wait_for(lambda: len(sim.submits()) >= 3, "some are submitted")

    sentinels.kill_master()
    url = broker_address.normalise(sentinels.url)
    with Celery(broker=broker_address.read(url).url, set_as_current=False) as app:
        app.conf.broker_transport_options = {"master_name": MASTER}
        ids.append(app.send_task("seedance.generate", kwargs={"request": TEXT}).id)

    for generation_id in ids:
        assert service.ended(generation_id, 120).status is Status.COMPLETED
    assert worker.alive, worker.text()[-2000:]
    assert len(sim.submits()) == len(ids)
    checks = broker(url).checks
    assert checks[0].level is Level.OK, checks
    assert checks[0].found.startswith("Valkey")
    assert checks[-1].level is Level.OK, "the worker answers through the new master"
    caplog.clear()
    limiter.wait()
    assert not caplog.records, "the rate is shared through the new master"
