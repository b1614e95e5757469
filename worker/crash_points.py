"""Named places at which a test can have the process killed: `SEEDANCE_CRASH_AT=<name>`.

`SEEDANCE_CRASH_BY=SIGSTOP` has it stopped instead, as a paused machine is, until SIGCONT.

The promise is about what dies in between, so the places in between have names. Without the
variable this does nothing; it is read at each call, since the tests set it per worker process.
"""

import os
import signal
import threading
from pathlib import Path
from typing import Literal

CrashPoint = Literal[
    "upload.before_put",
    "upload.after_put",
    "submit.before_intent",
    "submit.after_intent",
    "submit.after_check",
    "submit.after_post",
    "submit.after_result",
    "resolve.after_reading",
    "resolve.after_decision",
    "poll.after_get",
    "observe.after_begin",
    "observe.after_page",
    "dispatch.after_claim",
    "accept.before_commit",
    "accept.after_commit",
    "deliver.before_send",
    "deliver.after_send",
    "archive.after_download",
    "archive.before_record",
]

VARIABLE = "SEEDANCE_CRASH_AT"


def reached(point: CrashPoint) -> None:
    """Die here, without any clean-up, or stop, if this point is the one named.

    With `SEEDANCE_CRASH_ONCE` naming a file, only the process that creates it dies.
    """
    if os.environ.get(VARIABLE) != point:
        return
    once = os.environ.get("SEEDANCE_CRASH_ONCE")
    if once:
        try:
            Path(once).touch(exist_ok=False)
        except FileExistsError:
            return
    # To this very thread: it would go on for a moment if another one took the signal.
    by = signal.Signals[os.environ.get("SEEDANCE_CRASH_BY", "SIGKILL")]
    signal.pthread_kill(threading.get_ident(), by)
