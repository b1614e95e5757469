"""`seedance gateway` as a process, called back by the simulator, by strangers and by nobody."""

import json
import os
import signal
import socket
import subprocess
import uuid
from collections.abc import Iterator

import pytest
import requests

import simulator
from models.lifecycle import Status
from tests.acceptance.conftest import BIN, Process, Service, wait_for

FAR = {"SEEDANCE_POLL_MIN": "60", "SEEDANCE_POLL_MAX": "60"}
"""Polling alone would take longer than any test waits."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Gateway:
    """A gateway process and its address."""

    def __init__(self, service: Service, **env: str) -> None:
        self._service = service
        self._env = env
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.process = self.start()

    def start(self) -> Process:
        options = ["seedance", "gateway", "--port", str(self.port), "-l", "debug"]
        self.process = self._service._start("gateway", options, self._env)
        return self.process

    def up(self) -> "Gateway":
        def answers() -> bool:
            assert self.process.alive, self.process.text()
            try:
                return requests.get(f"{self.url}/healthz", timeout=5).status_code == 200
            except requests.ConnectionError:
                return False

        wait_for(answers, "the gateway is alive")
        return self

    def ready(self) -> tuple[int, dict[str, object]]:
        answer = requests.get(f"{self.url}/readyz", timeout=15)
        return answer.status_code, answer.json()


@pytest.fixture
def gateway(service: Service) -> Iterator[Gateway]:
    gateway = Gateway(service, **FAR).up()
    service.env["SEEDANCE_PUBLIC_URL"] = gateway.url
    yield gateway
    text = gateway.process.text()
    assert "Traceback" not in text, text
    for task in secrets_of(service):
        assert task not in text, "a callback's secret stands in the gateway's log"
        for process in service._processes:
            assert task not in process.text(), "a callback's secret stands in a log"


def secrets_of(service: Service) -> list[str]:
    admin = simulator.Admin(service.env["SEEDANCE_API_BASE_URL"])
    bodies = [json.loads(sent["body"]) for sent in admin.submits()]
    return [b["callback_url"].rpartition("/")[2] for b in bodies if b.get("callback_url")]


def callback_url(sim: simulator.Simulator) -> str:
    return json.loads(sim.submits()[-1]["body"])["callback_url"]


def running(service: Service, sim: simulator.Simulator, prompt: str = "a cat") -> uuid.UUID:
    """A generation whose remote task goes on for long."""
    generation_id = service.enqueue(f"{prompt} [sim: seconds=100000]")
    wait_for(
        lambda: getattr(service.find(generation_id), "status", None) is Status.RUNNING, "it runs"
    )
    return generation_id


def test_callbacks_end_generations_and_find_lost_answers_long_before_polls(
    service: Service, sim: simulator.Simulator, gateway: Gateway
):
    # A second attempt would hide that the first was found: none is given up for slowness.
    slow = {"SEEDANCE_LATE_CREATION": "600", "SEEDANCE_SEND_BUDGET": "30"}
    service.ready(service.worker(**FAR, **slow))
    ids = [service.enqueue(f"cat {n} [sim: seconds=100]") for n in range(5)]
    lost = service.enqueue("a fox [sim: submit=lost, seconds=100]")
    for generation_id in (*ids, lost):
        view = service.ended(generation_id, timeout=50)
        assert (view.status, view.attempt) == (Status.COMPLETED, 1)
    wait_for(lambda: sim.received("callback") == 6, "all are called back")
    assert {tuple(task["callbacks"]) for task in sim.tasks()} == {("200",)}
    assert sim.received("get") <= 7, "one look each, and what the lost one takes"
    assert "called_back" in service.history(lost)
    assert len(sim.submits()) == 6


def test_without_the_gateway_polling_does_all(
    service: Service, sim: simulator.Simulator, gateway: Gateway
):
    """It is killed; then it is there again, and callbacks count again."""
    service.ready(service.worker())
    gateway.process.kill()
    ids = [service.enqueue(f"cat {n} [sim: seconds=100]") for n in range(3)]
    for generation_id in ids:
        assert service.ended(generation_id).status is Status.COMPLETED
    gateway.start()
    gateway.up()
    generation_id = service.enqueue("a dog [sim: seconds=100]")
    assert service.ended(generation_id).status is Status.COMPLETED
    wait_for(lambda: sim.tasks(text="a dog")[0]["callbacks"] == ["200"], "it is called back")


@pytest.mark.timeout(240)
def test_strangers_do_no_harm(service: Service, sim: simulator.Simulator, gateway: Gateway):
    service.ready(service.worker(**FAR))
    generation_id = running(service, sim)
    good = callback_url(sim)
    before = moves(service, generation_id)

    forged_paths_are_not_found(gateway, good)
    assert sim.received("get") == 0
    a_flood_on_one_address_is_cut(good)
    wait_for(lambda: sim.received("get") == 1, "it is looked at")
    slow = slow_callers(gateway)
    # Another generation's callback still comes through.
    other = service.enqueue("a dog [sim: seconds=100]")
    assert service.ended(other, timeout=50).status is Status.COMPLETED
    for client in slow:
        assert client.recv(100).startswith(b"HTTP/1.1 "), "answered without the rest"
        client.close()
    assert sim.received("get") == 2, "one look at each"
    assert moves(service, generation_id) == before
    assert len(sim.submits()) == 2


def moves(service: Service, generation_id: uuid.UUID) -> list[str]:
    """Its history, without what the provider showed of its progress."""
    return [event for event in service.history(generation_id) if event != "progress"]


def forged_paths_are_not_found(gateway: Gateway, good: str) -> None:
    forged = [
        f"{gateway.url}/callbacks/{uuid.uuid4().hex}/1/{'x' * 43}",
        good[:-1] + ("A" if good[-1] != "A" else "B"),
        f"{gateway.url}/callbacks/",
        f"{gateway.url}/callbacks/../healthz/%00",
        f"{gateway.url}/callbacks/" + "a/" * 2_000,
        f"{gateway.url}/elsewhere",
    ]
    with requests.Session() as session:
        for url in forged:
            assert session.post(url, json={"task_id": "x"}, timeout=20).status_code == 404
        assert session.get(good, timeout=20).status_code == 200
        assert session.head(good, timeout=20).status_code == 200
        assert session.delete(good, timeout=20).status_code == 405


def a_flood_on_one_address_is_cut(good: str) -> None:
    for body in (b"", b"\x00\xff", b"{", b"[" * 50_000, b"x" * 5_000_000, b'{"task_id": 1}'):
        try:
            assert requests.post(good, data=body, timeout=20).status_code == 200
        except requests.ConnectionError:
            assert len(body) > 1_000_000, "only what is too large may be cut off"
    said = []
    with requests.Session() as session:
        said += [session.post(good, timeout=20).status_code for _ in range(200)]
    assert set(said) <= {200, 429}
    assert 429 in said


def slow_callers(gateway: Gateway) -> list[socket.socket]:
    """Callers that never send the rest of what they announced."""
    clients = []
    for number in range(15):
        client = socket.create_connection(("127.0.0.1", gateway.port), timeout=60)
        path = f"/callbacks/{uuid.uuid4().hex}/{number + 1}/{'x' * 43}"
        client.sendall(f"POST {path} HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\n{{".encode())
        clients.append(client)
    return clients


def test_ready_says_which_part_fails_and_no_secret(service: Service, gateway: Gateway):
    assert gateway.ready() == (
        200,
        {"ready": True, "database": "ok", "migrations": "ok", "broker": "ok"},
    )
    lost = {
        "SEEDANCE_DATABASE_URL": "postgresql://someone:pass-word@127.0.0.1:1/nowhere",
        "SEEDANCE_BROKER_URL": "redis://:pass-word@127.0.0.1:1/0",
    }
    other = Gateway(service, **lost).up()
    code, said = other.ready()
    assert (code, said["ready"]) == (503, False)
    assert "not reached" in str(said["database"])
    assert "not reached" in str(said["broker"])
    answer = requests.post(f"{other.url}/callbacks/{uuid.uuid4().hex}/1/{'x' * 43}", timeout=30)
    assert answer.status_code == 503
    for text in (json.dumps(said), answer.text, other.process.text()):
        assert "pass-word" not in text
        assert "127.0.0.1:1" not in text


def test_it_stops_gracefully_and_needs_no_key(service: Service):
    held = Gateway(service, SEEDANCE_API_KEY="").up()
    with socket.create_connection(("127.0.0.1", held.port), timeout=30) as idle:
        idle.sendall(b"POST /callbacks/x HTTP/1.1\r\n")
        assert held.process.terminate(20) == 0, held.process.text()


def test_a_taken_port_is_told_in_a_line(service: Service, gateway: Gateway):
    again = subprocess.run(
        [BIN / "seedance", "gateway", "--port", str(gateway.port)],
        env={**os.environ, **service.env},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert again.returncode == 1
    assert f"can't listen on 127.0.0.1, port {gateway.port}: Address already in use" in again.stderr
    assert len(again.stderr.splitlines()) == 1
    assert "Traceback" not in again.stderr


def test_interrupted_it_ends_too(service: Service):
    gateway = Gateway(service).up()
    gateway.process.signal(signal.SIGINT)
    assert gateway.process.wait(20) in (0, 130)
    assert "Traceback" not in gateway.process.text()
