"""What `seedance watch` shows on a terminal, drawn without one."""

import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from rich.console import Console

from models.credit import Funds
from models.flow import Flow
from models.flow_control.report import Limit
from models.flow_control.rules import ConcurrencyLimit
from models.flow_control.state import FlowState
from models.lifecycle import Status
from models.operating.pauses import PauseView
from models.reads import Summary
from models.wait_reasons import WaitReason
from models.waiting import Waiting
from tests.unit.test_cli_output import view
from worker.cli import output
from worker.cli.watch_screen import obstacles, screen
from worker.cli.watching import Credits, Deliveries, Snapshot, snapshot_json

WAITS = view(
    status=Status.ACCEPTED, tenant="acme", finished_at=None, wait_reason=WaitReason.CONCURRENCY
)


RATE = Limit("rate", 7.0, 3.0, "7 requests/s since the provider throttled at 10/s 3 s ago")
TASKS = Limit("concurrency", 7, 1.0, "7 tasks at work, rising while all are in use")


def snapshot(**fields: object) -> Snapshot:
    pause = PauseView(
        # By the clock of the moment in which it is drawn, with room for a slow one.
        "acme",
        "runaway script",
        "ana",
        datetime.now(UTC) - timedelta(minutes=5, seconds=1),
    )
    values: dict[str, object] = {
        "summary": Summary(
            {Status.RUNNING: 2},
            2,
            1,
            0,
            47.0,
            {"credit": "no more"},
            (RATE, TASKS),
            FlowState(concurrency=ConcurrencyLimit(7, 8, 1.0)),
            (pause,),
        ),
        "flow": Flow(600.0, {"accepted": 40, "failed": 3}, {"accepted": 5}, {"INTERNAL_ERROR": 3}),
        "waiting": Waiting({WaitReason.CONCURRENCY: 4, WaitReason.PAUSE: 1}, [WAITS]),
        "attention": [view(attention="its task can't be told apart")],
        "credits": Credits(
            Funds(Decimal(100), 12.0, Decimal(0), Decimal(30), Decimal(0)), Decimal("12.5")
        ),
        "deliveries": Deliveries(3, 1, 0, 0),
        "newest": [view()] * 50,
    }
    return Snapshot(**{**values, **fields})  # type: ignore[arg-type]


def drawn(shown: Snapshot, width: int = 100, height: int = 40) -> list[str]:
    console = Console(width=width, height=height)
    with console.capture() as capture:
        console.print(screen(shown, height=height))
    return [line.rstrip() for line in capture.get().splitlines()]


def test_everything_is_told() -> None:
    text = "\n".join(drawn(snapshot()))
    for said in (
        "running 2",
        "in flight 2 of 7 that the provider takes   oldest due 47s ago   attention 1",
        "a pause of tenant 'acme': runaway script (ana), for 5m",
        "breaker credit is open: no more",
        "rate: 7 requests/s since the provider throttled",
        "concurrency: 7 tasks at work",
        "! 00000000 its task can't be told apart",
        "errors INTERNAL_ERROR 3",
        "waiting concurrency 4, pause 1",
        "a free slot",
        "credits 70 free, 30 set aside, 100 on the account 12s ago; 12.5 charged today (UTC)",
        "deliveries 3 notices pending, 1 notices given up",
    ):
        assert said in text, said
    lines = [line.split() for line in text.splitlines()]
    assert ["last", "minute", "5", "0", "0", "0", "0", "0"] in lines
    assert ["a", "minute,", "of", "10m", "4.0", "0.0", "0.0", "0.3", "0.0", "0.0"] in lines


def test_it_fits_the_screen_while_the_newest_can_give_way() -> None:
    for height in (24, 30, 50):
        assert len(drawn(snapshot(), height=height)) <= height
    assert sum("completed" in line for line in drawn(snapshot(), height=50)) > 10


def test_each_thing_has_one_line_on_a_narrow_screen() -> None:
    long = view(attention="a very long story " * 20)
    lines = drawn(snapshot(attention=[long], newest=[]), width=80)
    assert sum("long story" in line for line in lines) == 1


def test_nothing_is_said_of_what_there_is_nothing_of() -> None:
    quiet = snapshot(
        summary=Summary({}, 0, 0, 0, 0.0, {}, (), FlowState()),
        flow=Flow(0.0, {}, {}, {}),
        waiting=Waiting({}, []),
        attention=[],
        credits=Credits(Funds(None, None, Decimal(0), Decimal(0), Decimal(0)), Decimal(0)),
        deliveries=Deliveries(0, 0, 0, 0),
        newest=[],
    )
    text = "\n".join(drawn(quiet))
    assert "balance not known yet; 0 charged today (UTC)" in text
    for word in ("errors", "waiting", "deliveries", "pause", "breaker", "rate", "takes"):
        assert word not in text


def test_json_has_each_limit_with_its_value_and_age(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_json(snapshot_json(snapshot()))
    shown = json.loads(capsys.readouterr().out)
    assert shown["breakers"] == {"credit": "no more"}
    assert shown["limits"] == [
        {"name": "rate", "value": 7.0, "seconds": 3.0, "text": RATE.text},
        {"name": "concurrency", "value": 7, "seconds": 1.0, "text": TASKS.text},
    ]


def test_each_obstacle_has_its_line() -> None:
    said = obstacles(snapshot().summary)
    assert len(said) == 4
    assert said[1:] == [
        "breaker credit is open: no more",
        f"rate: {RATE.text}",
        f"concurrency: {TASKS.text}",
    ]
