"""Python runs this at its start in a process whose PYTHONPATH names this folder.

`CHAOS_CLOCK_SHIFT`: seconds that the process's wall clock is ahead of everybody else's (negative:
behind). The monotonic clocks stay true, as they do on a machine whose clock is set wrong.
`CHAOS_POISON`: a file name; the process is killed each time it opens a file of that name, as the
kernel kills one that ran out of memory.
"""

import os
import signal
import sys
import time


def _shift_clock(seconds: float) -> None:
    import time_machine

    time_machine.travel(time.time() + seconds, tick=True).start()


def _die_of(name: str) -> None:
    def on_event(event: str, args: tuple[object, ...]) -> None:
        if event == "open" and not isinstance(args[0], int) and str(args[0]).endswith(f"/{name}"):
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(on_event)


if shift := os.environ.get("CHAOS_CLOCK_SHIFT"):
    _shift_clock(float(shift))
if poison := os.environ.get("CHAOS_POISON"):
    _die_of(poison)
