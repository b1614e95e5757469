"""The real Flower beside real workers: its API, and its pages in a headless browser."""

import json
import shutil
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from selenium import webdriver
from selenium.webdriver.chrome.service import Service as Driver
from selenium.webdriver.common.by import By

import simulator
from models.lifecycle import Status
from tests.acceptance.conftest import BIN, ROOT, Process, Service, wait_for
from worker import stack

LOGIN = "operator:only for this test"
PROMPT = "a marmalade cat that nobody may see"
KEYLIKE = "sk-live-0123456789"
COMMAND = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]["flower"]["command"]


class Flower:
    """A running Flower, as compose starts it but for addresses; asked as an operator asks it."""

    def __init__(self, broker_url: str, folder: Path, **env: str) -> None:
        self.folder = folder
        self.url = stack.local_url(port := stack.free_port())
        replaced = {"0.0.0.0": "127.0.0.1", "5555": str(port), "/flower": str(folder / "data")}
        program, *options = [replaced.get(word, word) for word in COMMAND]
        given = {"SEEDANCE_BROKER_URL": broker_url, **env}
        self.process = Process([str(BIN / program), *options], given, folder / "flower.log")

    def ready(self) -> "Flower":
        wait_for(lambda: self.status("/healthcheck") == 200, "Flower answers")
        return self

    def get(self, path: str, login: str | None = LOGIN) -> Any:
        request = urllib.request.Request(self.url + path)
        if login is not None:
            request.add_header("Authorization", "Basic " + b64encode(login.encode()).decode())
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.read().decode()

    def status(self, path: str, login: str | None = None) -> int:
        assert self.process.alive, self.process.text()
        try:
            self.get(path, login)
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return 0
        return 200

    def tasks(self) -> dict[str, dict[str, Any]]:
        """By their ids."""
        return json.loads(self.get("/api/tasks?limit=1000"))

    def of(self, generation_id: str) -> dict[str, dict[str, Any]]:
        """The tasks of a generation that have ended."""
        return {
            name: task
            for name, task in self.tasks().items()
            if name.startswith(generation_id) and task["state"] == "SUCCESS"
        }


@pytest.fixture
def flower(service: Service, tmp_path: Path) -> Flower:
    folder = tmp_path / "flower"
    folder.mkdir()
    running = Flower(service.env["SEEDANCE_BROKER_URL"], folder, FLOWER_BASIC_AUTH=LOGIN)
    service._processes.append(running.process)
    return running.ready()


def done(service: Service, flower: Flower) -> str:
    """A generation that a bare client sent, as it has ended and Flower has heard of it."""
    request = {
        "content": [{"type": "text", "text": PROMPT}],
        "seed": 7,
    }
    with service.bare_celery() as app:
        sent = app.send_task(
            "seedance.generate",
            kwargs={"request": request, "tenant": "acme", "metadata": {"token": KEYLIKE}},
            shadow=PROMPT,
        )
    assert service.ended(sent.id).status is Status.COMPLETED

    def heard() -> bool:
        stages = {name.partition(".")[2].partition(".")[0] for name in flower.of(sent.id)}
        return {"", "submit", "poll"} <= stages

    wait_for(heard, "Flower has heard of each stage")
    return str(sent.id)


def leaks(text: str, sim: simulator.Simulator) -> list[str]:
    secrets = (PROMPT, "marmalade", KEYLIKE, sim.api_key, "X-Amz-Signature", "token=")
    return [secret for secret in secrets if secret in text]


def test_it_asks_for_its_password(flower: Flower):
    for path in ("/", "/workers", "/tasks", "/broker", "/api/tasks", "/api/workers"):
        assert flower.status(path) == 401, path
        assert flower.status(path, "operator:wrong") == 401, path
        assert flower.status(path, LOGIN) == 200, path


def test_its_api_tells_which_generation_and_stage_and_no_more(
    service: Service, sim: simulator.Simulator, flower: Flower
):
    service.ready(service.worker("--name", "one@%h"))
    generation_id = done(service, flower)

    tasks = flower.of(generation_id)
    accepted = tasks.pop(generation_id)
    assert accepted["name"] == "seedance.generate"
    assert accepted["kwargs"] == "tenant=acme content=text"
    for name, task in tasks.items():
        of, stage, lease = name.split(".")
        assert (of, task["name"]) == (generation_id, f"seedance.{stage}")
        assert (task["args"], task["kwargs"]) == (f"generation {of} lease {lease}", "")

    workers = flower.get("/api/workers?refresh=true")
    [(name, worker)] = json.loads(workers).items()
    assert name.startswith("one@")
    assert {queue["name"] for queue in worker["active_queues"]} >= {"seedance.stages", "celery"}
    pages = [flower.get(f"/task/{name}") for name in (generation_id, *tasks)]
    for shown in (workers, json.dumps(flower.tasks()), *pages, flower.get("/metrics")):
        assert leaks(shown, sim) == []


def test_a_task_that_fails_and_one_that_waits_tell_nothing_of_a_request(
    service: Service, sim: simulator.Simulator, flower: Flower
):
    """What runs and what is reserved is asked of the worker itself, with all its arguments."""
    worker = service.ready(service.worker("--name", "one@%h", "-c", "1"))
    request = {"content": [{"type": "text", "text": PROMPT}]}
    with service.bare_celery() as app:
        # No UUID: nothing that a row could have; a lease that is no number: the stage raises.
        app.send_task("seedance.generate", task_id="not-a-uuid", kwargs={"request": request})
        app.send_task("seedance.poll", task_id="raises", args=[PROMPT, KEYLIKE])
        wait_for(lambda: flower.tasks().get("raises", {}).get("state") == "FAILURE", "it failed")
    failed = flower.tasks()["raises"]
    assert failed["args"] == "generation … lease …"
    assert failed["exception"] == "ValueError: the log says what"
    assert "tasks.py" in failed["traceback"]
    assert leaks(json.dumps(flower.tasks()) + flower.get("/task/raises"), sim) == []
    assert PROMPT not in worker.text()


def test_what_it_saw_outlives_it(service: Service, flower: Flower):
    service.ready(service.worker())
    generation_id = done(service, flower)
    before = flower.of(generation_id)
    assert flower.process.terminate() == 0, flower.process.text()
    env = {"FLOWER_BASIC_AUTH": LOGIN}
    again = Flower(service.env["SEEDANCE_BROKER_URL"], flower.folder, **env)
    service._processes.append(again.process)
    again.ready()
    assert again.of(generation_id).keys() == before.keys()


def test_without_a_login_it_makes_one_and_tells_it_once(broker_url: str, tmp_path: Path):
    for told in (1, 0):
        alone = Flower(broker_url, tmp_path)
        try:
            alone.ready()
            assert alone.status("/workers") == 401
            login = (tmp_path / "data" / "login").read_text().strip()
            assert alone.status("/workers", login) == 200
        finally:
            assert alone.process.terminate() == 0
        text = alone.process.text()
        assert text.count("told this once") == 1, f"start with {told} left to tell"


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[webdriver.Chrome]:
    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if program is None or driver is None:
        pytest.skip("no browser: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for word in (
        *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
        *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
        *("--disable-dev-shm-usage", "--window-size=1500,900"),
        f"--user-data-dir={tmp_path / 'browser'}",
        # Nothing but this machine is looked up.
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    ):
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    running = webdriver.Chrome(options=options, service=Driver(executable_path=driver))
    running.set_page_load_timeout(60)
    yield running
    running.quit()


@pytest.mark.timeout(240)
def test_its_pages_in_a_browser(
    service: Service, sim: simulator.Simulator, flower: Flower, browser: webdriver.Chrome
):
    service.ready(service.worker("--name", "one@%h"))
    generation_id = done(service, flower)
    place = urlsplit(flower.url).netloc
    browser.get(f"http://{LOGIN.replace(' ', '%20')}@{place}/workers")

    def look(path: str, *words: str) -> str:
        """The page's text, when it holds all the words; it fills itself after it is loaded."""
        browser.get(flower.url + path)

        def text() -> str | None:
            found = browser.find_element(By.TAG_NAME, "body").text
            return found if all(word in found for word in words) else None

        found = wait_for(text, f"{path} shows {words}")
        browser.save_screenshot(str(flower.folder / f"{path.strip('/').partition('/')[0]}.png"))
        assert leaks(browser.page_source, sim) == []
        return str(found)

    look("/workers", "one@", "Online")
    [step] = [name for name in flower.of(generation_id) if ".submit." in name]
    shown = look("/tasks", "seedance.submit", step, "seedance.generate", "tenant=acme content=text")
    assert "FAILURE" not in shown
    told = ("seedance.submit", f"generation {generation_id} lease", "SUCCESS", "Started")
    look(f"/task/{step}", *told)
    worker = flower.tasks()[step]["worker"]
    look(f"/worker/{worker}", worker)  # asks the worker, and so learns its queues
    look("/broker", "seedance.stages")
    errors = [line for line in browser.get_log("browser") if line["level"] == "SEVERE"]
    assert errors == [], "each page loads all of its parts from Flower itself"
