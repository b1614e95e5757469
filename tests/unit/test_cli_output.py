"""What is printed, and what is never."""

import json
import stat
import uuid
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from models.flow_control.report import Limit
from models.flow_control.state import FlowState
from models.lifecycle import Status
from models.reads import GenerationView, Summary
from worker import stack_file
from worker.cli import output, watch
from worker.embedded_process import FolderLock

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
SIGNED = "https://cdn.example/v.mp4?signature=geheim"


def view(**fields: Any) -> GenerationView:
    values: dict[str, Any] = dict.fromkeys(GenerationView.__dataclass_fields__)
    values |= {
        "id": uuid.UUID(int=7),
        "status": Status.COMPLETED,
        "request": {"content": [{"type": "image_url", "image_url": SIGNED}]},
        "estimated_cost": Decimal("9.0000"),
        "credit_cost": Decimal("9.0000"),
        "created_at": NOW,
        "finished_at": NOW + timedelta(seconds=90),
        "video_url": SIGNED,
    }
    return GenerationView(**{**values, **fields})


def test_signed_addresses_are_shown_only_when_asked_for() -> None:
    without = output.generation_json(view())
    assert "geheim" not in str(without)
    assert without["has_video"] is True
    assert without["has_last_frame"] is False
    assert output.generation_json(view(), urls=True)["video_url"] == SIGNED


def test_json_has_exact_credits_and_utc_times(capsys: pytest.CaptureFixture[str]) -> None:
    east = timezone(timedelta(hours=2))
    output.print_json(output.generation_json(view(created_at=NOW.astimezone(east))))
    shown = json.loads(capsys.readouterr().out)
    assert shown["credit_cost"] == "9"
    assert shown["created_at"] == "2026-01-02T03:04:05Z"
    assert shown["id"] == str(uuid.UUID(int=7))
    assert shown["status"] == "completed"


def test_a_pipe_gets_whole_fields_between_tabs(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_rows(["ID", "WHAT"], [["1", "a\tlong\nprompt " * 40]])
    heading, line = capsys.readouterr().out.splitlines()
    assert heading == "id\twhat"
    assert line.count("\t") == 1
    assert "…" not in line


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-3, "0s"), (59.9, "59s"), (60, "1m"), (61, "1m 1s"), (7_260, "2h 1m"), (86_400, "1d")],
)
def test_spans(seconds: float, text: str) -> None:
    assert output.span_text(seconds) == text


@pytest.mark.parametrize(("amount", "text"), [("9.0000", "9"), ("0.0000", "0"), ("120.5", "120.5")])
def test_credits(amount: str, text: str) -> None:
    assert output.credits_text(Decimal(amount)) == text


def test_how_it_ended() -> None:
    assert output.ending(view()).startswith("completed in 1m 30s, 9 credits")
    failed = view(status=Status.FAILED, error_code="REFUSED", error_message="no")
    assert output.ending(failed) == "failed after 1m 30s: REFUSED no"


def test_the_state_in_one_line() -> None:
    limits = (
        Limit("rate", 7.0, 3.0, "7 requests/s"),
        Limit("outage", 12.0, 12.0, "outage for 12 s"),
    )
    summary = Summary(
        {Status.RUNNING: 2}, 2, 1, 0, 47.0, {"credit": "no more"}, limits, FlowState()
    )
    assert watch.line(summary) == (
        "running 2, in flight 2, attention 1, late by over 40s, breaker credit open: no more,"
        " rate, outage"
    ), "limits by name alone: their figures change each second, and each change is a line"


def test_a_running_service_is_found_while_it_runs(tmp_path: Path) -> None:
    url = "postgresql+psycopg://seedance@/seedance"
    (tmp_path / "servers.json").write_text(json.dumps({"database_url": url, "broker_url": ""}))
    lock = FolderLock(tmp_path / "servers.lock")
    lock.acquire()
    with stack_file.published(tmp_path, {"SEEDANCE_API_KEY": "sim-key"}) as path:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        found = stack_file.find(tmp_path)
        assert found == {"SEEDANCE_API_KEY": "sim-key", "SEEDANCE_DATABASE_URL": url}
        lock.release()
        assert stack_file.find(tmp_path) == {}
    assert not path.exists()


def test_what_people_wrote_is_no_markup() -> None:
    table = output.table_of_rows(["WHO", "WHY"], [["[/ana]", "[bold]because[/]"]], shrink="WHY")
    console = Console(width=80)
    with console.capture() as capture:
        console.print(table)
    assert "[/ana]  [bold]because[/]" in capture.get()
