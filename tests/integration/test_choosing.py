"""Which generations an operator's filters mean, and why each of them waits."""

import uuid
from decimal import Decimal

import pytest
from sqlalchemy import Text, cast, func, select, text

from models import choosing, waiting
from models.choosing import Choice
from models.error_classes import CLASSES, ErrorClass, class_of, class_sql
from models.flow_control import breakers, evidence
from models.flow_control.breakers import BreakerName
from models.lifecycle import Status
from models.operating import pauses
from models.operating.actions import By
from models.wait_reasons import WaitReason
from tests.integration import rows
from tests.integration.rows import make

S = Status
ANA = By("ana", "maintenance")
LATER = func.now() + text("interval '1 h'")


def throttle(conn) -> None:
    evidence.throttled(conn, measured=9.0, retry_after=60.0, reason="RATE_LIMIT_EXCEEDED")


def outage(conn) -> None:
    conn.execute(
        text(
            "INSERT INTO flow_control (account, outage_since, probe_at, reason)"
            " VALUES ('default', now(), now(), 'SERVICE_BUSY')"
        )
    )


def chosen(conn, **named) -> set[uuid.UUID]:
    named = {name: frozenset(v) if isinstance(v, list) else v for name, v in named.items()}
    return {view.id for view in choosing.newest(conn, Choice(**named), limit=100)}


def test_each_kind_of_condition_must_be_met_and_any_value_of_one_will_do(conn):
    acme = make(conn, S.RUNNING, tenant="acme")
    failed = make(conn, S.FAILED, tenant="acme", error_code="INTERNAL_ERROR")
    other = make(conn, S.FAILED, tenant="other", error_code="WORKER_LOST")
    ill = make(conn, S.RUNNING, attention="look", attention_at=func.now(), tenant="other")
    assert chosen(conn, tenants=["acme"]) == {acme, failed}
    assert chosen(conn, tenants=["acme", "other"]) == {acme, failed, other, ill}
    assert chosen(conn, tenants=["acme"], statuses=[S.RUNNING, S.ACCEPTED]) == {acme}
    assert chosen(conn, error_codes=["WORKER_LOST", "X"]) == {other}
    assert chosen(conn, error_classes=[ErrorClass.PROVIDER]) == {failed}
    assert chosen(conn, attention=True) == {ill}
    assert chosen(conn, attention=True, tenants=["acme"]) == set()


def test_by_age(conn):
    old = make(conn, S.ACCEPTED, created_at=func.now() - text("interval '2 h'"))
    new = make(conn, S.ACCEPTED)
    hour_ago = conn.execute(select(func.now() - text("interval '1 h'"))).scalar_one()
    assert chosen(conn, since=hour_ago) == {new}
    assert chosen(conn, until=hour_ago) == {old}


def test_the_class_of_a_column_is_that_of_the_code(conn):
    for code in [*CLASSES, "SOMETHING_NEW", None]:
        found = conn.execute(select(class_sql(cast(code, Text))))
        assert found.scalar_one() == class_of(code)


@pytest.fixture
def waiters(conn) -> dict[WaitReason, uuid.UUID]:
    """Return one generation for each reason that a row can say alone."""
    accepted = {"status": S.ACCEPTED}
    first = make(conn, S.UPLOADING)
    return {
        WaitReason.OPERATOR: make(conn, **accepted, wait_reason="operator"),
        WaitReason.EQUAL_GENERATION: make(
            conn, **accepted, blocked_by=first, wait_reason="equal_generation", due_at=LATER
        ),
        WaitReason.CREDITS: make(conn, **accepted, wait_reason="credits"),
        WaitReason.BUDGET: make(conn, **accepted, wait_reason="budget", due_at=LATER),
        WaitReason.REFERENCE: make(conn, **accepted, wait_reason="reference", due_at=LATER),
        WaitReason.RETRY: make(conn, **accepted, wait_reason="retry", due_at=LATER),
        WaitReason.CONCURRENCY: make(conn, **accepted),
    }


def test_by_what_they_wait_for(conn, waiters):
    for kind, generation_id in waiters.items():
        assert chosen(conn, waits=[kind]) == {generation_id}, kind
    none = [WaitReason.PAUSE, WaitReason.BREAKER, WaitReason.RATE]
    assert chosen(conn, waits=none) == set()


@pytest.mark.parametrize("reason", [r for r in WaitReason if r not in ("operator", "credits")])
def test_a_reason_counts_until_the_generation_is_due_again(conn, reason):
    generation_id = make(conn, S.ACCEPTED, wait_reason=reason, due_at=LATER)
    assert chosen(conn, waits=[reason]) == {generation_id}
    conn.execute(text("UPDATE generations SET due_at = now()"))
    assert chosen(conn, waits=[WaitReason.CONCURRENCY]) == {generation_id}


@pytest.mark.parametrize(
    ("limit", "sentence"),
    [
        (throttle, "the provider, which throttles requests (RATE_LIMIT_EXCEEDED)"),
        (outage, "the end of the provider's outage (SERVICE_BUSY)"),
    ],
)
def test_throttling_and_outage_are_the_rate_and_a_breaker_has_priority(
    conn, waiters, limit, sentence
):
    held = {
        waiters[reason]
        for reason in waiters
        if reason not in (WaitReason.OPERATOR, WaitReason.EQUAL_GENERATION)
    }
    limit(conn)
    assert chosen(conn, waits=[WaitReason.RATE]) == held
    [view] = choosing.newest(conn, Choice(waits=frozenset({WaitReason.RATE})), limit=1)
    assert view.waits_for == sentence
    breakers.trip(conn, BreakerName.API_KEY, "INVALID_API_KEY: no", probe_in=60)
    assert chosen(conn, waits=[WaitReason.RATE]) == set()
    assert chosen(conn, waits=[WaitReason.BREAKER]) == held


def test_breaker_and_pause_block_all_but_what_awaits_a_decision(conn, waiters):
    breakers.trip(conn, BreakerName.API_KEY, "INVALID_API_KEY: no", probe_in=60)
    own = {WaitReason.OPERATOR, WaitReason.EQUAL_GENERATION}
    assert chosen(conn, waits=[WaitReason.BREAKER]) == {
        waiters[reason] for reason in waiters.keys() - own
    }
    pauses.pause(conn, None, ANA)
    assert chosen(conn, waits=[WaitReason.BREAKER]) == set()
    assert chosen(conn, waits=[WaitReason.OPERATOR]) == {waiters[WaitReason.OPERATOR]}
    assert len(chosen(conn, waits=[WaitReason.PAUSE])) == 6


def test_the_list_says_what_show_says(conn, waiters):
    breakers.trip(
        conn,
        BreakerName.CREDIT,
        "INSUFFICIENT_CREDIT: none",
        probe_in=60,
        refused_estimate=Decimal(5),
    )
    pauses.pause(conn, "acme", ANA)
    make(conn, S.ACCEPTED, tenant="acme")
    make(conn, S.ACCEPTED, estimated_cost=4)
    make(conn, S.RUNNING)
    make(conn, S.RUNNING, wait_reason="retry", wait_detail={"why": "the task list"})
    make(conn, S.COMPLETED)
    views = choosing.newest(conn, Choice(), limit=100)
    assert len(views) == 13
    for view in views:
        assert waiting.current(conn, view) == view
        assert waiting.current(conn, view, position=True).wait_reason == view.wait_reason
    assert {view.waits_for for view in views} >= {
        "the end of the pause of tenant 'acme': maintenance (ana)",
        "circuit breaker credit, opened by INSUFFICIENT_CREDIT: none",
        "an operator's decision",
        "a retry: the task list",
        None,
    }


def test_by_tenant_does_not_mean_another(conn):
    rows.make(conn, S.ACCEPTED, tenant="acme2")
    assert chosen(conn, tenants=["acme"]) == set()
