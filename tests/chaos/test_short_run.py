"""A short chaos run, and what its checks would have found.

`make chaos` is the long form. `CHAOS_SEED` chooses another seed here.
"""

import os
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import pytest

from tests.chaos import invariants, liveness
from tests.chaos.plan import draw
from tests.chaos.records import Records, number_of
from tests.chaos.run import Outcome, run
from tests.chaos.strikes import Journal

pytestmark = pytest.mark.timeout(400)  # whichever comes first waits for the run

SEED = int(os.environ.get("CHAOS_SEED", "1"))


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    plan = draw(SEED, 32, seconds=15.0)
    print(plan.summary())  # noqa: T201
    # Less than the test's own time, so that a run that breaks tells its story.
    return run(plan, tmp_path_factory.mktemp("chaos"), patience=240.0)


def test_every_promise_holds(outcome: Outcome):
    print(outcome.report.screen())  # noqa: T201
    assert not outcome.wrong, outcome.story()


def test_it_was_a_run_worth_the_name(outcome: Outcome):
    report = outcome.report
    assert sum(report.faults.values()) >= 10, report.screen()
    assert sum(report.strikes.values()) >= 5, report.screen()
    assert report.ends["completed"] >= 10
    assert report.tasks >= 15
    assert (report.called_back >= 5) == outcome.plan.callbacks, report.screen()


def _rows(records: Records, **changes: object) -> Records:
    """The first row that completed, changed."""
    rows = list(records.rows)
    at = next(i for i, row in enumerate(rows) if row.status == "completed")
    rows[at] = replace(rows[at], **changes)
    return replace(records, rows=rows)


def _tasks(records: Records, **changes: object) -> Records:
    """One more remote task, like the first but for the changes."""
    extra = {**records.tasks[0], "task_id": "another", **changes}
    return replace(records, tasks=[*records.tasks, extra])


def _ledger(records: Records, kind: str) -> Records:
    """Without the first entry of a kind."""
    gone = next(e for e in records.ledger if e["kind"] == kind and e["amount"])
    return replace(records, ledger=[e for e in records.ledger if e is not gone])


def _archive(records: Records, name: str) -> Records:
    """One more file in the archive."""
    return replace(records, archive={**(records.archive or {}), name: "0" * 64})


def _other_video(records: Records) -> Records:
    """Not the bytes that the provider has."""
    tasks = [{**task, "video_sha256": "0" * 64} for task in records.tasks]
    return replace(records, tasks=tasks)


def _uploads(records: Records) -> Records:
    row = next(row for row in records.rows if row.status == "completed")
    told = {"event": "uploaded", "detail": {"file_path": "api/uploads/1/x_b0-r1.jpg"}}
    again = {**told, "detail": {"file_path": "api/uploads/1/y_b0-r2.jpg"}}
    changed = replace(row, events=(*row.events, told, again))
    upload = {"puts": 1, "sha256": "same"}
    return replace(
        records,
        rows=[changed if one is row else one for one in records.rows],
        uploads=[
            *records.uploads,
            {**upload, "file_path": told["detail"]["file_path"]},
            {**upload, "file_path": again["detail"]["file_path"]},
        ],
    )


def _unrecorded(records: Records) -> Records:
    upload = {"puts": 1, "sha256": "other", "file_path": "api/uploads/1/z_b1-r3.jpg"}
    return replace(records, uploads=[*records.uploads, upload])


def _foreign_notice(records: Records) -> Records:
    payload = {"data": {"id": "nobody", "sequence": 1, "status": "completed"}}
    return replace(
        records, heard=[*records.heard, replace(records.heard[0], id="x", payload=payload)]
    )


def _never_submitted(records: Records) -> Records:
    """Without the submits of the first generation that was judged under partial faults."""
    number = liveness.measure(records).judged[0].number
    submits = [one for one in records.submits if number_of(one["body"]) != number]
    return replace(records, submits=submits)


def _struck(records: Records, kind: str) -> Records:
    journal = Journal(list(records.journal.notes))
    journal.tell(kind)
    return replace(records, journal=journal)


def _logged(line: str) -> Callable[[Records], Records]:
    return lambda records: replace(records, logs={**records.logs, "worker-0.log": line})


CORRUPTIONS: dict[str, tuple[str, Callable[[Records], Records]]] = {
    "a lost request": ("every_request_is_kept", lambda r: replace(r, rows=r.rows[1:])),
    "a row that waits": ("every_row_has_ended", lambda r: _rows(r, status="uncertain")),
    "a second task": ("one_task_per_request", _tasks),
    "a task of nobody": ("no_orphans", _tasks),
    "a task that goes on": ("no_orphans", lambda r: _tasks(r, status="processing")),
    "another end": ("ends_agree", lambda r: _rows(r, status="failed")),
    "a cent": ("credits_are_equal", lambda r: _rows(r, credit_cost=Decimal("0.01"))),
    "a charge": ("credits_are_equal", lambda r: replace(r, used_credits=r.used_credits + 1)),
    "a charge not booked": ("the_ledger_balances", lambda r: _ledger(r, "charged")),
    "a reserve for ever": ("the_ledger_balances", lambda r: _ledger(r, "released")),
    "a video of nobody": ("results_are_archived_once", lambda r: _archive(r, "ab/abc.mp4")),
    "half a video": (
        "results_are_archived_once",
        lambda r: _archive(r, ".incoming/x.video.1.part"),
    ),
    "a video that is gone": ("results_are_archived_once", lambda r: replace(r, archive={})),
    "a video never stored": ("results_are_archived_once", lambda r: _rows(r, artifacts=())),
    "another video": ("results_are_archived_once", _other_video),
    "a step too many": (
        "histories_are_allowed",
        lambda r: _rows(r, events=(*r.rows[0].events, *r.rows[0].events)),
    ),
    "a history cut short": ("histories_are_allowed", lambda r: _rows(r, events=())),
    "bytes recorded twice": ("uploaded_once", _uploads),
    "bytes sent for nothing": ("uploaded_once", _unrecorded),
    "a notice that was lost": ("producers_are_told", lambda r: replace(r, heard=r.heard[:-1])),
    "notices out of order": ("producers_are_told", lambda r: replace(r, heard=r.heard[::-1])),
    "a notice for nobody": ("producers_are_told", _foreign_notice),
    "a forged notice": (
        "producers_are_told",
        lambda r: replace(r, heard=[replace(r.heard[0], verified=False), *r.heard[1:]]),
    ),
    "a notice that is left": (
        "producers_are_told",
        lambda r: replace(r, notices=[{**r.notices[0], "status": "pending"}]),
    ),
    "the key in a log": ("nothing_leaks", lambda r: _logged(f"key {r.api_key}")(r)),
    "a presigned query": ("nothing_leaks", _logged("PUT http://s/x?X-Amz-Signature=0af3")),
    "a callback's secret": (
        "nothing_leaks",
        _logged(f"POST /callbacks/{'0a' * 16}/1/{'s' * 43}"),
    ),
    "a forged callback": ("no_forgery_is_taken", lambda r: _struck(r, "FORGERY TAKEN")),
    "a video's token": ("nothing_leaks", _logged("GET http://cdn/x.mp4?token=0af3")),
    "healthy work that is never submitted": (
        "partial_faults_delay_no_healthy_work",
        _never_submitted,
    ),
    "a leak to storage": ("nothing_leaks", lambda r: replace(r, key_leaks=1)),
}


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_the_checks_find(name: str, outcome: Outcome):
    check, corrupt = CORRUPTIONS[name]
    assert check not in outcome.wrong
    assert check in invariants.broken(corrupt(outcome.records))


def test_what_broke_is_told_with_both_sides(outcome: Outcome, tmp_path: Path):
    submitted = next(row for row in outcome.records.rows if row.remote_task_id)
    broken = {"a check": [invariants.Broken("something", submitted.number)]}
    story = replace(outcome, wrong=broken).story()
    assert f"SEED={SEED}" in story
    assert f"task {submitted.remote_task_id} made" in story
    assert " row " in story
    assert " attempt " in story
