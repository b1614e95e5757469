"""A pytest plugin that writes down how each test ended, one JSON object a line.

Loaded by the runner in the copied tree: `-p tests.protections.recorder`, with `RECORD_TO`.
"""

import json
import os
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

VARIABLE = "RECORD_TO"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[Any]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """After each phase: the test, and what was raised in it."""
    report = yield
    told: dict[str, Any] = {"test": item.nodeid, "phase": report.when, "kind": None, "says": ""}
    if report.failed and call.excinfo is not None:
        told["kind"] = call.excinfo.type.__name__
        told["says"] = " ".join(str(call.excinfo.value).split())[:200]
    with Path(os.environ[VARIABLE]).open("a") as file:
        file.write(json.dumps(told) + "\n")
    return report
