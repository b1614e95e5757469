"""Whether the gateway says of what it stands on that it is there, also when that hangs."""

import threading
import time
from typing import Any

import pytest

from worker.gateway import health


def test_what_hangs_is_named_in_time_and_holds_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """A database that is frozen keeps a connection open and never answers."""
    back, asked = threading.Event(), []

    def frozen(_: Any) -> None:
        asked.append(1)
        back.wait(30)

    monkeypatch.setattr(health, "_database", frozen)
    monkeypatch.setattr(health, "_migrations", lambda _: None)
    monkeypatch.setattr(health, "_broker", lambda _: None)
    engine: Any = object()
    readiness = health.Readiness(engine, "redis://-", within=0.2)
    began = time.monotonic()
    for _ in range(3):
        assert readiness.look() == {
            "database": "does not answer in time",
            "migrations": "ok",
            "broker": "ok",
        }
    assert time.monotonic() - began < 10
    assert len(asked) == 1, "no thread more for each who asks"
    back.set()
    while readiness.look()["database"] != "ok":
        assert time.monotonic() - began < 20


def test_what_fails_is_named_by_its_kind_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(_: Any) -> None:
        raise OSError("postgresql://user:password@host")

    monkeypatch.setattr(health, "_database", refused)
    monkeypatch.setattr(health, "_migrations", lambda _: "at 1, has to be at 2")
    monkeypatch.setattr(health, "_broker", lambda _: None)
    engine: Any = object()
    assert health.Readiness(engine, "redis://-").look() == {
        "database": "not reached (OSError)",
        "migrations": "at 1, has to be at 2",
        "broker": "ok",
    }
