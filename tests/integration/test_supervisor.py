"""The supervisor, with real processes: they die, refuse to die, and are left behind."""

import io
import os
import re
import signal
import subprocess
import sys

import psutil
import pytest

from worker.embedded_process import wait_until
from worker.supervisor import ProcessSpec, Supervisor

SLEEP = ["sleep", "600"]


def gone(process: psutil.Process) -> bool:
    """Ended, or waiting for a parent to take note."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


STUBBORN = python("""
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("deaf")
time.sleep(600)
""")
# Says so when it ends.
POLITE = python("""
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(print("bye")))
print("hello")
time.sleep(600)
""")
# A supervisor in a process of its own: first its grace, then programs with their arguments.
ALONE = """
import sys
from worker.supervisor import ProcessSpec, Supervisor
argvs = [argv.split() for argv in sys.argv[2:]]
argvs.append([sys.executable, "-c", "import time; print('up'); time.sleep(600)"])
specs = [ProcessSpec(f"p{i}", argv, grace=float(sys.argv[1])) for i, argv in enumerate(argvs)]
sys.exit(Supervisor(specs).run())
"""


class Screen(io.StringIO):
    """Where the output goes, and what has come so far."""

    def saw(self, text: str, times: int = 1) -> bool:
        return wait_until(lambda: self.getvalue().count(text) >= times, 15)


class Terminal(Screen):
    def isatty(self) -> bool:
        return True


def run_alone(*argvs: str, grace: float = 10) -> subprocess.Popen[str]:
    """Start `ALONE`, and give it when all its children run."""
    process = subprocess.Popen(
        [sys.executable, "-c", ALONE, str(grace), *argvs],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    for line in process.stdout:
        if "up" in line:
            return process
    raise AssertionError("the supervisor ended early")


def children(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def test_a_process_that_dies_is_started_again():
    screen = Screen()
    with Supervisor([ProcessSpec("one", SLEEP)], output=screen, backoff=0.05) as supervisor:
        supervisor.wait_ready()
        first = supervisor.pid("one")
        os.kill(first, signal.SIGKILL)
        assert wait_until(lambda: supervisor.pid("one") not in (first, None), 10)
        assert supervisor.restarts("one") == 1
        assert "one ended (by SIGKILL); start 2 in 0.05 s" in screen.getvalue()


def test_pauses_between_restarts_grow_to_a_bound_and_start_over_after_a_while():
    screen = Screen()
    spec = ProcessSpec("one", python("raise SystemExit(3)"))
    with Supervisor([spec], output=screen, backoff=0.01, backoff_max=0.04):
        assert screen.saw("ended", 5)
    pauses = re.findall(r"\(exit code 3\); start \d+ in (\S+) s", screen.getvalue())
    assert pauses[:5] == ["0.01", "0.02", "0.04", "0.04", "0.04"]

    screen = Screen()
    with Supervisor([spec], output=screen, backoff=0.01, stable_after=0):
        assert screen.saw("in 0.01 s", 3)


def test_each_starts_when_those_before_it_are_ready(tmp_path):
    flag = tmp_path / "flag"
    specs = [ProcessSpec("one", SLEEP, ready=flag.exists), ProcessSpec("two", SLEEP)]
    with Supervisor(specs, output=Screen()) as supervisor:
        assert wait_until(lambda: supervisor.pid("one") is not None, 10)
        with pytest.raises(TimeoutError, match="not ready: one, two"):
            supervisor.wait_ready(0.3)
        assert supervisor.pid("two") is None
        flag.touch()
        supervisor.wait_ready(10)
        assert supervisor.pid("two") is not None


def test_an_error_while_asking_for_readiness_means_not_yet_and_is_told():
    def ready() -> bool:
        raise ConnectionError("nobody there")

    with (
        Supervisor([ProcessSpec("one", SLEEP, ready=ready)], output=Screen()) as supervisor,
        pytest.raises(TimeoutError, match="nobody there"),
    ):
        supervisor.wait_ready(0.5)


def test_a_process_that_need_not_live_is_left_alone_when_it_ends():
    specs = [
        ProcessSpec("once", python("print(6*7)"), restart=False),
        ProcessSpec("never", ["no-such-program-here"], restart=False, ready=lambda: False),
    ]
    screen = Screen()
    with Supervisor(specs, output=screen) as supervisor:
        with pytest.raises(RuntimeError, match=r"never ended \(exit code 127\)"):
            supervisor.wait_ready(10)
        assert screen.saw("nothing is left to run")
    assert (supervisor.exit_code("once"), supervisor.exit_code("never")) == (0, 127)
    assert "once       | 42\n" in screen.getvalue()
    assert "cannot run no-such-program-here: No such file or directory" in screen.getvalue()


def test_run_ends_with_what_it_ran():
    def code(*codes: int) -> int:
        argvs = [python(f"raise SystemExit({code})") for code in codes]
        specs = [ProcessSpec(str(i), argv, restart=False) for i, argv in enumerate(argvs)]
        return Supervisor(specs, output=Screen()).run()

    assert code(0, 0) == 0
    assert code(0, 4) == 1
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_all_stop_in_reverse_order():
    screen = Screen()
    specs = [ProcessSpec(name, POLITE) for name in ("one", "two", "three")]
    with Supervisor(specs, output=screen):
        assert screen.saw("hello", 3)
    assert re.findall(r"(\w+) +\| bye", screen.getvalue()) == ["three", "two", "one"]
    assert "killed" not in screen.getvalue()


def test_a_group_is_told_to_stop_together(tmp_path):
    """Each ends only when the other has been told as well."""
    leave = f"""
import pathlib, signal, sys, time
here = pathlib.Path({str(tmp_path)!r})
def told(*_):
    (here / sys.argv[1]).touch()
    while not (here / sys.argv[2]).exists():
        time.sleep(0.01)
    sys.exit(print("bye"))
signal.signal(signal.SIGTERM, told)
print("hello")
time.sleep(600)
"""
    specs = [
        ProcessSpec("before", POLITE),
        ProcessSpec("one", [*python(leave), "1", "2"], group="pair"),
        ProcessSpec("two", [*python(leave), "2", "1"], group="pair"),
    ]
    screen = Screen()
    with Supervisor(specs, output=screen):
        assert screen.saw("hello", 3)
    assert "killed" not in screen.getvalue()
    *pair, last = re.findall(r"(\w+) +\| bye", screen.getvalue())
    assert (sorted(pair), last) == (["one", "two"], "before")


def test_one_that_does_not_end_in_time_is_killed_with_its_children():
    screen = Screen()
    nested = f"import subprocess; subprocess.run({STUBBORN!r})"
    spec = ProcessSpec("one", python(nested), grace=0.2)
    stubborn = ProcessSpec("two", STUBBORN, grace=0.2)
    with Supervisor([spec, stubborn], output=screen) as supervisor:
        assert screen.saw("deaf", 2)
        family = psutil.Process(supervisor.pid("one")).children()
        family.append(psutil.Process(supervisor.pid("two")))
    assert len(family) == 2
    assert wait_until(lambda: all(gone(each) for each in family), 5)
    assert "two has not ended in time and is killed" in screen.getvalue()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_everything_it_started_and_nothing_else(number):
    with subprocess.Popen(SLEEP) as bystander, run_alone("sleep 600", "sleep 601") as process:
        family = children(process)
        assert len(family) == 3
        # As a terminal does it: to the whole foreground group.
        os.killpg(process.pid, number)
        assert process.wait(20) == 0
        assert all(gone(each) for each in family)
        assert bystander.poll() is None
        bystander.kill()


def test_a_second_signal_does_not_wait_for_the_stubborn():
    with run_alone(
        f"{sys.executable} -c __import__('signal').signal(15,1);__import__('time').sleep(600)",
        grace=100,
    ) as process:
        family = children(process)
        os.kill(process.pid, signal.SIGINT)
        for line in process.stdout:
            if "stopping" in line:
                break
        os.kill(process.pid, signal.SIGINT)
        assert process.wait(20) == 1
        assert all(gone(each) for each in family)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells children of a parent's death")
def test_the_children_of_a_killed_supervisor_end_as_well():
    with run_alone("sleep 600", "sleep 601") as process:
        family = children(process)
        process.kill()
        process.wait()
        assert len(family) == 3
        assert wait_until(lambda: all(gone(each) for each in family), 10)


def test_names_are_aligned_and_coloured_on_a_terminal_only(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    specs = [
        ProcessSpec("a", python("print('ä')"), restart=False),
        ProcessSpec("b", ["sh", "-c", "echo $WORD >&2"], env={"WORD": "err"}, restart=False),
    ]
    pipe, terminal = Screen(), Terminal()
    for screen in (pipe, terminal):
        assert Supervisor(specs, output=screen).run() == 0
    assert "a          | ä\n" in pipe.getvalue()
    assert "b          | err\n" in pipe.getvalue()
    assert "\x1b[" not in pipe.getvalue()
    assert "\x1b[36ma          |\x1b[0m ä\n" in terminal.getvalue()


def test_output_that_nobody_reads_any_more_stops_nothing():
    reading, writing = os.pipe()
    output = os.fdopen(writing, "w")
    flood = ProcessSpec("one", python("while True: print('x' * 1000)"))
    with Supervisor([flood], output=output) as supervisor:
        os.read(reading, 10)
        os.close(reading)
        process = psutil.Process(supervisor.pid("one"))
        before = process.cpu_times().user
        # Its pipe is still emptied, or it would stand still.
        assert wait_until(lambda: process.cpu_times().user > before + 0.1, 10)
        assert supervisor.restarts("one") == 0
    with pytest.raises(BrokenPipeError):
        output.close()


def test_two_of_one_name_are_refused():
    with pytest.raises(ValueError, match="names"):
        Supervisor([ProcessSpec("one", SLEEP), ProcessSpec("one", SLEEP)])
