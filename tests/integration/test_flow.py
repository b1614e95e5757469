"""What watch reads: flow and errors of late, and who waits for what."""

import pytest
from sqlalchemy import func, text

from models import flow, reads, transitions, waiting
from models.lifecycle import Status
from models.operating import pauses
from models.operating.actions import By
from models.wait_reasons import WaitReason
from tests.integration import rows
from tests.integration.rows import make, seen
from worker.cli.watching import Watcher

S = Status


def told(conn, event: str, to: Status, *, ago: float = 0.0, error: str | None = None) -> None:
    generation_id = make(conn, S.FAILED if error else S.ACCEPTED, error_code=error)
    conn.execute(
        text(
            "INSERT INTO generation_events (generation_id, at, event, to_status)"
            " VALUES (:id, now() - make_interval(secs => :ago), :event, :to)"
        ),
        {"id": generation_id, "ago": ago, "event": event, "to": str(to)},
    )


def test_what_happened_is_counted_by_the_minute(conn):
    for ago in (0, 30, 90, 3000):
        told(conn, "accept", S.ACCEPTED, ago=ago)
    told(conn, "submit", S.RUNNING, ago=10)
    told(conn, "adopt", S.RUNNING, ago=100)
    told(conn, "progress", S.RUNNING)
    told(conn, "complete", S.COMPLETED, ago=1)
    told(conn, "accept", S.ACCEPTED, ago=4000)
    lately = flow.read(conn)
    assert lately.counts == {"accepted": 4, "submitted": 2, "completed": 1}
    assert lately.minute == {"accepted": 2, "submitted": 1, "completed": 1}
    assert lately.span == pytest.approx(3000, abs=60)
    assert lately.per_minute("accepted") == pytest.approx(4 / 50, rel=0.05)
    assert lately.per_minute("failed") == 0


def test_errors_are_counted_the_most_frequent_first(conn):
    told(conn, "fail", S.FAILED, error="RARE")
    for _ in range(3):
        told(conn, "refuse", S.FAILED, error="FREQUENT")
    told(conn, "lapse", S.EXPIRED, error="DEADLINE_PASSED", ago=4000)
    assert list(flow.read(conn).errors.items()) == [("FREQUENT", 3), ("RARE", 1)]


def test_with_more_than_is_read_the_span_is_shorter(conn, monkeypatch):
    conn.execute(
        text(
            "INSERT INTO generation_events (generation_id, at, event, to_status)"
            " SELECT :id, now() - make_interval(secs => (:lines + 5000 - n) / 100.0), 'accept',"
            " 'accepted' FROM generate_series(1, :lines + 5000) n"
        ),
        {"id": make(conn, S.ACCEPTED), "lines": flow.LINES},
    )
    lately = flow.read(conn)
    assert lately.counts["accepted"] == flow.LINES
    assert lately.span == pytest.approx(flow.LINES / 100, abs=5)
    assert lately.per_minute("accepted") == pytest.approx(6000, rel=0.01)


def test_nothing_has_happened(conn):
    lately = flow.read(conn)
    assert (lately.span, lately.counts, lately.errors) == (0.0, {}, {})
    assert lately.per_minute("accepted") == 0


def test_who_waits_and_for_what(conn):
    hours_ago = [func.now() - text(f"interval '{n} h'") for n in range(4)]
    oldest = make(conn, S.ACCEPTED, tenant="acme", created_at=hours_ago[3])
    second = make(conn, S.ACCEPTED, created_at=hours_ago[2])
    make(conn, S.ACCEPTED, created_at=hours_ago[1])
    make(conn, S.RUNNING, created_at=hours_ago[3])
    pauses.pause(conn, "acme", By("ana", "quiet"))
    now = waiting.now(conn, limit=2)
    assert now.counts == {WaitReason.PAUSE: 1, WaitReason.CONCURRENCY: 2}
    assert [(view.id, view.waits_for) for view in now.oldest] == [
        (oldest, "the end of the pause of tenant 'acme': quiet (ana)"),
        (second, "a free slot"),
    ]


def test_what_ended_is_counted_apart(conn):
    make(conn, S.RUNNING)
    transitions.apply_observation(
        conn, seen(rows.read(conn, make(conn, S.RUNNING)).remote_task_id, "completed")
    )
    assert reads.summary(conn).by_status == {S.RUNNING: 1}
    assert reads.summary(conn, ended=reads.ended(conn)).by_status == {S.RUNNING: 1, S.COMPLETED: 1}


def test_a_snapshot_of_an_empty_service(engine):
    shown = Watcher(engine).read(5)
    assert shown.newest == []
    assert shown.waiting.counts == {}
    assert shown.credits.funds.free is None
