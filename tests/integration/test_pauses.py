"""Pauses: nothing new is sent, at any step; everything else goes on, and so do other tenants."""

import uuid
from decimal import Decimal

import pytest
from sqlalchemy import func, text, update
from sqlalchemy.exc import DBAPIError

from models import credit, reads, schedule, transitions, waiting
from models.lifecycle import Status
from models.operating import actions, pauses
from models.operating.actions import By
from models.schedule import Stage
from models.tables import Generation
from tests.integration import rows
from tests.integration.conftest import text_request
from tests.integration.invariants import laboratory, paused
from worker.stages import submit, upload

ANA = By("ana", "maintenance")
S = Status


@pytest.fixture
def lab(make_runtime, sim, caplog):
    with laboratory(make_runtime, sim, caplog) as lab:
        yield lab


def pause(lab, tenant=None):
    with lab.rt.engine.begin() as conn:
        return pauses.pause(conn, tenant, ANA)


def resume(lab, tenant=None):
    with lab.rt.engine.begin() as conn:
        return pauses.resume(conn, tenant, By("bo"))


def why(lab, generation_id):
    with lab.rt.engine.connect() as conn:
        return waiting.current(conn, lab.get(generation_id)).waits_for


def test_what_is_accepted_waits_and_says_for_what(lab):
    pause(lab)
    generation_id = lab.enqueue()
    assert lab.once() == 0
    assert lab.get(generation_id).waits_for is None, "nothing is written to what waits"
    assert why(lab, generation_id) == "the end of the pause: maintenance (ana)"
    resume(lab)
    assert lab.once() == 1
    assert lab.posts == 1


def test_of_a_paused_tenant_alone(lab):
    pause(lab, "acme")
    first = lab.enqueue(tenant="acme", priority=9)
    others = [lab.enqueue(tenant=tenant) for tenant in ("aaa", "zzz", "acme2")]
    assert {claim.id for claim in lab.admit()} == set(others)
    assert why(lab, first) == "the end of the pause of tenant 'acme': maintenance (ana)"
    resume(lab, "acme")
    assert [claim.id for claim in lab.admit()] == [first]


def test_a_pause_of_all_and_one_of_a_tenant_end_each_by_itself(lab):
    pause(lab)
    pause(lab, "acme")
    generation_id = lab.enqueue(tenant="acme")
    resume(lab)
    assert lab.admit() == []
    assert why(lab, generation_id) == "the end of the pause of tenant 'acme': maintenance (ana)"
    resume(lab, "acme")
    assert len(lab.admit()) == 1


def test_what_was_let_in_is_put_back_at_its_intent(lab):
    claim = lab.start()
    pause(lab)
    submit.run(lab.rt, [(claim.id, claim.lease)])
    view = lab.get(claim.id)
    assert (view.status, view.waits_for) == (S.ACCEPTED, "the end of the pause: maintenance (ana)")
    assert lab.outcomes(claim.id) == [], "no attempt was begun"
    assert lab.posts == 0
    resume(lab)
    assert lab.get(claim.id).waits_for is None
    assert lab.once() == 1, "at once, not when it would have looked again"
    assert lab.posts == 1


def test_what_is_uploading_keeps_its_uploads(lab, sim, tmp_path, make_runtime):
    (tmp_path / "lake.jpg").write_bytes(b"\xff\xd8\xff" + b"x" * 100)
    rt = make_runtime(media_roots=(tmp_path,))
    request = text_request("a lake")
    request["content"].append({"type": "image_url", "image_url": f"path:{tmp_path}/lake.jpg"})
    generation_id = lab.enqueue(request)
    [claim] = lab.admit()
    assert claim.stage is Stage.UPLOAD
    pause(lab)
    upload.run(rt, claim.id, claim.lease)
    assert lab.get(generation_id).status is S.ACCEPTED
    resume(lab)
    [claim] = lab.admit()
    assert claim.stage is Stage.SUBMIT, "nothing is uploaded twice"
    submit.run(rt, [(claim.id, claim.lease)])
    assert lab.posts == 1


def test_between_the_intent_and_its_check(lab):
    claim = lab.start()
    submit.run(paused(lab.rt, before_check=lambda: pause(lab)), [(claim.id, claim.lease)])
    view = lab.get(claim.id)
    assert (view.status, view.waits_for) == (S.ACCEPTED, "the end of the pause: maintenance (ana)")
    assert lab.outcomes(claim.id) == ["not_sent"]
    assert lab.posts == 0


def test_what_runs_is_followed_to_its_end_and_charged(lab):
    generation_id = lab.send()
    pause(lab)
    assert lab.complete(generation_id).credit_cost == 9


def test_a_lost_answer_is_found_and_an_absent_task_is_not_sent_again(lab, sim):
    found, absent = lab.in_doubt(), lab.in_doubt(kind="drop_before")
    pause(lab)
    lab.resolve(found)
    assert lab.get(found).status is S.RUNNING
    lab.resolve(absent)
    assert lab.get(absent).status is S.ACCEPTED
    before = lab.posts
    lab.due_now(absent)
    assert lab.once() == 0
    assert lab.posts == before


def test_deadlines_pass(lab):
    generation_id = lab.enqueue()
    pause(lab)
    lab.sql("UPDATE generations SET deadline_at = now()")
    lab.admit()
    assert lab.get(generation_id).status is S.EXPIRED


def test_a_cancel_is_carried_out(lab):
    generation_id = lab.enqueue()
    pause(lab)
    with lab.rt.engine.begin() as conn:
        transitions.cancel(conn, generation_id)
    assert lab.get(generation_id).status is S.CANCELLED


# --- nobody else is held up ----------------------------------------------------------------------


def test_an_equal_generation_of_another_tenant_goes_first_meanwhile(conn):
    first = accepted(conn, "acme", "same")
    later = func.now() + text("interval '1 s'")
    second = accepted(conn, "other", "same", created_at=later)
    assert admitted(conn) == [first]
    assert rows.read(conn, second).blocked_by == first
    conn.execute(
        update(Generation)
        .where(Generation.id == first)
        .values(status="accepted", due_at=func.now())
    )
    pauses.pause(conn, "acme", ANA)
    assert admitted(conn) == [second]


def test_credits_are_not_saved_up_for_what_is_paused(conn):
    dear = rows.make(
        conn,
        S.ACCEPTED,
        tenant="acme",
        estimated_cost=50,
        wait_reason="credits",
        created_at=func.now() - text("interval '1 h'"),
    )
    conn.execute(
        text(
            "INSERT INTO balance_snapshots (total_credits, used_credits, remain_credits)"
            " VALUES (60, 0, 60)"
        )
    )
    rows.make(conn, S.RUNNING, estimated_cost=20)
    senior = credit.tell(conn).senior
    assert senior is not None
    assert senior.id == dear
    pauses.pause(conn, "acme", ANA)
    assert credit.tell(conn).senior is None


def test_a_hundred_thousand_that_wait_cost_nothing(conn):
    conn.execute(
        text("""
        INSERT INTO generations (id, status, request, tenant, estimated_cost, due_at)
        SELECT gen_random_uuid(), 'accepted', '{}', 'acme', 9, now() FROM generate_series(1, 100000)
        """)
    )
    mine = accepted(conn, "other")
    pauses.pause(conn, "acme", ANA)
    conn.execute(text("ANALYZE generations"))

    def rows_read() -> int:
        return conn.execute(
            text(
                "SELECT coalesce(sum(idx_tup_fetch + seq_tup_read), 0)"
                " FROM pg_stat_xact_user_tables WHERE relname = 'generations'"
            )
        ).scalar_one()

    before = rows_read()
    assert admitted(conn) == [mine]
    assert admitted(conn) == []
    assert rows_read() - before < 100
    put_off = conn.execute(
        text("SELECT count(*) FROM generations WHERE due_at <> created_at AND tenant = 'acme'")
    ).scalar_one()
    assert put_off == 0, "no row is written"


def accepted(conn, tenant: str, mark: str | None = None, **values) -> uuid.UUID:
    return rows.make(conn, S.ACCEPTED, tenant=tenant, fingerprint=mark, **values)


def admitted(conn) -> list[uuid.UUID]:
    claims = schedule.admit(conn, 50, max_in_flight=50, lease_seconds=60, ceiling=None)
    return [claim.id for claim in claims]


# --- the record ----------------------------------------------------------------------------------


def test_who_paused_and_resumed_and_why_is_kept(conn):
    assert pauses.pause(conn, "acme", ANA)
    assert not pauses.pause(conn, "acme", By("bo", "something else"))
    [held] = pauses.known(conn)
    assert (held.tenant, held.reason, held.paused_by) == ("acme", "something else", "bo")
    assert pauses.resume(conn, None, ANA) is None, "not all of them were paused"
    assert pauses.resume(conn, "acme", By("ana")) == held
    assert pauses.known(conn) == ()
    told = [(a.action, a.actor, a.reason, a.tenant) for a in actions.newest(conn)]
    assert told == [
        ("resume", "ana", None, "acme"),
        ("pause", "bo", "something else", "acme"),
        ("pause", "ana", "maintenance", "acme"),
    ]


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE operator_actions SET actor = 'x'",
        "DELETE FROM operator_actions",
        "TRUNCATE operator_actions",
    ],
)
def test_what_operators_did_can_not_be_altered(conn, statement):
    actions.record(conn, actions.Action.PAUSE, ANA)
    with pytest.raises(DBAPIError, match="append-only"):
        conn.execute(text(statement))


def test_the_summary_has_the_pauses(conn):
    pauses.pause(conn, None, ANA)
    [told] = reads.summary(conn).pauses
    assert told.tenant is None
    assert str(told) == "a pause: maintenance (ana)"
    assert Decimal(0) == credit.funds(conn).under_way
