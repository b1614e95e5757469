"""Hard cases of the task list: whose task it is, what it cost, and what is not sent again."""

import uuid
from datetime import UTC, datetime, timedelta
from decimal import Decimal

from models import reads, resolution, transitions, watch
from models.ledger import reading
from models.lifecycle import Observation, Status
from models.submission import Intent
from tests.integration.conftest import Steps
from tests.integration.hard_cases import (
    ECHO,
    answered,
    endless,
    equal_task,
    found_absent,
    intended,
    running,
    settle,
    sql,
)
from worker.reading import DatabaseClock
from worker.stages import resolve
from worker.upkeep import reconcile


def test_a_task_whose_answer_comes_while_the_list_is_judged_is_no_second_task(
    rt, steps, monkeypatch
):
    generation_id, intent = intended(rt, steps)
    real = transitions.told_by

    def told_by(conn, seen):
        found = real(conn, seen)
        monkeypatch.setattr(transitions, "told_by", real)
        answered(rt, intent)  # committed after the reading, before the judgement
        return found

    monkeypatch.setattr(transitions, "told_by", told_by)
    with rt.engine.begin() as conn:
        seen = watch.hold_against(conn, [Observation("T1", "processing", seed=intent.seed)])
    assert steps.get(generation_id).remote_task_id == "T1"
    assert seen.second == []
    assert "second_task" not in steps.history(generation_id)
    with rt.engine.connect() as conn:
        assert reads.strays(conn) == []


def test_a_task_listed_before_its_answer_does_not_hold_up_an_equal_generation(rt, steps):
    first, intent = intended(rt, steps, seed=7)
    with rt.engine.begin() as conn:
        watch.hold_against(conn, [equal_task("T1", seed=7)])
    answered(rt, intent)
    assert steps.get(first).remote_task_id == "T1"
    equal, _ = intended(rt, steps, seed=7)
    found_absent(rt, equal)
    _, again = intended(rt, steps, equal)
    assert isinstance(again, Intent)


def test_a_foreign_seed_beyond_eight_bytes_is_counted_as_foreign(rt, steps, sim):
    running(steps)
    sim.inject(seed=2**63, status="completed")
    assert len(reconcile.run(rt).foreign) == 1


def test_a_foreign_duration_beyond_four_bytes_is_counted_as_foreign(rt):
    with rt.engine.begin() as conn:
        seen = watch.hold_against(conn, [Observation("F", "completed", seed=5, duration=2**40)])
    assert seen.foreign == ["F"]


def test_more_tasks_than_a_statement_has_parameters_are_looked_up(rt):
    ids = [f"t{number}" for number in range(70_000)]
    with rt.engine.connect() as conn:
        assert watch.followed(conn, ids) == set()
        assert watch.running_unseen(conn, set(ids), before=datetime.now(UTC)) == []


def test_a_producers_seed_that_the_provider_shortened_could_still_be_ours():
    now = datetime.now(UTC)
    given = 2**40 + 5
    attempt = resolution.Attempt(1, given, False, now, now + timedelta(seconds=90))
    case = resolution.Case(uuid.uuid4(), ECHO, (attempt,))
    shown = Observation(
        "T", "processing", seed=given % 2**32, created_at=now + timedelta(seconds=1), **ECHO
    )
    skew = resolution.Skew(timedelta(0), timedelta(0))
    assert not isinstance(resolution.judge(case, [shown], skew), resolution.Absent)


def test_a_late_task_without_a_seed_is_possibly_ours(rt, steps, sim):
    sim.configure(seed_echo="null")
    generation_id, _ = intended(rt, steps)
    found_absent(rt, generation_id)
    sim.inject(seconds=100000)
    report = reconcile.run(rt)
    assert report.foreign == ()
    assert report.possible


def test_a_second_task_stays_one_when_the_list_shows_it_again(rt, steps):
    generation_id, intent = intended(rt, steps, seed=7)
    answered(rt, intent)
    task = equal_task("T2", seed=7)
    with rt.engine.begin() as conn:
        watch.flag_second(conn, generation_id, 1, task)
        watch.hold_against(conn, [task])
        [stray] = reads.strays(conn)
    assert stray.kind == "second"


def test_a_second_task_stays_one_when_the_list_shows_no_seed(rt, steps):
    generation_id, intent = intended(rt, steps)
    answered(rt, intent)
    with rt.engine.begin() as conn:
        watch.flag_second(conn, generation_id, 1, Observation("T2", "processing", seed=intent.seed))
        watch.hold_against(conn, [Observation("T2", "processing", seed=None)])
        [stray] = reads.strays(conn)
    assert stray.kind == "second"


def test_the_credits_of_second_tasks_are_in_the_ledger(rt, steps):
    _, intent = intended(rt, steps)
    answered(rt, intent)
    cost = Decimal(9)
    with rt.engine.begin() as conn:
        transitions.apply_observation(conn, Observation("T1", "completed", credit_cost=cost))
        watch.hold_against(
            conn, [Observation("T2", "completed", seed=intent.seed, credit_cost=cost)]
        )
        [line] = reading.cost(conn, ["tenant"])
    assert line.charged == 18


def test_a_task_that_the_list_shows_without_its_video_still_gets_it(rt, steps):
    generation_id, intent = intended(rt, steps)
    answered(rt, intent)
    with rt.engine.begin() as conn:
        watch.hold_against(conn, [Observation("T1", "completed", credit_cost=Decimal(9))])
    with rt.engine.begin() as conn:
        transitions.apply_observation(
            conn, Observation("T1", "completed", video_url="https://v/1.mp4?s")
        )
    assert steps.get(generation_id).video_url


def test_a_drawn_seed_that_the_producer_uses_again_is_not_blamed_on_the_first(rt, steps):
    first, one = intended(rt, steps)
    answered(rt, one, "TD")
    with rt.engine.begin() as conn:
        transitions.apply_observation(
            conn, Observation("TD", "completed", seed=one.seed, credit_cost=Decimal(9))
        )
    again, _ = intended(rt, steps, seed=one.seed)
    with rt.engine.begin() as conn:
        transitions.doubt(conn, again, 1, why="lost")
        watch.hold_against(conn, [equal_task("TP", seed=one.seed)])
        strays = reads.strays(conn)
    assert strays[0].generation_id != first


def test_an_odd_task_of_one_generation_does_not_keep_the_others_undecided(rt, steps, sim):
    sim.fault("submit", "lost", times=2)
    odd, good = (steps.enqueue(endless(name)) for name in ("b0", "b1"))
    for generation_id in (odd, good):
        steps.until(generation_id, lambda view: view.status is Status.UNCERTAIN)
    [task] = [task for task in sim.tasks() if "b0" in str(task["body"])]
    sim.change(task["task_id"], credit_cost="1e12")
    for generation_id in (odd, good):
        settle(rt, generation_id)
    leases = {claim.id: claim.lease for claim in steps.due()}
    resolve.run(rt, [(odd, leases[odd]), (good, leases[good])])
    assert steps.get(good).status is Status.RUNNING


def test_the_list_of_another_account_decides_nothing(make_runtime, sim):
    sim.configure(api_keys=["sim-key", "other-key"])
    rt = make_runtime()
    steps = Steps(rt)
    running(steps)
    sim.fault("submit", "lost", times=1)
    generation_id = steps.enqueue(endless("y"))
    steps.until(generation_id, lambda view: view.status is Status.UNCERTAIN)
    other = Steps(make_runtime(api_key="other-key"))
    settle(rt, generation_id)
    # Past the list's lag: the right account's list would show it.
    sql(rt, "update submit_attempts set decided_at = decided_at - interval '1 minute'")
    other.once()
    assert steps.get(generation_id).status is Status.UNCERTAIN


def test_a_pause_while_the_clock_is_sampled_makes_the_window_wider():
    start = datetime(2026, 1, 1, tzinfo=UTC)
    paused = DatabaseClock(at=start, asked=1000.0, answered=1005.0)
    skew = resolution.Skew.of_answer(
        date=start + timedelta(seconds=10),
        sent=paused.earliest(1009.9),
        received=paused.latest(1010.0),
    )
    attempt = resolution.Attempt(
        1, 5, True, start - timedelta(seconds=95), start - timedelta(seconds=5)
    )
    ours = Observation("T", "processing", created_at=start - timedelta(seconds=94.8))
    case = resolution.Case(uuid.uuid4(), {}, (attempt,))
    assert not isinstance(resolution.judge(case, [ours], skew), resolution.Absent)
