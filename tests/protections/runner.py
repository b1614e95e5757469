"""Takes protections out of a copy of the project, one at a time, and runs the tests that must fail.

The checkout is never edited. The copy comes first in PYTHONPATH, so that worker processes which a
test starts import it too.
"""

import json
import multiprocessing
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.protections import child
from tests.protections.protection import ROOT, Protection

LONGEST = 1_200.0
"""Seconds that the tests of one protection may take in all."""

# Compiled files go along: they are checked by the time and size of their source.
_LEFT_OUT = shutil.ignore_patterns(".git", ".venv", ".*_cache", ".hypothesis")

_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(child.LIBRARIES)

NOT_NOTICING = frozenset(
    {
        # The code is broken rather than unprotected.
        "AttributeError",
        "FixtureLookupError",
        "ImportError",
        "IndentationError",
        "ModuleNotFoundError",
        "NameError",
        "SyntaxError",
        "TypeError",
        "UnboundLocalError",
        # A warning, or somebody else's connection that was collected.
        "SADeprecationWarning",
        "PytestUnraisableExceptionWarning",
        "ResourceWarning",
    }
)
"""Errors that say nothing about the protection."""


@dataclass
class Ended:
    """How one test ended; `failure` is what it said, None if it passed."""

    failure: str | None = None
    broken: str | None = None


@dataclass(frozen=True)
class Verdict:
    """What the removal of a protection led to."""

    protection: Protection
    seconds: float
    unnoticed: tuple[str, ...] = ()
    """Tests that did not fail, each with the reason why that counts."""
    says: str = ""
    """What the first of the tests said."""

    @property
    def noticed(self) -> bool:
        """Whether every test failed as it should."""
        return not self.unnoticed


@dataclass
class Records:
    """How the tests of one run ended, by node id."""

    by_test: dict[str, Ended] = field(default_factory=dict)
    output: str = ""

    def of(self, name: str) -> list[Ended]:
        """The test, or the cases of a test that is named without its parameters."""
        return [
            e for test, e in self.by_test.items() if test == name or test.startswith(f"{name}[")
        ]


@contextmanager
def copied() -> Iterator[Path]:
    """A copy of the project's tree, gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="without-", ignore_cleanup_errors=True) as folder:
        root = Path(folder) / "project"
        shutil.copytree(ROOT, root, ignore=_LEFT_OUT)
        yield root


def run(root: Path, tests: Sequence[str]) -> Records:
    """Run the tests in the copy, and read how they ended."""
    told, said = root.parent / "records.jsonl", root.parent / "output.txt"
    names = list(dict.fromkeys(tests))
    process = _server.Process(target=child.run, args=(root, ROOT, names, told, said))
    process.start()
    process.join(LONGEST)
    if process.is_alive():
        process.kill()
        process.join()
    records = Records(output=said.read_text(errors="replace") if said.exists() else "")
    for line in told.read_text().splitlines() if told.exists() else []:
        entry = json.loads(line)
        ended = records.by_test.setdefault(entry["test"], Ended())
        if entry["kind"] is None:
            continue
        what = f"{entry['kind']}: {entry['says']}"
        hung = entry["kind"] == "Failed" and entry["says"].startswith("Timeout")
        if entry["kind"] in NOT_NOTICING or hung:
            ended.broken = ended.broken or what
        else:
            ended.failure = ended.failure or what
    return records


def baseline(protections: Sequence[Protection]) -> list[str]:
    """Run every test with everything in place. Returns those that did not pass, with the reason."""
    tests = list(dict.fromkeys(test for one in protections for test in one.tests))
    with copied() as root:
        records = run(root, tests)
    wrong = []
    for test in tests:
        ended = records.of(test)
        bad = [e.failure or e.broken for e in ended if e.failure or e.broken]
        if bad:
            wrong.append(f"{test}: {bad[0]}")
        elif not ended:
            wrong.append(f"{test}: did not run\n{records.output[-2000:]}")
    return wrong


def without(protection: Protection) -> Verdict:
    """Take one protection out of a copy, and see whether its tests notice."""
    started = time.monotonic()
    with copied() as root:
        for edit in protection.edits:
            edit.apply(root)
        records = run(root, protection.tests)
    unnoticed, says = [], ""
    for test in protection.tests:
        ended = records.of(test)
        failures = [e.failure for e in ended if e.failure]
        if failures:
            says = says or failures[0]
            continue
        broken = [e.broken for e in ended if e.broken]
        last = records.output.strip().rpartition("\n")[2]
        why = broken[0] if broken else "it passes" if ended else f"it did not run ({last})"
        unnoticed.append(f"{test}: {why}")
    return Verdict(protection, time.monotonic() - started, tuple(unnoticed), says)
