"""What both embedded servers need of the operating system: a lock, an account, a process.

The wheels bring their own Python managers. Those are not used: one daemonises, creates a system
account and opens every parent folder to the world, the other kills at interpreter exit, and both
share the terminal's process group, so that Ctrl-C ends the servers before the workers that use
them. Here the wheels give the programs, and this module runs them.
"""

import contextlib
import fcntl
import os
import pwd
import shutil
import signal
import stat
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from worker.embedded_errors import EmbeddedError, InUseError

_TICK = 0.02
_PROC = Path("/proc")

# Linux capabilities that let another account walk through private parent folders: bit and name,
# the weaker first. Containers often have only the second.
_TRAVERSE = ((2, "dac_read_search"), (1, "dac_override"))


class FolderLock:
    """One owner at a time for a data folder; the kernel lets go when the owner dies."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: IO[str] | None = None

    def acquire(self) -> None:
        """Take the lock, or say which process has it."""
        if self._file is not None:
            return
        file = self.path.open("a+", encoding="utf-8")
        # A reader that asks `held()` has the lock for a moment: worth a second of patience.
        if not wait_until(lambda: _flock(file, fcntl.LOCK_EX), 1.0):
            file.seek(0)
            owner = file.read().strip() or "unknown"
            file.close()
            raise InUseError(
                f"{self.path.parent} is in use by process {owner}: stop that one first, "
                "or choose another data folder"
            )
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        self._file = file

    def release(self) -> None:
        """Give the lock back; the file stays, because removing it would race."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def held(self) -> bool:
        """Whether some living process owns the folder."""
        try:
            with self.path.open("r", encoding="utf-8") as file:
                return not _flock(file, fcntl.LOCK_SH)
        except FileNotFoundError:
            return False


def _flock(file: IO[str], kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


@dataclass(frozen=True)
class Account:
    """Who a server runs as, when not as the caller."""

    uid: int
    gid: int
    wrap: tuple[str, ...] = ()


def unprivileged_account(*paths: Path) -> Account | None:
    """The account for a program that refuses to run as root; None when we are not root.

    It is the owner of `paths[0]` if that exists and is not root's (so that data keep their
    owner), else `postgres` or `nobody`: nothing is added to the system. Where that account could
    not reach one of the paths, as under root's home, it gets the one capability to pass through;
    permissions of folders are left as they are.
    """
    if os.geteuid() != 0:
        return None
    uid, gid = _owner(paths[0])
    if all(_reachable(path) for path in paths):
        return Account(uid, gid)
    capability = _traverse_capability()
    setpriv = shutil.which("setpriv")
    if capability is None or setpriv is None:
        blocked = ", ".join(str(path) for path in paths if not _reachable(path))
        raise EmbeddedError(
            f"PostgreSQL does not run as root, and another account cannot reach {blocked}: "
            "run as an ordinary user, use a folder that others may pass through, "
            "or set SEEDANCE_DATABASE_URL to a server of yours"
        )
    ids = (f"--reuid={uid}", f"--regid={gid}", "--clear-groups")
    caps = (f"--inh-caps=+{capability}", f"--ambient-caps=+{capability}")
    # access(2), by which PostgreSQL looks for its programs, takes capabilities away from a user
    # other than root, except under this bit. What is exec'ed has the one capability alone.
    bits = "--securebits=+no_setuid_fixup"
    return Account(uid, gid, (setpriv, *ids, *caps, bits, "--"))


def _owner(path: Path) -> tuple[int, int]:
    if path.exists() and (found := path.stat()).st_uid != 0:
        return found.st_uid, found.st_gid
    for name in ("postgres", "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return entry.pw_uid, entry.pw_gid
    raise EmbeddedError(
        "PostgreSQL does not run as root, and the system has neither a user 'postgres' nor 'nobody'"
    )


def _reachable(path: Path) -> bool:
    """Whether everybody may pass through the parents (and run the program, if it is one)."""
    passable = all(parent.stat().st_mode & stat.S_IXOTH for parent in path.parents)
    return passable and (not path.is_file() or bool(path.stat().st_mode & stat.S_IXOTH))


def _traverse_capability() -> str | None:
    try:
        status = (_PROC / "self" / "status").read_text(encoding="ascii")
    except OSError:
        return None
    effective = next((line.split()[1] for line in status.splitlines() if "CapEff" in line), "0")
    return next((name for bit, name in _TRAVERSE if int(effective, 16) & (1 << bit)), None)


def spawn(
    argv: Sequence[str],
    *,
    cwd: Path,
    log: Path,
    env: Mapping[str, str] | None = None,
    account: Account | None = None,
) -> subprocess.Popen[bytes]:
    """Start a server in a session of its own, so that Ctrl-C in the terminal passes it by."""
    wrap = account.wrap if account else ()
    drop = account is not None and not wrap
    with log.open("ab") as output:
        return subprocess.Popen(  # noqa: S603 - our own command lines
            [*wrap, *argv],
            cwd=cwd,
            env=dict(env) if env is not None else None,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            user=account.uid if account and drop else None,
            group=account.gid if account and drop else None,
            extra_groups=[] if drop else None,
        )


def end(process: subprocess.Popen[bytes], *steps: tuple[signal.Signals, float]) -> None:
    """Send each signal in turn until our child is gone; SIGKILL comes last of all."""
    for number, patience in (*steps, (signal.SIGKILL, 30.0)):
        process.send_signal(number)
        try:
            process.wait(patience)
        except subprocess.TimeoutExpired:
            continue
        return
    raise EmbeddedError(f"process {process.pid} does not end")


@dataclass(frozen=True)
class LeftOver:
    """A server that a killed parent left behind."""

    pid: int
    program: str
    marker: str

    def lives(self) -> bool:
        """Whether the number still belongs to this server (and not to its unburied remains)."""
        command = _command_line(self.pid)
        return bool(command) and Path(command[0]).name == self.program and self.marker in command


def left_over(pid_file: Path, program: str, marker: Path) -> LeftOver | None:
    """The server that a killed parent left behind, if the pid file names one.

    A pid alone proves nothing, since numbers are used again: the process must be this very
    program, started with this very folder on its command line.
    """
    pid = _read_pid(pid_file)
    found = LeftOver(pid, program, str(marker)) if pid else None
    return found if found and found.lives() else None


def end_left_over(server: LeftOver, *steps: tuple[signal.Signals, float]) -> None:
    """Like `end`, for a process that is not our child."""
    for number, patience in (*steps, (signal.SIGKILL, 30.0)):
        if not server.lives():
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(server.pid, number)
        if wait_until(lambda: not server.lives(), patience):
            return
    raise EmbeddedError(f"process {server.pid} does not end")


def names_living_process(pid_file: Path) -> bool:
    """Whether the number in the file belongs to any process at all."""
    pid = _read_pid(pid_file)
    try:
        if pid:
            os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return bool(pid)


def _read_pid(pid_file: Path) -> int | None:
    try:
        pid = int(pid_file.read_text(encoding="ascii").split()[0])
    except (OSError, ValueError, IndexError):
        return None
    return pid if pid > 0 else None


def _command_line(pid: int) -> list[str]:
    """The words of a process's command line; none if it doesn't live."""
    if _PROC.exists():
        try:
            raw = (_PROC / str(pid) / "cmdline").read_bytes()
        except OSError:
            return []
        return [os.fsdecode(word) for word in raw.rstrip(b"\0").split(b"\0")] if raw else []
    asked = subprocess.run(  # noqa: S603 - a number is all that varies
        ["/bin/ps", "-ww", "-o", "command=", "-p", str(pid)],
        capture_output=True,
        check=False,
    )
    # Without the borders between words, a folder with a space in its name is not recognised, and
    # its server is refused rather than ended.
    return os.fsdecode(asked.stdout).split()


def wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    """Ask until the condition holds; False when time is up."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(_TICK)
    return True


def tail(log: Path, lines: int = 15) -> str:
    """The end of a server's log, for the message of the error that it explains."""
    try:
        return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
    except OSError:
        return ""
