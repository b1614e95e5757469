"""What the doctor says of the rows: what is missed, what is lost, and which way credits drift."""

import re

import pytest
from sqlalchemy import insert, text

from models import reads
from models.flow_control import breakers, evidence, rules
from models.flow_control.breakers import BreakerName
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


# --- what limits submission ---------------------------------------------------------------------

OUTAGE = """
    INSERT INTO flow_control (account, failed_at, outage_since, probe_at, reason)
    VALUES ('default', now(), now() - interval '100 s', now(), 'SERVICE_BUSY')
"""
RAMP = "INSERT INTO flow_control (account, ramp_since) VALUES ('default', now())"
CONCURRENCY = """
    INSERT INTO flow_control (account, concurrency, concurrency_refused, concurrency_changed_at)
    VALUES ('default', 5, 6, now() - interval '20 s')
"""
RATE = """
    INSERT INTO flow_control (account, rate, rate_refused, rate_changed_at, resume_at, reason)
    VALUES ('default', 7, 10, now(), now() - interval '1 s', 'RATE_LIMIT_EXCEEDED')
"""
THROTTLED = """
    INSERT INTO flow_control (account, resume_at, reason)
    VALUES ('default', now() + interval '30 s', 'RATE_LIMIT_EXCEEDED')
"""
FAILURES = f"""
    INSERT INTO flow_control (account, failed_at) VALUES ('default', now());
    INSERT INTO generations (id, status, request, estimated_cost, finished_at, error_code)
    VALUES (gen_random_uuid(), 'failed', '{{}}', 9, now(), 'X');
    INSERT INTO submit_attempts (generation_id, number, seed, seed_drawn, fingerprint, settle_at,
        outcome, answered_at, provider_ok)
    SELECT id, n, n, true, '-', now(), 'refused', now(), n = 1
    FROM generations, generate_series(1, {rules.MIN_SAMPLE}) n
"""


def test_calm_account_has_no_limits(rt: Runtime) -> None:
    checks = examined(rt)
    assert checks["breakers"].level is Level.OK
    assert checks["flow"].level is Level.OK
    with rt.engine.connect() as conn:
        summary = reads.summary(conn)
    assert (summary.breakers, summary.limits, summary.flow.calm) == ({}, (), True)


@pytest.mark.parametrize(
    ("name", "state", "said"),
    [
        ("outage", OUTAGE, r"outage for 10\d s \(SERVICE_BUSY\): one probe every 1\d s"),
        (
            "concurrency",
            CONCURRENCY,
            r"5 tasks at work: the provider refused one more than 5 2\d s",
        ),
        ("rate", RATE, r"7\S* requests/s since the provider throttled at 10/s .*RATE_LIMIT"),
        ("throttled", THROTTLED, r"no requests for another (29|30) s: .*RATE_LIMIT_EXCEEDED"),
        ("failures", FAILURES, "most submits of the last seconds failed"),
    ],
)
def test_each_limit_is_named_with_reason_and_remedy(
    rt: Runtime, name: str, state: str, said: str
) -> None:
    """The doctor warns of each, and the summary has the same under its name."""
    with rt.engine.begin() as conn:
        for statement in state.split(";"):
            conn.execute(text(statement))
    found = examined(rt)["flow"]
    assert found.level is Level.WARN
    assert re.search(said, found.found), found.found
    assert found.mend
    with rt.engine.connect() as conn:
        [limit] = reads.summary(conn).limits
    assert limit.name == name
    assert re.search(said, str(limit))


def test_ramp_of_a_new_account_is_no_warning(rt: Runtime) -> None:
    with rt.engine.begin() as conn:
        conn.execute(text(RAMP))
    assert examined(rt)["flow"].level is Level.OK
    with rt.engine.connect() as conn:
        [limit] = reads.summary(conn).limits
    assert limit.name == "ramp"


@pytest.mark.parametrize("name", BreakerName)
def test_open_breaker_is_named_with_its_remedy(rt: Runtime, name: BreakerName) -> None:
    with rt.engine.begin() as conn:
        breakers.trip(conn, name, "refused: none left", probe_in=60)
    found = examined(rt)["breakers"]
    assert found.level is Level.WARN
    assert re.fullmatch(rf"{name} is open since \d{{4}}-\S+ \S+Z: refused: none left", found.found)
    assert found.mend
    with rt.engine.connect() as conn:
        assert reads.summary(conn).breakers == {str(name): "refused: none left"}


def test_several_limits_are_all_named(rt: Runtime) -> None:
    with rt.engine.begin() as conn:
        conn.execute(text(CONCURRENCY))
        evidence.throttled(conn, measured=10.0, retry_after=30.0, reason="RATE_LIMIT_EXCEEDED")
    named = [check for check in database(rt.settings).checks if check.name == "flow"]
    assert len(named) == 3
    with rt.engine.connect() as conn:
        limits = [limit.name for limit in reads.summary(conn).limits]
    assert limits == ["throttled", "rate", "concurrency"]
