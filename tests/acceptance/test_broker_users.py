"""The broker's users of docs/operate.md: each can do its work, and a producer nothing else."""

import re
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from celery import Celery
from kombu.exceptions import OperationalError

from models.lifecycle import Status
from tests.acceptance.conftest import ROOT, Service, wait_for
from tests.acceptance.test_flower import LOGIN, Flower
from worker.embedded_valkey import EmbeddedValkey

RECIPE = re.findall(
    r"^ACL SETUSER .+$", (ROOT / "docs" / "operate.md").read_text(encoding="utf-8"), re.M
)
REQUEST = {"content": [{"type": "text", "text": "a cat"}]}


@pytest.fixture
def users(tmp_path: Path) -> Iterator[dict[str, str]]:
    """Addresses of a broker that was set up as the document says, by user; `default` is off."""
    with EmbeddedValkey(tmp_path / "own", durable=False) as valkey:
        found = {}
        with redis.Redis.from_url(valkey.url()) as admin:
            for line in RECIPE:
                admin.execute_command(*line.split())
                _, _, name, *rules = line.split()
                [password] = [rule[1:] for rule in rules if rule.startswith(">")]
                found[name] = valkey.url().replace("://", f"://{name}:{password}@")
            yield found
            denied = [entry for entry in admin.acl_log() if entry["username"] != MEAN]
            assert denied == [], "the recipe gives what is needed"


MEAN = "seedance_producer"


@pytest.mark.timeout(240)
def test_each_user_does_its_work_and_a_producer_nothing_else(
    service: Service, users: dict[str, str], tmp_path: Path
):
    service.env["SEEDANCE_BROKER_URL"] = users["seedance_worker"]
    often = {"SEEDANCE_RECONCILE_EVERY": "1", "SEEDANCE_BALANCE_EVERY": "1"}
    worker = service.ready(service.worker(**often))
    service.beat(**often)
    (tmp_path / "flower").mkdir()
    flower = Flower(users["seedance_flower"], tmp_path / "flower", FLOWER_BASIC_AUTH=LOGIN)
    service._processes.append(flower.process)
    flower.ready()

    with Celery(broker=users["seedance_producer"]) as producer:
        sent = producer.send_task("seedance.generate", kwargs={"request": REQUEST})
        assert service.ended(sent.id).status is Status.COMPLETED
        wait_for(lambda: flower.of(sent.id), "Flower hears of it")
        assert "seedance.stages" in flower.get("/api/queues/length")

        producer.conf.broker_transport_options = {"max_retries": 0}
        for evil in (
            lambda: producer.control.shutdown(),
            lambda: producer.send_task("seedance.poll", [str(uuid.uuid4()), 1], queue="other"),
        ):
            with pytest.raises((OperationalError, redis.ResponseError)):
                evil()
    with redis.Redis.from_url(users["seedance_producer"]) as raw:
        for command in (
            ("LPUSH", "seedance.stages", "x"),
            ("LRANGE", "celery", "0", "-1"),
            ("RPOP", "celery"),
            ("DEL", "celery"),
            ("FLUSHALL",),
            ("KEYS", "*"),
            ("CONFIG", "GET", "*"),
            ("PUBLISH", "/0.celery.pidbox", "x"),
            ("EVAL", "return redis.call('flushall')", "0"),
        ):
            with pytest.raises(redis.exceptions.NoPermissionError):
                raw.execute_command(*command)
    assert worker.alive
    assert "NoPermission" not in worker.text()
