"""The examples, run as their README says, with a worker that makes the videos."""

import json
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import requests
from sqlalchemy import func, select, text
from standardwebhooks import Webhook

import simulator
from models.lifecycle import Status
from models.tables import Generation
from tests.acceptance.conftest import BIN, ROOT, Process, Service, wait_for
from tests.acceptance.test_gateway import free_port
from tests.receiver import SECRET
from worker.webhook_secrets import new_webhook_secret

EXAMPLES = ROOT / "examples"


class Shop:
    """A web server with an example in it."""

    def __init__(self, service: Service, folder: Path, app: str, *options: str, **env: str) -> None:
        self.url = f"http://127.0.0.1:{free_port()}"
        port = self.url.rpartition(":")[2]
        command = [str(BIN / "uvicorn"), *options, app, "--port", port, "--log-level", "warning"]
        env = {
            "SEEDANCE_DATABASE_URL": service.env["SEEDANCE_DATABASE_URL"],
            "PYTHONPATH": str(folder),
            **env,
        }
        self.process = Process(command, env, service._folder / f"{folder.name}.log")

    def up(self) -> "Shop":
        def answers() -> bool:
            assert self.process.alive, self.process.text()
            try:
                return requests.get(f"{self.url}/orders/{uuid.uuid4()}", timeout=10).ok is not None
            except requests.ConnectionError:
                return False

        wait_for(answers, "the shop answers")
        return self

    def order(self, prompt: object = "a cat", **headers: str) -> requests.Response:
        return requests.post(
            f"{self.url}/orders", json={"prompt": prompt}, headers=headers, timeout=30
        )

    def get(self, path: str, **options: object) -> requests.Response:
        return requests.get(f"{self.url}/orders/{path}", timeout=90, **options)


@pytest.fixture
def fastapi_shop(service: Service) -> Iterator[Shop]:
    shop = Shop(service, EXAMPLES / "fastapi_shop", "shop:app").up()
    yield shop
    shop.process.kill()


@pytest.fixture
def django_shop(service: Service) -> Iterator[Shop]:
    folder = EXAMPLES / "django_shop"
    env = {
        "SEEDANCE_DATABASE_URL": service.env["SEEDANCE_DATABASE_URL"],
        "DJANGO_SETTINGS_MODULE": "shop_settings",
        "PYTHONPATH": str(folder),
    }
    migrating = Process(
        [sys.executable, "-m", "django", "migrate"], env, service._folder / "migrate.log"
    )
    assert migrating.wait() == 0, migrating.text()
    shop = Shop(service, folder, "shop_asgi:application").up()
    yield shop
    shop.process.kill()
    with service.rt.engine.begin() as conn:
        conn.execute(text("DROP TABLE IF EXISTS shop_order, django_migrations"))


def generations(service: Service) -> int:
    with service.rt.engine.connect() as conn:
        return conn.execute(select(func.count()).select_from(Generation)).scalar_one()


def told(response: requests.Response) -> list[dict]:
    """The events of a stream."""
    blocks = response.text.strip().split("\n\n")
    return [
        {"id": int(block.split("\n")[0].removeprefix("id: "))}
        | json.loads(block.split("\n")[1].removeprefix("data: "))
        for block in blocks
    ]


def test_fastapi_stores_both_or_neither_and_streams_what_happens(
    service: Service, sim: simulator.Simulator, fastapi_shop: Shop
):
    key = str(uuid.uuid4())
    first = fastapi_shop.order("a cat", **{"Idempotency-Key": key})
    assert (first.status_code, first.json()["status"]) == (201, "accepted")
    again = fastapi_shop.order("a cat", **{"Idempotency-Key": key})
    assert again.json()["id"] == first.json()["id"] == key
    assert fastapi_shop.order("").status_code == 422
    assert fastapi_shop.get(str(uuid.uuid4())).status_code == 404
    with service.rt.engine.begin() as conn:  # as if the shop's own insert failed
        conn.execute(text("ALTER TABLE shop_orders ADD CHECK (prompt <> 'a thief')"))
    assert fastapi_shop.order("a thief").status_code == 500
    assert generations(service) == 1, "what was rolled back left nothing"

    service.ready(service.worker())
    happened = told(fastapi_shop.get(f"{key}/events"))
    assert [event["id"] for event in happened] == list(range(1, len(happened) + 1))
    assert (happened[0]["event"], happened[-1]["status"]) == ("accept", "completed")
    rest = told(fastapi_shop.get(f"{key}/events", headers={"Last-Event-ID": "2"}))
    assert rest == happened[2:]
    shown = fastapi_shop.get(key).json()
    assert shown["status"] == "completed"
    assert requests.get(shown["video_url"], timeout=30).content[4:8] == b"ftyp"


def test_django_stores_both_or_neither_and_waits_for_the_end(
    service: Service, sim: simulator.Simulator, django_shop: Shop
):
    taken = django_shop.order("a cat")
    assert (taken.status_code, taken.json()["status"]) == (201, "accepted"), (
        django_shop.process.text()
    )
    order_id = taken.json()["id"]
    assert django_shop.order("").status_code == 422
    assert requests.post(f"{django_shop.url}/orders", data="x", timeout=30).status_code == 400
    with service.rt.engine.begin() as conn:
        conn.execute(text("ALTER TABLE shop_order ADD CHECK (prompt <> 'a thief')"))
    assert django_shop.order("a thief").status_code == 500
    assert generations(service) == 1, "what was rolled back left nothing"
    assert django_shop.get(order_id, params={"wait": "0.2"}).json()["status"] == "accepted"

    service.ready(service.worker())
    shown = django_shop.get(order_id, params={"wait": "60"}).json()
    assert (shown["status"], shown["error"]) == (Status.COMPLETED, None)
    assert shown["video_url"].startswith("http")


def test_the_django_migration_is_what_the_model_says(service: Service):
    env = {
        "SEEDANCE_DATABASE_URL": service.env["SEEDANCE_DATABASE_URL"],
        "DJANGO_SETTINGS_MODULE": "shop_settings",
        "PYTHONPATH": str(EXAMPLES / "django_shop"),
        "PATH": "/usr/bin:/bin",
    }
    check = [sys.executable, "-m", "django", "makemigrations", "--check", "--dry-run"]
    done = subprocess.run(check, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_receiver_without_a_secret_does_not_start(service: Service, tmp_path: Path):
    hooks = Shop(
        service,
        EXAMPLES / "webhook_receiver",
        "receiver:app",
        WEBHOOK_SECRETS=" ",
        RECEIVER_DATABASE=str(tmp_path / "receiver.sqlite"),
    )
    assert hooks.process.wait() != 0
    assert "WEBHOOK_SECRETS is empty" in hooks.process.text()


def test_the_receiver_verifies_stores_once_and_refuses_everything_else(
    service: Service, tmp_path: Path
):
    hooks = Shop(
        service,
        EXAMPLES / "webhook_receiver",
        "receiver:app",
        WEBHOOK_SECRETS=f"{new_webhook_secret()} {SECRET}",
        RECEIVER_DATABASE=str(tmp_path / "receiver.sqlite"),
    ).up()
    try:
        address = f"{hooks.url}/hooks/video"
        private = {
            "SEEDANCE_WEBHOOK_SECRETS": SECRET,
            "SEEDANCE_ALLOW_PRIVATE_WEBHOOKS": "true",
        }
        service.ready(service.worker(**private))
        generation_id = service.enqueue(
            notify={"webhook": address, "on": "change"}, private_webhooks=True
        )

        def known() -> dict[str, str]:
            return requests.get(f"{hooks.url}/videos", timeout=30).json()

        wait_for(lambda: known().get(str(generation_id)) == "completed", "it is told")

        def post(secret: str, notice_id: str, status: str, sequence: int, ago: int = 0) -> int:
            now = datetime.now(UTC) - timedelta(seconds=ago)
            data = {"id": "another", "status": status, "sequence": sequence}
            body = json.dumps({"type": f"generation.{status}", "data": data})
            headers = {
                "webhook-id": notice_id,
                "webhook-timestamp": str(int(now.timestamp())),
                "webhook-signature": Webhook(secret).sign(notice_id, now, body),
            }
            return requests.post(address, data=body, headers=headers, timeout=30).status_code

        assert post(SECRET, "one", "running", 2) == 204
        assert post(SECRET, "one", "completed", 3) == 204, "heard before: says yes, does nothing"
        assert post(SECRET, "zero", "uploading", 1) == 204, "late: does not go back"
        assert known()["another"] == "running"
        assert post(new_webhook_secret(), "two", "completed", 3) == 401, "a stranger"
        assert post(SECRET, "three", "completed", 3, ago=400) == 401, "a recording"
        assert requests.post(address, json={}, timeout=30).status_code == 401
        strange = {"webhook-id": "x", "webhook-timestamp": str(int(time.time()))}
        for signature, body in (("v1", b"{}"), ("v1,***", b"{}"), ("v1,AAAA", b"\xff")):
            headers = {**strange, "webhook-signature": signature}
            answer = requests.post(address, data=body, headers=headers, timeout=30)
            assert answer.status_code == 401, (signature, body)
        large = iter([b"x" * 65_536] * 16)  # no length is announced
        assert requests.post(address, data=large, timeout=30).status_code == 413
        assert known() == {str(generation_id): "completed", "another": "running"}
    finally:
        hooks.process.kill()
