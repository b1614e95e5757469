"""The outbox: what a transition puts into it, and in which order and how fast it is handed out."""

import uuid
from typing import Any

import pytest
from sqlalchemy import Connection, event, text

from models import intake, transitions
from models.intake import RefusedRequest
from models.lifecycle import Event, Status
from models.notices import State, Target, delivery, reading
from models.notices.delivery import FORGIVEN, PER_RECEIVER, Claim
from models.operating import actions
from models.operating.actions import By
from models.transitions.core import g, move
from tests.integration import rows

HOOK = {"on": "end", "webhook": "https://Shop.example/hook?key=1"}
TASK = {"on": "end", "task": "shop.video_done", "queue": "shop"}
BOTH = {**HOOK, **TASK}
LEASE = 60.0


def put_out(conn: Connection, notify: dict[str, Any] | None = None, **values: Any) -> uuid.UUID:
    """A generation that has just been cancelled, and so told its producer, if that wants it."""
    generation_id = rows.make(
        conn, Status.ACCEPTED, notify=HOOK if notify is None else notify, **values
    )
    transitions.cancel(conn, generation_id)
    return generation_id


def outbox(conn: Connection, generation_id: uuid.UUID) -> list[tuple[str, int, str]]:
    found = reading.listing(conn, generation_id=generation_id)
    return sorted((notice.target, notice.sequence, notice.type) for notice in found)


def claim(conn: Connection, limit: int = 100) -> list[Claim]:
    return delivery.claim_due(conn, limit, LEASE)


def load(conn: Connection, claimed: Claim) -> delivery.Outgoing:
    found = delivery.load(conn, claimed)
    assert found is not None
    return found


def receivers_of(conn: Connection, claims: list[Claim]) -> list[str]:
    return sorted(load(conn, one).receiver for one in claims)


# --- what a transition writes -------------------------------------------------------------------


def test_the_end_is_told_to_each_target_and_what_leads_to_it_is_not(conn):
    generation_id = rows.make(conn, Status.ACCEPTED, notify=BOTH)
    move(conn, Event.ADMIT, g.id == generation_id, values={})
    assert outbox(conn, generation_id) == []
    move(
        conn,
        Event.REJECT,
        g.id == generation_id,
        values={"error_code": "X", "error_message": "it said so"},
    )
    assert outbox(conn, generation_id) == [
        ("task", 1, "generation.failed"),
        ("webhook", 1, "generation.failed"),
    ]
    [hook] = [n for n in reading.listing(conn) if n.target is Target.WEBHOOK]
    assert hook.receiver == "https://shop.example"
    assert hook.data == {
        "status": "failed",
        "credit_cost": "0.0000",
        "error_code": "X",
        "error_message": "it said so",
        "has_video": False,
    }


def test_each_change_is_told_and_numbered_where_that_is_wanted(conn):
    generation_id = rows.make(conn, Status.ACCEPTED, notify={**TASK, "on": "change"})
    move(conn, Event.ADMIT, g.id == generation_id, values={})
    move(conn, Event.PUT_BACK, g.id == generation_id, values={})
    transitions.cancel(conn, generation_id)
    assert outbox(conn, generation_id) == [
        ("task", 1, "generation.uploading"),
        ("task", 2, "generation.accepted"),
        ("task", 3, "generation.cancelled"),
    ]


def test_where_nobody_wants_to_be_told_no_statement_is_sent(conn):
    said: list[str] = []
    generation_id = rows.make(conn, Status.ACCEPTED)

    def listen(conn, cursor, statement, *args):
        said.append(statement)

    event.listen(conn.engine, "before_cursor_execute", listen)
    try:
        transitions.cancel(conn, generation_id)
    finally:
        event.remove(conn.engine, "before_cursor_execute", listen)
    assert said
    assert not any("INTO notices" in statement for statement in said)
    assert rows.read(conn, generation_id).notified == 0


def test_many_that_are_moved_at_once_are_told_one_by_one(conn):
    ids = [rows.make(conn, Status.ACCEPTED, notify={**HOOK, "on": "change"}) for _ in range(3)]
    move(conn, Event.ADMIT, g.id.in_(ids), values={})
    assert [outbox(conn, one) for one in ids] == [[("webhook", 1, "generation.uploading")]] * 3


def test_a_move_that_is_undone_has_told_nobody(conn):
    generation_id = rows.make(conn, Status.ACCEPTED, notify=HOOK)
    with conn.begin_nested() as undone:
        transitions.cancel(conn, generation_id)
        undone.rollback()
    assert outbox(conn, generation_id) == []
    assert rows.read(conn, generation_id).notified == 0


def test_a_request_that_is_refused_at_the_door_is_told(conn):
    refused = RefusedRequest(uuid.uuid4(), {}, "no such ratio", notify=TASK)
    assert intake.record_refused(conn, refused)
    assert not intake.record_refused(conn, refused), "the message came twice"
    assert outbox(conn, refused.id) == [("task", 1, "generation.failed")]


# --- handing out --------------------------------------------------------------------------------


def test_a_claim_is_fenced_and_comes_back_when_its_lease_ends(conn):
    put_out(conn)
    [first] = claim(conn)
    assert claim(conn) == []
    conn.execute(text("UPDATE notices SET due_at = now() - interval '1 s'"))
    [second] = claim(conn)
    assert second.lease == first.lease + 1
    assert delivery.load(conn, first) is None
    stale = load(conn, second)
    assert not delivery.delivered(conn, _with_lease(stale, first.lease))
    assert delivery.delivered(conn, stale)
    assert not delivery.delivered(conn, stale), "once"
    assert claim(conn) == []


def _with_lease(notice: delivery.Outgoing, lease: int) -> delivery.Outgoing:
    return delivery.Outgoing(**{**vars(notice), "lease": lease})


@pytest.mark.parametrize("end", ["delivered", "dead"])
def test_the_next_of_a_generation_goes_when_the_one_before_is_settled(conn, end):
    generation_id = rows.make(conn, Status.ACCEPTED, notify={**BOTH, "on": "change"})
    move(conn, Event.ADMIT, g.id == generation_id, values={})
    transitions.cancel(conn, generation_id)

    first = [load(conn, one) for one in claim(conn)]
    assert sorted((n.target, n.sequence) for n in first) == [("task", 1), ("webhook", 1)]
    hook = next(n for n in first if n.target is Target.WEBHOOK)
    delivery.failed(conn, hook, seconds=3600, why="HTTP 500")
    assert claim(conn) == [], "what follows a failed one waits as long as it does"

    task = next(n for n in first if n.target is Target.TASK)
    if end == "delivered":
        delivery.delivered(conn, task)
    else:
        delivery.dead(conn, task, "gone")
    assert [(n.target, n.sequence) for n in (load(conn, c) for c in claim(conn))] == [("task", 2)]


def test_a_worker_goes_on_with_the_next_for_the_same_receiver(conn):
    for _ in range(2):
        put_out(conn)
    put_out(conn, TASK)
    [one, *_] = [n for n in (load(conn, c) for c in claim(conn, 2)) if n.receiver != "queue:shop"]
    following = delivery.claim_next(conn, one.receiver, LEASE)
    assert following is not None
    assert load(conn, following).receiver == one.receiver
    assert delivery.claim_next(conn, one.receiver, LEASE) is None


def test_one_receiver_gets_half_of_the_room_and_a_few_at_most(conn):
    for _ in range(20):
        put_out(conn)
    assert len(claim(conn, 2)) == 1
    assert len(claim(conn, 4)) == 1, "two for it, one is on its way"
    assert len(claim(conn)) == PER_RECEIVER - 2
    assert claim(conn) == []
    put_out(conn, TASK)
    assert receivers_of(conn, claim(conn, 1)) == ["queue:shop"], "the others don't wait"


def test_receivers_take_turns(conn):
    for _ in range(5):
        put_out(conn)
    for name in "abc":
        put_out(conn, {**TASK, "queue": name})
    claims = claim(conn, 4)
    assert receivers_of(conn, claims) == ["https://shop.example", "queue:a", "queue:b", "queue:c"]


def test_a_backlog_that_is_older_does_not_always_go_first(conn):
    """With room for one, again and again, the younger of two receivers gets its turn."""
    for _ in range(60):
        put_out(conn)
        put_out(conn, TASK)
    conn.execute(
        text("UPDATE notices SET due_at = now() - interval '1 h' WHERE receiver <> 'queue:shop'")
    )
    turns = []
    for _ in range(40):
        [claimed] = claim(conn, 1)
        notice = load(conn, claimed)
        turns.append(notice.receiver)
        assert delivery.delivered(conn, notice)
    assert turns.count("queue:shop") >= 5, "one in two, by lot"


def test_a_failing_receiver_is_left_alone_then_tried_with_one(conn):
    for _ in range(6):
        put_out(conn)
    for failure in range(FORGIVEN):
        for one in claim(conn, 2):
            notice = load(conn, one)
            assert notice.receiver_failures == failure
            delivery.leave_alone(conn, notice.receiver, 30 * (failure == FORGIVEN - 1), "HTTP 503")
            delivery.failed(conn, notice, seconds=0, why="HTTP 503")
    assert claim(conn) == []
    put_out(conn, TASK)
    assert receivers_of(conn, claim(conn)) == ["queue:shop"]
    [told] = reading.receivers(conn)
    assert (told.failures, told.waiting, told.error) == (FORGIVEN, 6, "HTTP 503")

    conn.execute(text("UPDATE notice_receivers SET retry_at = now()"))
    [probe] = claim(conn)
    assert claim(conn) == [], "one at a time, until one is taken"
    delivery.delivered(conn, load(conn, probe))
    assert reading.receivers(conn) == []
    assert len(claim(conn)) == PER_RECEIVER


def test_put_off_counts_no_try(conn):
    put_out(conn)
    [one] = claim(conn)
    delivery.put_off(conn, one, 3600, "not now")
    assert claim(conn) == []
    [view] = reading.listing(conn)
    assert (view.status, view.tries, view.error) == (State.PENDING, 0, "not now")


def test_what_waited_too_long_for_a_dead_receiver_is_buried(conn):
    old, young, other = put_out(conn), put_out(conn), put_out(conn, TASK)
    conn.execute(
        text("UPDATE notices SET since = now() - interval '4 days' WHERE generation_id <> :id"),
        {"id": young},
    )
    assert delivery.bury(conn, "https://shop.example", 3 * 86_400.0, "refused") == 1
    [buried] = reading.listing(conn, generation_id=old)
    assert (buried.status, buried.error) == (State.DEAD, "refused")
    assert {n.generation_id for n in reading.listing(conn, states=[State.PENDING])} == {
        young,
        other,
    }
    assert reading.counts(conn) == {State.PENDING: 2, State.DEAD: 1}


def test_resending_begins_anew_under_the_same_id_and_is_told_in_the_history(conn):
    generation_id = put_out(conn)
    [one] = claim(conn)
    slow = load(conn, one)
    delivery.dead(conn, slow, "HTTP 410")
    [there] = (reading.dead_ids(conn, receiver=None, limit=10),)
    assert reading.dead_ids(conn, receiver="queue:x", limit=10) == []
    assert reading.resend(conn, there, by=By("jo", "asked for")) == [one.id]
    assert not delivery.dead(conn, slow, "late"), "a delivery under way can't settle it"
    [again] = claim(conn)
    assert again.id == one.id
    [(_, detail)] = conn.execute(
        text("SELECT event, detail FROM generation_events WHERE event = 'notice_resent'")
    )
    assert detail["by"] == "operator jo"
    assert detail["notice"] == str(one.id)
    [action] = actions.of_generation(conn, generation_id)
    assert (action.action, action.actor, action.reason) == ("notice_resend", "jo", "asked for")
    assert reading.listing(conn, generation_id=generation_id)[0].tries == 0


def test_a_hundred_thousand_that_wait_for_one_receiver_cost_the_others_nothing(conn):
    """Looked at by the rows that the claim reads, not by the clock."""
    template = put_out(conn)
    conn.execute(
        text(
            "INSERT INTO notices (generation_id, target, sequence, type, receiver, data)"
            " SELECT :id, 'webhook', n, 'x', 'https://dead.example', '{}'"
            " FROM generate_series(2, 20000) n"
        ),
        {"id": template},
    )
    conn.execute(
        text(
            "INSERT INTO notice_receivers (receiver, failures, retry_at)"
            " VALUES ('https://dead.example', 9, now() + interval '5 min')"
        )
    )
    put_out(conn, TASK)
    conn.execute(text("ANALYZE notices"))
    query = text(f"EXPLAIN (ANALYZE, FORMAT JSON, TIMING OFF) {delivery._CLAIM.text}")
    values = {"limit": 8, "seconds": LEASE, "most": 4, "forgiven": FORGIVEN}
    [plan] = conn.execute(query, values).scalar_one()
    assert _most_rows(plan["Plan"]) < 100, plan


def _most_rows(plan: dict[str, Any]) -> float:
    read = plan["Actual Rows"] + plan.get("Rows Removed by Filter", 0)
    mine = read * plan["Actual Loops"] if plan["Node Type"].endswith("Scan") else 0
    return max([mine, *(_most_rows(inner) for inner in plan.get("Plans", []))])
