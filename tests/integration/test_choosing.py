"""Which generations an operator's filters mean, and why each of them waits."""

import uuid

import pytest
from sqlalchemy import Text, cast, func, select, text

from models import choosing, gates, waiting
from models.choosing import Choice
from models.error_classes import CLASSES, ErrorClass, class_of, class_sql
from models.gates import GateName
from models.lifecycle import AWAITS_DECISION, Status
from models.operating import pauses
from models.operating.actions import By
from models.waiting import Wait
from tests.integration import rows
from tests.integration.rows import make

S = Status
ANA = By("ana", "maintenance")
LATER = func.now() + text("interval '1 h'")


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
def waiters(conn) -> dict[Wait, uuid.UUID]:
    """One generation that waits for each kind of thing that its row says."""
    accepted = {"status": S.ACCEPTED}
    first = make(conn, S.UPLOADING)
    return {
        Wait.DECISION: make(conn, **accepted, waits_for=AWAITS_DECISION),
        Wait.EQUAL: make(conn, **accepted, blocked_by=first, waits_for="an equal", due_at=LATER),
        Wait.CREDITS: make(conn, **accepted, waits_for="credits: 9 needed"),
        Wait.BUDGET: make(conn, **accepted, waits_for="budget: 9 needed", due_at=LATER),
        Wait.LATER: make(conn, **accepted, waits_for="its reference", due_at=LATER),
        Wait.SLOT: make(conn, **accepted),
    }


def test_by_what_they_wait_for(conn, waiters):
    for kind, generation_id in waiters.items():
        assert chosen(conn, waits=[kind]) == {generation_id}, kind
    assert chosen(conn, waits=[Wait.PAUSE, Wait.GATE]) == set()


def test_a_gate_and_a_pause_hold_all_but_what_awaits_a_decision(conn, waiters):
    gates.close(conn, GateName.API_KEY, "INVALID_API_KEY: no")
    told = {Wait.CREDITS, Wait.BUDGET, Wait.LATER, Wait.SLOT}
    assert chosen(conn, waits=[Wait.GATE]) == {waiters[kind] for kind in told}
    pauses.pause(conn, None, ANA)
    assert chosen(conn, waits=[Wait.GATE]) == set()
    assert chosen(conn, waits=[Wait.DECISION]) == {waiters[Wait.DECISION]}
    assert len(chosen(conn, waits=[Wait.PAUSE])) == 5


def test_the_list_says_what_show_says(conn, waiters):
    gates.close(conn, GateName.CREDIT, "INSUFFICIENT_CREDIT: none", refused_estimate=5)
    pauses.pause(conn, "acme", ANA)
    make(conn, S.ACCEPTED, tenant="acme")
    make(conn, S.ACCEPTED, estimated_cost=4)
    make(conn, S.RUNNING)
    make(conn, S.RUNNING, waits_for="the task list")
    make(conn, S.COMPLETED)
    views = choosing.newest(conn, Choice(), limit=100)
    assert len(views) == 12
    for view in views:
        said = waiting.why(conn, view)
        assert (said or "").partition(":")[0] == (view.waits_for or "").partition(":")[0]
    assert {view.waits_for for view in views} >= {
        "a pause of tenant 'acme': maintenance (ana)",
        "gate credit, closed by INSUFFICIENT_CREDIT: none",
        AWAITS_DECISION,
        "the task list",
        None,
    }


def test_by_tenant_does_not_mean_another(conn):
    rows.make(conn, S.ACCEPTED, tenant="acme2")
    assert chosen(conn, tenants=["acme"]) == set()
