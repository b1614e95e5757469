"""What excuses a worker that stands still: real servers, away and frozen."""

import os
import signal
import subprocess
import sys
import time

import pytest

from tests.waiting import wait_for
from worker import heartbeat, stack
from worker.embedded_valkey import EmbeddedValkey


def test_servers_that_answer_are_no_outage(database_url, broker_url):
    assert not heartbeat.outage(database_url, broker_url)


@pytest.mark.parametrize("which", ["database", "broker"])
def test_one_that_is_away_is_an_outage(which, database_url, broker_url):
    nowhere = f"127.0.0.1:{stack.free_port()}"
    if which == "database":
        assert heartbeat.outage(f"postgresql+psycopg://a:b@{nowhere}/x", broker_url)
    else:
        assert heartbeat.outage(database_url, f"redis://{nowhere}/0")


def test_one_that_is_frozen_is_an_outage(tmp_path, database_url):
    with EmbeddedValkey(tmp_path, durable=False) as own:
        url = own.url()
        assert own.pid is not None
        os.kill(own.pid, signal.SIGSTOP)
        try:
            began = time.monotonic()
            assert heartbeat.outage(database_url, url)
            assert time.monotonic() - began < 60
        finally:
            os.kill(own.pid, signal.SIGCONT)


def test_beat_beats_also_while_the_broker_is_away(tmp_path, environment):
    file, log = tmp_path / "beat", (tmp_path / "log").open("wb")
    env = {
        **os.environ,
        **environment,
        "SEEDANCE_BROKER_URL": f"redis://127.0.0.1:{stack.free_port()}/0",
        "SEEDANCE_HEARTBEAT_FILE": str(file),
        # Due at once and again and again: each waits for the broker.
        "SEEDANCE_BALANCE_EVERY": "1",
    }
    with (
        log,
        subprocess.Popen(
            [sys.executable, "-m", "worker.cli", "beat"], env=env, stdout=log, stderr=log
        ) as beat,
    ):
        try:
            wait_for(file.exists, "it beats")
            for _ in range(3):
                file.unlink()
                wait_for(file.exists, "it beats again")
            assert beat.poll() is None
        finally:
            beat.kill()


@pytest.mark.parametrize("process", ["worker", "beat"])
def test_the_file_of_one_that_ran_before_says_nothing_of_this_one(process, tmp_path, environment):
    """In a container that is started again it is still there, and young."""
    file, log = tmp_path / "beat", tmp_path / "log"
    file.touch()
    env = {
        **os.environ,
        **environment,
        "SEEDANCE_DATABASE_URL": f"postgresql+psycopg://a:b@127.0.0.1:{stack.free_port()}/x",
        "SEEDANCE_HEARTBEAT_FILE": str(file),
    }
    with (
        log.open("wb") as output,
        subprocess.Popen(
            [sys.executable, "-m", "worker.cli", process], env=env, stdout=output, stderr=output
        ) as started,
    ):
        try:
            wait_for(lambda: "waiting: " in log.read_text(), "it waits for the database")
            assert not file.exists()
            assert started.poll() is None
        finally:
            started.kill()
