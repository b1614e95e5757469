"""A producer of one contender, in a process of its own, driven over its standard input.

    python -m benchmarks.producing plain_celery

Each line is `{"count": 3, "first": 0, "seconds": [60, 120], "single": true}`; the answer is a line
with the times (since 1970) before and after each call: one call for all, or one for each.
"""

import importlib
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from benchmarks.arena import Arena
from benchmarks.entrants import Entrant, Script

Seconds = tuple[float, float]


AT_ONCE: Seconds = (0.0, 0.0)
"""What ends before anybody looks."""


def requests(
    count: int, first: int, seconds: Seconds, *, directives: str = "", seed: int | None = None
) -> list[dict[str, Any]]:
    """Return requests whose remote tasks take `seconds`; equal arguments give equal requests.

    `directives`: further directives for the simulator, as `refuse=SERVICE_BUSY`. With a `seed` all
    requests are equal. Tasks that end at once are another kind of video, so that no contender
    predicts the duration of the others from them.
    """
    rng = random.Random(first)
    if seed is not None:
        return [
            _request(first, rng.uniform(*seconds), seconds, directives) | {"seed": seed}
        ] * count
    return [
        _request(number, rng.uniform(*seconds), seconds, directives)
        for number in range(first, first + count)
    ]


def _request(number: int, takes: float, seconds: Seconds, directives: str) -> dict[str, Any]:
    block = f"seconds={takes:.3f}" + (f", {directives}" if directives else "")
    return {
        "model": "seedance-2.0",
        "content": [{"type": "text", "text": f"take {number} of a cat [sim: {block}]"}],
        "resolution": "480p" if seconds == AT_ONCE else "720p",
        "ratio": "16:9",
        "duration": 5,
        "generate_audio": False,
    }


class Producer:
    """Enqueues for one contender."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process
        self.next_number = 0
        """The number in the first prompt of the next batch."""

    def enqueue(
        self,
        count: int,
        seconds: Seconds,
        *,
        single: bool = False,
        directives: str = "",
        seed: int | None = None,
    ) -> list[tuple[float, float]]:
        """Enqueue requests, as `requests` has them.

        Returns the times before and after each call, in seconds since 1970.
        """
        order = {
            "count": count,
            "first": self.next_number,
            "seconds": seconds,
            "single": single,
            "directives": directives,
            "seed": seed,
        }
        self.next_number += count
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError("the producer has died; its trace is above")
        return [(before, after) for before, after in json.loads(answer)]


@contextmanager
def producer(entrant: Entrant, here: Arena) -> Iterator[Producer]:
    """A producer process, connected and warm."""
    argv = [sys.executable, "-m", "benchmarks.producing", entrant.program]
    if isinstance(entrant, Script):
        argv.append(str(entrant.files(here)[0]))
    with subprocess.Popen(
        argv,
        env=os.environ | here.environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield Producer(process)
        finally:
            process.stdin.close()  # type: ignore[union-attr]


def _serve(program: str, options: Sequence[str]) -> None:
    contender = importlib.import_module(f"benchmarks.contenders.{program}")
    for line in sys.stdin:
        order = json.loads(line)
        wanted = requests(
            order["count"],
            order["first"],
            tuple(order["seconds"]),
            directives=order.get("directives", ""),
            seed=order.get("seed"),
        )
        calls = []
        for part in [[one] for one in wanted] if order["single"] else [wanted]:
            before = time.time()
            if options:
                contender.enqueue_many(part, options[0])
            elif order["single"]:
                contender.enqueue(part[0])
            else:
                contender.enqueue_many(part)
            calls.append((before, time.time()))
        print(json.dumps(calls), flush=True)


if __name__ == "__main__":
    _serve(sys.argv[1], sys.argv[2:])
