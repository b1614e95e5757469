"""Retention: what has ended goes after its period, in small batches; what lives stays."""

import uuid
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import text

from models import watch
from models.lifecycle import LIVE, TERMINAL, Observation, Status
from tests.integration import rows
from worker import producer
from worker.upkeep import prune

DAY = 86_400.0
OLD, YOUNG = 200, 100
"""Days ago: beyond what is kept by default, and within."""


def ended(conn, status: Status, days: int, **values) -> uuid.UUID:
    at = datetime.now(UTC) - timedelta(days=days)
    values = {"finished_at": at, "attempts": 1, "attempt": 1} | values
    generation_id = rows.make(conn, status, created_at=at, **values)
    conn.execute(
        text(
            "INSERT INTO generation_events (generation_id, event, to_status, at) VALUES"
            " (:id, 'accept', 'accepted', :at), (:id, 'x', :status, :at)"
        ),
        {"id": generation_id, "status": str(status), "at": at},
    )
    return generation_id


def count(rt, table: str, where: str = "true", **values) -> int:
    with rt.engine.connect() as conn:
        return conn.execute(
            text(f"SELECT count(*) FROM {table} WHERE {where}"), values
        ).scalar_one()


def ids(rt) -> set[uuid.UUID]:
    with rt.engine.connect() as conn:
        return set(conn.execute(text("SELECT id FROM generations")).scalars())


def test_generations_that_ended_long_ago_go_with_all_that_is_theirs(rt):
    with rt.engine.begin() as conn:
        old = [ended(conn, status, OLD) for status in TERMINAL]
        young = [ended(conn, status, YOUNG) for status in TERMINAL]
    assert prune.run(rt) > 0
    assert ids(rt) == set(young)
    for table in ("generation_events", "submit_attempts"):
        assert count(rt, table, "generation_id = ANY(:ids)", ids=old) == 0
    assert count(rt, "submit_attempts") == len(young)
    assert prune.run(rt) == 0


def test_what_lives_stays_however_old_it_is(rt):
    long_ago = datetime.now(UTC) - timedelta(days=3_000)
    with rt.engine.begin() as conn:
        live = {rows.make(conn, status, created_at=long_ago) for status in LIVE}
        live.add(rows.make(conn, Status.ACCEPTED, created_at=long_ago))
        # Accepted long ago, and ended only lately.
        live.add(rows.make(conn, Status.COMPLETED, created_at=long_ago))
        attempts = conn.execute(text("SELECT count(*) FROM submit_attempts")).scalar_one()
    prune.run(rt)
    assert ids(rt) == live
    assert count(rt, "submit_attempts") == attempts


def test_histories_go_sooner_and_leave_the_end(rt):
    with rt.engine.begin() as conn:
        generation_id = ended(conn, Status.COMPLETED, YOUNG)
        lately = ended(conn, Status.COMPLETED, 10)
    prune.run(rt)
    with rt.engine.connect() as conn:
        assert [event for event, *_ in rows.events(conn, generation_id)] == ["x"]
        assert len(rows.events(conn, lately)) == 2
        assert len(rows.attempts(conn, generation_id)) == 1
    assert prune.run(rt) == 0, "the end is not taken again and again"


def test_zero_keeps_for_ever(make_runtime):
    rt = make_runtime(retain_generations=0, retain_events=0)
    with rt.engine.begin() as conn:
        ended(conn, Status.FAILED, 5_000)
    assert prune.run(rt) == 0
    assert (len(ids(rt)), count(rt, "generation_events")) == (1, 2)


def test_more_than_a_batch_goes_in_several(rt, monkeypatch):
    monkeypatch.setattr(prune, "BATCH", 3)
    with rt.engine.begin() as conn:
        for _ in range(10):
            ended(conn, Status.COMPLETED, OLD)
    prune.run(rt)
    assert ids(rt) == set()


def test_a_run_is_bounded(rt, monkeypatch):
    monkeypatch.setattr(prune, "RUN_SECONDS", 0)
    with rt.engine.begin() as conn:
        ended(conn, Status.COMPLETED, OLD)
    assert prune.run(rt) == 0
    assert len(ids(rt)) == 1


def test_a_row_that_somebody_holds_is_left_for_the_next_run(rt):
    with rt.engine.begin() as conn:
        held, free = (ended(conn, Status.COMPLETED, OLD) for _ in range(2))
    with rt.engine.begin() as conn:
        conn.execute(text("SELECT 1 FROM generations WHERE id = :id FOR UPDATE"), {"id": held})
        prune.run(rt)
        assert ids(rt) == {held}
    prune.run(rt)
    assert ids(rt) == set()
    assert free not in ids(rt)


def test_uploads_that_ceased_to_be_valid_go_and_a_claim_at_work_stays(rt):
    def upload(conn, name: str, **values):
        row = {"file_path": None, "claimed_by": None, "claimed_until": None, "valid_until": None}
        row |= {"sha256": name * 64, **values}
        conn.execute(
            text(
                "INSERT INTO uploads (sha256, content_type, size, file_path, claimed_by,"
                " claimed_until, valid_until) VALUES (:sha256, 'image/png', 1, :file_path,"
                " :claimed_by, :claimed_until, :valid_until)"
            ),
            row,
        )

    now = datetime.now(UTC)
    with rt.engine.begin() as conn:
        gone = ended(conn, Status.COMPLETED, OLD)
        upload(conn, "a", file_path="/f", valid_until=now - timedelta(days=3))
        upload(conn, "b", file_path="/f", valid_until=now + timedelta(hours=1), claimed_by=gone)
        upload(conn, "c", claimed_until=now + timedelta(minutes=1))
        upload(conn, "d", claimed_until=now - timedelta(days=3))
    prune.run(rt)
    with rt.engine.connect() as conn:
        left = conn.execute(text("SELECT sha256, claimed_by FROM uploads ORDER BY 1")).all()
    assert [(row.sha256[0], row.claimed_by) for row in left] == [("b", None), ("c", None)]


def test_stray_tasks_go_when_the_list_no_longer_shows_them_and_their_generation_is_gone(rt):
    with rt.engine.begin() as conn:
        kept, young = ended(conn, Status.COMPLETED, YOUNG), datetime.now(UTC)
        for task_id, kind, of, seen in (
            ("foreign-old", "foreign", None, OLD),
            ("foreign-young", "foreign", None, YOUNG),
            ("second-kept", "second", kept, OLD),
            ("second-gone", "second", uuid.uuid4(), OLD),
        ):
            conn.execute(
                text(
                    "INSERT INTO stray_tasks (task_id, kind, generation_id, status, last_seen_at)"
                    " VALUES (:task, :kind, :of, 'completed', :seen)"
                ),
                {"task": task_id, "kind": kind, "of": of, "seen": young - timedelta(days=seen)},
            )
    prune.run(rt)
    with rt.engine.connect() as conn:
        left = set(conn.execute(text("SELECT task_id FROM stray_tasks")).scalars())
    assert left == {"foreign-young", "second-kept"}


def test_balances_and_rejected_messages_go_after_their_periods(rt):
    with rt.engine.begin() as conn:
        for days in (120, 100, 10):
            at = datetime.now(UTC) - timedelta(days=days)
            conn.execute(
                text(
                    "INSERT INTO balance_snapshots (at, total_credits, used_credits,"
                    " remain_credits) VALUES (:at, 1, 1, 1)"
                ),
                {"at": at},
            )
            conn.execute(
                text("INSERT INTO rejected_messages (at, reason, body) VALUES (:at, 'x', '')"),
                {"at": at},
            )
    prune.run(rt)
    assert count(rt, "balance_snapshots", "at < now() - interval '110 days'") == 1, "the first"
    assert (count(rt, "balance_snapshots"), count(rt, "rejected_messages")) == (2, 1)


def test_the_ledger_stays(rt, monkeypatch):
    monkeypatch.setenv("SEEDANCE_DATABASE_URL", rt.engine.url.render_as_string(hide_password=False))
    with rt.engine.begin() as conn:
        generation_id = producer.enqueue({"content": [{"type": "text", "text": "x"}]}, session=conn)
        producer.cancel(generation_id, session=conn)
        conn.execute(
            text("UPDATE generations SET created_at = :at, finished_at = :at"),
            {"at": datetime.now(UTC) - timedelta(days=OLD)},
        )
    before = count(rt, "ledger_entries")
    assert before > 0
    prune.run(rt)
    assert (ids(rt), count(rt, "ledger_entries")) == (set(), before)


@pytest.mark.parametrize(("days", "foreign"), [(OLD, False), (10, True)])
def test_the_list_shows_tasks_of_what_was_pruned_and_they_are_not_taken_for_foreign(
    rt, days, foreign
):
    now = datetime.now(UTC)
    task = Observation("t", "completed", seed=5, created_at=now - timedelta(days=days))
    with rt.engine.begin() as conn:
        found = watch.hold_against(conn, [task], forgotten=now - timedelta(days=180))
    assert (found.foreign == ["t"]) is foreign
    assert (count(rt, "stray_tasks") == 1) is foreign


def test_a_generation_stays_while_its_video_can_still_be_stored(make_runtime):
    rt = make_runtime(retain_generations=DAY)
    with rt.engine.begin() as conn:
        waits, over = (ended(conn, Status.COMPLETED, 3) for _ in range(2))
        for generation_id, days in ((waits, 4), (over, -1)):
            conn.execute(
                text(
                    "INSERT INTO artifacts (generation_id, kind, due_at, available_until)"
                    " VALUES (:id, 'video', now(), now() + make_interval(days => :days))"
                ),
                {"id": generation_id, "days": days},
            )
    prune.run(rt)
    with rt.engine.connect() as conn:
        assert conn.execute(text("SELECT id FROM generations")).scalars().all() == [waits]
        kept = conn.execute(text("SELECT generation_id FROM artifacts")).scalars().all()
    assert kept == [waits]


def test_what_was_stored_stays_told_and_what_was_not_goes_with_its_generation(rt):
    with rt.engine.begin() as conn:
        kept = ended(conn, Status.COMPLETED, YOUNG)
        gone = {how: ended(conn, Status.COMPLETED, OLD) for how in ("stored", "lost", "waiting")}
        for generation_id in (kept, *gone.values()):
            conn.execute(
                text(
                    "INSERT INTO artifacts (generation_id, kind, due_at, available_until)"
                    " VALUES (:id, 'video', now(), now())"
                ),
                {"id": generation_id},
            )
        conn.execute(
            text(
                "UPDATE artifacts SET due_at = NULL, stored_at = now(), uri = 'file:///x',"
                " bytes = 1, sha256 = repeat('0', 64), content_type = 'video/mp4' WHERE"
                " generation_id = :id"
            ),
            {"id": gone["stored"]},
        )
        conn.execute(
            text(
                "UPDATE artifacts SET due_at = NULL, lost_at = now(), error = 'x' WHERE"
                " generation_id = :id"
            ),
            {"id": gone["lost"]},
        )
    prune.run(rt)
    with rt.engine.connect() as conn:
        left = set(conn.execute(text("SELECT generation_id FROM artifacts")).scalars())
    assert left == {kept, gone["stored"]}
