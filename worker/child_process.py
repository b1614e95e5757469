"""A child that leads its own session and, on Linux, does not outlive its parent."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence

from worker.variables import over

# Asks for a signal at the parent's death, then becomes the program. Doing this between fork and
# exec in our own process (preexec_fn) could deadlock, as other threads hold locks then.
_TIED = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGTERM)
if os.getppid() != int(sys.argv[1]):
    sys.exit(1)
try:
    os.execvp(sys.argv[2], sys.argv[2:])
except OSError as error:
    print(f"cannot run {sys.argv[2]}: {error.strerror}", file=sys.stderr)
    sys.exit(127)
"""


def spawn_tied(
    argv: Sequence[str], env: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Start a program with `env` added to ours, its output in a pipe.

    Linux takes the death of the thread that calls this for the death of the parent.
    """
    tied = [sys.executable, "-ISc", _TIED, str(os.getpid())] if sys.platform == "linux" else []
    return subprocess.Popen(  # noqa: S603 - what the caller asked for
        [*tied, *argv],
        # A child that writes into a pipe would else keep its lines for later.
        env=over({**os.environ, "PYTHONUNBUFFERED": "1"}, env or {}),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def has_ended(process: subprocess.Popen[bytes]) -> bool:
    """Whether the process has ended; it is not yet waited for, so its number stays taken."""
    if not hasattr(os, "waitid"):  # macOS before Python 3.13
        return process.poll() is not None
    options = os.WEXITED | os.WNOWAIT | os.WNOHANG
    return os.waitid(os.P_PID, process.pid, options) is not None


def end_group(process: subprocess.Popen[bytes]) -> int:
    """Kill what is left of the process's session and give its exit code."""
    # The number belongs to our child until wait(), so this can't hit a stranger's group.
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    return process.wait()


def meaning(code: int | None) -> str:
    """An exit code in words."""
    if code is not None and code < 0:
        with contextlib.suppress(ValueError):
            return f"by {signal.Signals(-code).name}"
    return f"exit code {code}"
