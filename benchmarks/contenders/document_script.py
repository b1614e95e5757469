"""The script of the provider's document, for many requests: a thread for each that is under way.

    python -m benchmarks.contenders.document_script REQUESTS RESULTS THREADS

REQUESTS is a file of requests, one as JSON a line; lines that come later are read as well. What has
ended is a line of RESULTS; started again, it leaves out what stands there.
"""

import json
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TextIO

import requests

from benchmarks.contenders.provider import BASE, ENDED, HEADERS, POLL_SECONDS, ready

_writing = threading.Lock()


def generate(request: dict[str, Any], results: Path) -> None:
    """Submit, look every few seconds, say what came of it."""
    answer = requests.post(BASE, headers=HEADERS, json=request)
    answer.raise_for_status()
    task_id = answer.json()["result"]["task_id"]
    while True:
        task = requests.get(f"{BASE}/{task_id}", headers=HEADERS).json()["result"]
        if task["status"] in ENDED:
            break
        time.sleep(POLL_SECONDS)
    line = {"request": request, "task_id": task_id, "url": task["video_url"], "at": time.time()}
    with _writing, results.open("a") as file:
        file.write(json.dumps(line) + "\n")


def enqueue_many(requests: Iterable[dict[str, Any]], requests_file: str) -> None:
    """Append lines; the script has no queue."""
    with Path(requests_file).open("a") as file:
        file.writelines(json.dumps(request) + "\n" for request in requests)


def whole_lines(file: TextIO) -> Iterator[str]:
    """Lines as they are appended, for ever."""
    while True:
        place = file.tell()
        line = file.readline()
        if line.endswith("\n"):
            yield line
        else:
            file.seek(place)
            time.sleep(0.05)


def main(requests_file: Path, results: Path, threads: int) -> None:
    """Work on every line, until killed."""
    done = [json.loads(line)["request"] for line in results.open()] if results.exists() else []
    known = {json.dumps(request) for request in done}
    with ThreadPoolExecutor(threads) as pool, requests_file.open() as file:
        ready()
        for line in whole_lines(file):
            request = json.loads(line)
            if json.dumps(request) not in known:
                pool.submit(generate, request, results)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
