"""A RabbitMQ node of a test's own, from the system's package; no service of it is touched."""

import os
import shutil
import signal
import subprocess
from pathlib import Path

import amqp

from tests.waiting import wait_for
from worker.stack import free_port

SCRIPTS = Path("/usr/lib/rabbitmq/bin")
"""Where Debian's package has the server's own scripts: those in the path change accounts first."""

ABSENT = not (SCRIPTS / "rabbitmq-server").exists() or shutil.which("epmd") is None
WHY_ABSENT = "RabbitMQ is not installed (Debian: apt-get install rabbitmq-server)"


class RabbitMQ:
    """One node, with a port mapper of its own, in a folder, on loopback ports."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.port, self._epmd_port, dist = free_port(), free_port(), free_port()
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "plugins").write_text("[].\n")
        (folder / "environment").touch()
        (folder / "rabbitmq.conf").write_text(
            f"listeners.tcp.1 = 127.0.0.1:{self.port}\n"
            "log.console = true\nlog.console.level = warning\n"
            # The machine's, not the broker's concern.
            "disk_free_limit.absolute = 10MB\n"
        )
        self._env = {
            **os.environ,
            "HOME": str(folder),  # the cookie
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_EPMD_PORT": str(self._epmd_port),
            "RABBITMQ_NODENAME": f"test{self.port}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(dist),
            "RABBITMQ_MNESIA_BASE": str(folder / "data"),
            "RABBITMQ_LOG_BASE": str(folder / "log"),
            "RABBITMQ_PID_FILE": str(folder / "pid"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "plugins"),
            "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq"),
            "RABBITMQ_CONF_ENV_FILE": str(folder / "environment"),
            # So the script becomes the node, instead of staying its parent.
            "RABBITMQ_ALLOW_INPUT": "1",
            "RABBITMQ_SERVER_START_ARGS": "-noinput -kernel inet_dist_use_interface {127,0,0,1}",
        }
        self._epmd: subprocess.Popen[bytes] | None = None
        self._node: subprocess.Popen[bytes] | None = None
        self._vhosts = iter(range(1, 1_000_000))

    def start(self) -> None:
        """Start the node, or start it again with its data, and wait until it takes connections."""
        if self._epmd is None:
            command = ["epmd", "-address", "127.0.0.1", "-port", str(self._epmd_port)]
            self._epmd = self._spawn(command, "epmd")
        self._node = self._spawn([str(SCRIPTS / "rabbitmq-server")], "node")
        wait_for(self._answers, "RabbitMQ answers", 120)

    def kill(self) -> None:
        """End the node as a crash would."""
        if self._node is not None:
            self._node.kill()
            self._node.wait(30)
            self._node = None

    def stop(self) -> None:
        """End the node and its port mapper."""
        for process in (self._node, self._epmd):
            if process is not None:
                process.kill()
                process.wait(30)
        self._node = self._epmd = None

    def signal(self, number: signal.Signals) -> None:
        """Freeze the node, or let it go on."""
        assert self._node is not None
        self._node.send_signal(number)

    def vhost(self) -> str:
        """The address of an empty broker: a virtual host that nobody has used."""
        name = f"test{next(self._vhosts)}"
        self.control("add_vhost", name)
        self.control("set_permissions", "-p", name, "guest", ".*", ".*", ".*")
        return self.url(name)

    def url(self, vhost: str) -> str:
        """The address of a virtual host."""
        return f"amqp://guest:guest@127.0.0.1:{self.port}/{vhost}"

    def control(self, *command: str) -> str:
        """Run `rabbitmqctl`; returns what it prints."""
        done = subprocess.run(
            [str(SCRIPTS / "rabbitmqctl"), "--quiet", *command],
            env=self._env,
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        return done.stdout

    def _spawn(self, command: list[str], name: str) -> subprocess.Popen[bytes]:
        with (self._folder / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                command,
                env=self._env,
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _answers(self) -> bool:
        assert self._node is not None
        assert self._node.poll() is None, (self._folder / "node.log").read_text()
        try:
            with amqp.Connection(f"127.0.0.1:{self.port}", connect_timeout=5):
                return True
        except OSError:
            return False
