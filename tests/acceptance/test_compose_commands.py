"""The very command lines of docker-compose.yml, run as processes: a generation through them all.

What a container adds (its image, its network, its volumes) is not here; addresses and ports are
replaced, nothing else is.
"""

import base64
import socket
import subprocess
import urllib.error
import urllib.request
from pathlib import Path

import yaml

import simulator
from models.database import make_engine
from models.lifecycle import Status
from tests.acceptance.conftest import BIN, ROOT, Process, Service, wait_for
from worker import migrate
from worker.embedded_postgres import EmbeddedPostgres

SERVICES = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]


def command(service: str, **replaced: str) -> list[str]:
    """A service's command line, with its program from the environment of the tests."""
    program, *options = SERVICES[service]["command"]
    return [str(BIN / program), *(replaced.get(option, option) for option in options)]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def answers(url: str, user: str | None = None) -> int:
    request = urllib.request.Request(url)
    if user is not None:
        request.add_header("Authorization", "Basic " + base64.b64encode(user.encode()).decode())
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def test_migrate_works_with_the_database_alone(postgres: EmbeddedPostgres, tmp_path: Path):
    url = postgres.create_database("compose_migrate")
    migrating = Process(command("migrate"), {"SEEDANCE_DATABASE_URL": url}, tmp_path / "migrate")
    assert migrating.wait() == 0, migrating.text()
    engine = make_engine(url)
    assert migrate.revision(engine).up_to_date
    engine.dispose()
    postgres.drop_database("compose_migrate")


def test_worker_and_beat_carry_a_generation_and_the_worker_is_healthy(
    service: Service, sim: simulator.Simulator, tmp_path: Path
):
    heartbeat = tmp_path / "heartbeat"
    env = {**service.env, "SEEDANCE_HEARTBEAT_FILE": str(heartbeat)}
    running = [Process(command(name), env, tmp_path / name) for name in ("worker", "beat")]
    service._processes += running
    generation_id = service.enqueue()

    assert service.ended(generation_id).status is Status.COMPLETED
    kind, check = SERVICES["worker"]["healthcheck"]["test"]
    assert kind == "CMD-SHELL"
    healthy = subprocess.run(["/bin/sh", "-c", check.replace("$$", "$")], env=env, check=False)
    assert healthy.returncode == 0
    for process in running:
        assert process.alive, process.text()
        assert process.terminate() == 0
    assert len(sim.submits()) == 1


def test_the_simulator_listens_where_it_is_told(tmp_path: Path):
    port, storage = free_port(), free_port()
    options = {"0.0.0.0": "127.0.0.1", "8787": str(port), "8788": str(storage)}
    alone = Process(command("simulator", **options), {}, tmp_path / "simulator")
    try:
        wait_for(lambda: answers(f"http://127.0.0.1:{port}/admin/") == 200, "it answers")
    finally:
        assert alone.terminate() == 0, alone.text()


def test_the_gateway_is_ready_with_what_compose_gives_it(
    database_url: str, broker_url: str, tmp_path: Path
):
    port = free_port()
    given = {"SEEDANCE_DATABASE_URL": database_url, "SEEDANCE_BROKER_URL": broker_url}
    line = command("gateway", **{"0.0.0.0": "127.0.0.1", "8080": str(port)})
    gateway = Process(line, given, tmp_path / "gateway")
    try:
        wait_for(lambda: answers(f"http://127.0.0.1:{port}/readyz") == 200, "it is ready")
    finally:
        assert gateway.terminate() == 0, gateway.text()
