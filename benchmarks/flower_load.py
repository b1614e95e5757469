"""A running Flower under the events of many generations: its CPU, memory, and whether it answers.

    .venv/bin/python -m benchmarks.flower_load --rate 100 --seconds 60

The events are those that workers send, by the same sender and in the same forms, from several
senders to a real broker: three for each task (received, started, succeeded). Flower runs as
`seedance up` starts it. Its pages are asked for all the while, and at the end it must have heard of
every task.
"""

import argparse
import base64
import contextlib
import json
import statistics
import tempfile
import threading
import time
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path

import psutil
from celery import Celery
from celery.events.dispatcher import EventDispatcher

from benchmarks import accounting
from worker import flower as window
from worker import stack
from worker.embedded_valkey import EmbeddedValkey
from worker.event_sender import Dispatcher
from worker.supervisor import Supervisor
from worker.task_forms import arguments

SENDERS = 4
"""Workers that send events."""

STAGES = ("submit", "poll", "poll", "poll", "poll", "poll")
ASK_EVERY = 2.0
PAGES = ("/workers?json=1", "/api/tasks?limit=50", "/api/workers", "/healthcheck")
HEARD = "flower_events_total"


@contextlib.contextmanager
def flower(folder: Path, broker: str) -> Iterator[tuple[int, str, str]]:
    """A Flower as `up` starts it: its process, its address, and a login."""
    known = window.login(folder, {})
    port = stack.free_port()
    spec = stack.flower(port, window.environment(folder, broker, known, {}))
    with (folder / "flower.log").open("w", encoding="utf-8") as output:
        supervisor = Supervisor([spec], output=output)
        with supervisor:
            supervisor.wait_ready(60)
            pid = supervisor.pid(spec.name)
            assert pid is not None
            yield pid, stack.local_url(port), known.credentials


def get(url: str, path: str, login: str) -> str:
    """A page of Flower's."""
    request = urllib.request.Request(url + path)
    request.add_header("Authorization", "Basic " + base64.b64encode(login.encode()).decode())
    with urllib.request.urlopen(request, timeout=60) as answer:
        return str(answer.read().decode())


def send(broker: str, name: str, rate: float, seconds: float, tasks: int) -> None:
    """The events of so many generations a second, as one worker sends them."""
    with Celery(broker=broker) as app, app.connection_for_write() as connection:
        # Gathered for a moment and sent together, as the worker's loop does it.
        sender: EventDispatcher = Dispatcher(
            connection, hostname=name, app=app, buffer_group={"task"}, buffer_limit=10_000
        )
        sender.send("worker-online")
        sent, began, beat = 0, time.monotonic(), 0.0
        while (passed := time.monotonic() - began) < seconds:
            if passed > beat:
                sender.send(
                    "worker-heartbeat", freq=2.0, active=8, processed=sent, loadavg=[1, 1, 1]
                )
                beat += 2.0
            for _ in range(int(passed * rate) - sent):
                generation(sender, tasks)
                sent += 1
            sender.flush()
            time.sleep(0.02)


def generation(sender: EventDispatcher, tasks: int) -> None:
    """The events of one."""
    of = str(uuid.uuid4())
    for lease, stage in enumerate(STAGES[:tasks], 1):
        name, task = f"seedance.{stage}", f"{of}.{stage}.{lease}"
        shown = arguments(name, [of, lease])
        told = {"uuid": task, "root_id": task, "parent_id": None, "retries": 0, "eta": None}
        sender.send("task-received", name=name, args=shown, kwargs="", expires=None, **told)
        sender.send("task-started", uuid=task)
        sender.send("task-succeeded", uuid=task, result="None", runtime=0.03)


def heard(url: str, login: str) -> int:
    """Events of tasks that Flower has counted."""
    lines = get(url, "/metrics", login).splitlines()
    counted = (line for line in lines if line.startswith(HEARD) and "task-" in line)
    return int(sum(float(line.rpartition(" ")[2]) for line in counted))


def main() -> None:
    """A minute of events, and what Flower made of it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rate", type=float, default=100, help="generations a second")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument(
        "--tasks", type=int, default=4, help="Celery tasks of each", choices=range(1, 7)
    )
    args = parser.parse_args()
    stack.forget_settings()
    with (
        tempfile.TemporaryDirectory(prefix="flower-load-") as name,
        EmbeddedValkey(Path(name) / "valkey", durable=False) as valkey,
        flower(Path(name), valkey.url()) as (pid, url, login),
    ):
        senders = [
            threading.Thread(
                target=send,
                args=(valkey.url(), f"w{n}@here", args.rate / SENDERS, args.seconds, args.tasks),
            )
            for n in range(SENDERS)
        ]
        before, began = accounting.cpu([pid]), time.monotonic()
        for sender in senders:
            sender.start()
        took: dict[str, list[float]] = {page: [] for page in PAGES}
        while any(sender.is_alive() for sender in senders):
            time.sleep(ASK_EVERY)
            for page in PAGES:
                asked = time.monotonic()
                get(url, page, login)
                took[page].append(1000 * (time.monotonic() - asked))
        passed = time.monotonic() - began
        wanted = 3 * args.tasks * SENDERS * int(args.rate / SENDERS * args.seconds)
        spent = accounting.cpu([pid]) - before
        # What lay in the broker by then is heard within a moment, or was lost.
        until = time.monotonic() + 30
        while heard(url, login) < wanted * 0.98 and time.monotonic() < until:
            time.sleep(1)
        told = {
            "events_sent": wanted,
            "events_heard": heard(url, login),
            "events_per_second": round(wanted / passed),
            "cpu_percent": round(100 * spent / passed, 1),
            "us_per_event": round(1e6 * spent / wanted, 1),
            "memory_mb": round(psutil.Process(pid).memory_info().rss / 1e6),
            "answers": {
                page: {
                    "asked": len(ms),
                    "median_ms": round(statistics.median(ms)),
                    "worst_ms": round(max(ms)),
                }
                for page, ms in took.items()
            },
        }
        print(json.dumps(told, indent=1))


if __name__ == "__main__":
    main()
