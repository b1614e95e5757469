"""What counts as a delay of healthy work under partial faults."""

from collections.abc import Callable
from dataclasses import fields, replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest

from tests.chaos import liveness
from tests.chaos.invariants import partial_faults_delay_no_healthy_work
from tests.chaos.plan import Order, tag
from tests.chaos.records import Records, Row
from tests.chaos.strikes import Journal, Note

CALM_WAIT = 0.2
BOUND = liveness.MULTIPLE * CALM_WAIT + liveness.ALLOWANCE
PARTIAL = 1_005.0
"""Start of the stage of partial faults, in seconds since 1970. It lasts 20 s; the calm stage before
it lasts 5 s."""


def _stage(at: float, name: str) -> Note:
    return Note(at, "stage", name, at)


def _order(number: int, **changes: Any) -> Order:
    text = f"chaos {tag(number)} [sim: seconds=60]"
    order = Order(number, 0.0, {"content": [{"type": "text", "text": text}]}, "default", 0)
    return replace(order, **changes)


def _row(number: int, accepted: float) -> Row:
    event = {"event": "accept", "at": datetime.fromtimestamp(accepted, UTC)}
    values = dict.fromkeys(field.name for field in fields(Row)) | {
        "id": UUID(int=number),
        "number": number,
        "status": "completed",
        "events": (event,),
    }
    return Row(**values)  # type: ignore[arg-type]


def _records(*waits: tuple[Order, float, list[float]], fault: str | None = None) -> Records:
    """Return the records of twenty calm generations and of `waits`.

    Each of `waits` is an order, the time of its acceptance, and the times of its submits; `fault`
    hits the first submit of each.
    """
    calm = [(_order(n), 1_000.0 + n / 10, [1_000.0 + n / 10 + CALM_WAIT]) for n in range(20)]
    submits = [
        {
            "time": time,
            "body": f"chaos {order.tag}",
            "fault": fault if accepted >= PARTIAL and place == 0 else None,
        }
        for order, accepted, times in (*calm, *waits)
        for place, time in enumerate(times)
    ]
    stages = [_stage(1_000.0, "calm"), _stage(PARTIAL, "partial"), _stage(PARTIAL + 20, "all")]
    return Records(
        orders=[order for order, _, _ in (*calm, *waits)],
        ids={},
        rows=[_row(order.number, accepted) for order, accepted, _ in (*calm, *waits)],
        strays=[],
        ledger=[],
        tasks=[],
        submits=submits,
        uploads=[],
        requests=[],
        faults={},
        outcomes={},
        used_credits=Decimal(0),
        key_leaks=0,
        journal=Journal(stages),
        logs={},
        api_key="",
    )


def _late(records: Records) -> list[int]:
    return [broken.number for broken in partial_faults_delay_no_healthy_work(records)]


def test_a_submit_within_the_bound_is_in_time():
    records = _records((_order(20), PARTIAL + 1, [PARTIAL + 1 + BOUND - 0.1]))
    assert liveness.measure(records).calm_time == pytest.approx(CALM_WAIT)
    assert not _late(records)


@pytest.mark.parametrize("submits", [[], [PARTIAL + 1 + BOUND + 0.1], [PARTIAL + 90]])
def test_a_submit_after_the_bound_or_never_is_late(submits: list[float]):
    assert _late(_records((_order(20), PARTIAL + 1, submits))) == [20]


def test_a_refused_generation_is_submitted_again_within_the_bound():
    first = PARTIAL + 1.5
    late = _records((_order(20), PARTIAL + 1, [first, first + BOUND + 0.1]), fault="service_busy")
    in_time = _records((_order(20), PARTIAL + 1, [first, first + 3]), fault="service_busy")
    assert _late(late) == [20]
    assert not _late(in_time)


def test_the_wait_after_an_ambiguous_answer_is_not_judged():
    records = _records((_order(20), PARTIAL + 1, [PARTIAL + 2]), fault="bare")
    assert len(liveness.measure(records).judged) == 1
    assert not _late(records)


@pytest.mark.parametrize(
    "changes",
    [
        {"poisoned": True},
        {"deadline": 1.0},
        {"cancel_after": 1.0},
        {"request": {"seed": 7, "content": []}},
        {"request": {"content": [{"type": "image_url", "image_url": "path:a.jpg"}]}},
        {"request": {"content": [{"type": "text", "text": "[sim: submit=lost]"}]}},
    ],
)
def test_a_generation_that_its_own_order_may_delay_is_not_judged(changes: dict[str, Any]):
    healthy = (_order(21), PARTIAL + 1, [PARTIAL + 2])
    assert not _late(_records((_order(20, **changes), PARTIAL + 1, []), healthy))


def test_a_wait_that_the_end_of_the_stage_cuts_off_is_not_judged():
    healthy = (_order(21), PARTIAL + 1, [PARTIAL + 2])
    assert not _late(_records((_order(20), PARTIAL + 20 - BOUND + 1, []), healthy))


@pytest.mark.parametrize("kind", ["kill -9", "broker frozen", "restart"])
def test_a_wait_that_a_strike_overlaps_is_not_judged(kind: str):
    def struck(at: float) -> Records:
        records = _records(
            (_order(20), PARTIAL + 5, []), (_order(21), PARTIAL + 1, [PARTIAL + 1.5])
        )
        notes = [*records.journal.notes, Note(at, kind, "", at + 0.5)]
        return replace(records, journal=Journal(notes))

    assert not _late(struck(PARTIAL + 6))
    assert _late(struck(PARTIAL + 2)) == [20]


def _without(kind: str) -> Callable[[Records], Records]:
    def change(records: Records) -> Records:
        notes = [note for note in records.journal.notes if note.detail != kind]
        return replace(records, journal=Journal(notes))

    return change


def test_a_stage_that_shows_nothing_is_broken():
    records = _records((_order(20), PARTIAL + 1, [PARTIAL + 2]))
    assert _late(_without("calm")(records)) == [-1]
    assert _late(replace(records, orders=records.orders[:20])) == [-1]


def test_a_run_without_partial_faults_is_not_measured():
    records = _without("partial")(_records((_order(20), PARTIAL + 1, [])))
    assert not _late(records)
    assert liveness.measure(records).summary() == "not measured"
