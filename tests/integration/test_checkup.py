"""What the doctor says of the rows: what is missed, what is lost, and which way credits drift."""

import re

import pytest
from sqlalchemy import insert, text

from models.lifecycle import Status
from models.metrics import pulses
from models.tables import BalanceSnapshot
from tests.integration import rows
from worker.checkup.finding import Check, Level
from worker.checkup.postgres import database
from worker.runtime import Runtime


def examined(rt: Runtime) -> dict[str, Check]:
    return {check.name: check for check in database(rt.settings).checks}


def balance(rt: Runtime, used: int) -> None:
    with rt.engine.begin() as conn:
        conn.execute(
            insert(BalanceSnapshot).values(
                total_credits=1000, used_credits=used, remain_credits=1000 - used
            )
        )


def test_a_new_service_misses_no_upkeep(rt: Runtime) -> None:
    assert examined(rt)["upkeep"].level is Level.OK
    with rt.engine.begin() as conn:
        rows.make(conn, Status.ACCEPTED)
    assert examined(rt)["upkeep"].level is Level.OK


def test_upkeep_that_is_missed_is_named(rt: Runtime) -> None:
    with rt.engine.begin() as conn:
        rows.make(conn, Status.ACCEPTED, created_at=text("now() - interval '1 day'"))
        for what in ("balance", "prune"):
            pulses.tell(conn, what)
        conn.execute(text("UPDATE pulses SET at = at - interval '4 hours' WHERE name = 'prune'"))
    found = examined(rt)["upkeep"]
    assert found.level is Level.WARN
    assert re.fullmatch(r"last success: reconcile never, prune 144\d\d s ago", found.found)
    with rt.engine.begin() as conn:
        for what in ("reconcile", "prune"):
            pulses.tell(conn, what)
    assert examined(rt)["upkeep"].level is Level.OK


def test_lost_results_are_named(rt: Runtime) -> None:
    with rt.engine.begin() as conn:
        lost = [rows.make(conn, Status.COMPLETED) for _ in range(4)]
        for age, generation_id in enumerate(lost):
            for kind in ("video", "last_frame"):
                conn.execute(
                    text(
                        "INSERT INTO artifacts"
                        " (generation_id, kind, made_at, available_until, lost_at, error) VALUES"
                        " (:id, :kind, now(), now(), now() - make_interval(hours => :age), 'gone')"
                    ),
                    {"id": generation_id, "kind": kind, "age": age},
                )
    found = examined(rt)["results"]
    assert found.level is Level.WARN
    named = ", ".join(map(str, lost[:3]))
    assert found.found == f"8 results of the last week are lost, the latest of {named}"


@pytest.mark.parametrize(
    ("before", "after", "mend"),
    [(0, 500, "others who use the key"), (500, 0, "give credits back")],
)
def test_a_drift_asks_after_its_own_causes(before: int, after: int, mend: str, rt: Runtime) -> None:
    balance(rt, before)
    balance(rt, after)
    found = examined(rt)["ledger"]
    assert found.level is Level.WARN
    assert mend in str(found.mend)
