"""Resolve: what the task list shows decides between adopting, sending again, and asking."""

import threading
import time
from dataclasses import replace

import pytest

from api_client import ApiError
from models import transitions, watch
from models.lifecycle import Status
from tests.integration.conftest import text_request
from tests.integration.invariants import in_background, laboratory
from worker import reading
from worker.stages import resolve, submit
from worker.stages.resolve import Outcome


@pytest.fixture
def lab(make_runtime, sim, caplog):
    with laboratory(make_runtime, sim, caplog) as lab:
        yield lab


def ask_to_cancel(lab, generation_id):
    with lab.rt.engine.begin() as conn:
        transitions.cancel(conn, generation_id)


def lists(lab):
    return lab.sim.received("list")


# --- the drawn seed -----------------------------------------------------------------------------


def test_a_lost_answer_is_adopted(lab, caplog):
    generation_id = lab.in_doubt()
    assert lab.resolve(generation_id) is Outcome.ADOPTED
    view = lab.get(generation_id)
    assert view.status is Status.RUNNING
    assert view.remote_task_id == lab.submitted_tasks()[0]["task_id"]
    assert lab.outcomes(generation_id) == ["adopted"]
    [told] = [record for record in caplog.records if "adopts" in record.getMessage()]
    assert vars(told)["remote_task"] == view.remote_task_id, "for a restore's join with the logs"
    lab.complete(generation_id)


def test_a_task_that_ended_meanwhile_is_adopted_with_its_end(lab):
    generation_id = lab.in_doubt()
    lab.end_tasks()
    lab.resolve(generation_id)
    assert lab.get(generation_id).status is Status.COMPLETED
    assert lab.get(generation_id).video_url


def test_a_request_that_never_came_through_is_sent_again(lab):
    generation_id = lab.in_doubt(kind="drop_before")
    before = lists(lab)
    assert lab.resolve(generation_id) is Outcome.ABSENT
    assert lists(lab) - before == 2, "absence takes two readings"
    assert lab.get(generation_id).status is Status.ACCEPTED
    lab.send_again(generation_id)
    assert lab.posts == 2
    lab.complete(generation_id)


def test_in_real_time_absence_is_not_decided_before_it_settles(lab):
    lab.rt = lab.make_runtime(send_budget=3, late_creation=0.2, list_lag=0.1, settle_margin=0.1)
    started = time.monotonic()
    generation_id = lab.in_doubt(kind="drop_before")

    lab.until(generation_id, lambda view: view.status is Status.ACCEPTED)

    assert time.monotonic() - started >= 3.4
    assert lists(lab) == 3, "one early scan, and two readings of the settled attempt"
    lab.send_again(generation_id)
    lab.complete(generation_id)


def test_in_real_time_a_lost_answer_is_adopted_long_before_it_settles(lab):
    lab.rt = lab.make_runtime(send_budget=60)
    generation_id = lab.in_doubt()

    view = lab.until(generation_id, lambda view: view.status is Status.RUNNING)

    assert lists(lab) == 1
    assert (lab.posts, view.attempt) == (1, 1)
    lab.complete(generation_id)


# --- early scans --------------------------------------------------------------------------------


def scan(lab, *ids, rt=None, uncertain_for=0.0):
    """Run the resolve stage on generations that became uncertain that many seconds ago."""
    for generation_id in ids:
        lab.sql(
            "UPDATE submit_attempts SET answered_at = now() - make_interval(secs => :s)"
            " WHERE generation_id = :id",
            s=uncertain_for,
            id=generation_id,
        )
        lab.due_now(generation_id)
    claims = [(claim.id, claim.lease) for claim in lab.due() if claim.id in ids]
    return resolve.run(rt or lab.rt, claims)


def due_in(lab, generation_id):
    seconds = "SELECT extract(epoch FROM due_at - now()) FROM generations WHERE id = :id"
    return float(lab.value(seconds, id=generation_id))


def unsettled(lab, **settings):
    """Make attempts settle long after the test."""
    lab.rt = lab.make_runtime(**{"send_budget": 60, "late_creation": 60, "list_lag": 15} | settings)


def test_the_first_early_scan_adopts_a_task_that_the_list_shows(lab, caplog):
    unsettled(lab)
    generation_id = lab.in_doubt()

    assert scan(lab, generation_id, uncertain_for=2) == {generation_id: Outcome.ADOPTED}

    assert lists(lab) == 1, "presence takes one page"
    view = lab.get(generation_id)
    assert view.status is Status.RUNNING
    assert view.remote_task_id == lab.submitted_tasks()[0]["task_id"]
    assert lab.outcomes(generation_id) == ["adopted"]
    detail = lab.value("SELECT detail FROM generation_events WHERE event = 'adopt'")
    assert detail["by"] == "early scan"
    [line] = [record for record in caplog.records if "found early" in record.getMessage()]
    assert line.remote_task == view.remote_task_id, "for a restore's join with the logs"
    lab.complete(generation_id)


def test_the_second_early_scan_adopts_a_task_that_appeared_later(lab):
    unsettled(lab)
    lab.sim.configure(list_lag=1_000)
    generation_id = lab.in_doubt()
    assert scan(lab, generation_id, uncertain_for=2) == {generation_id: Outcome.EARLY}
    assert due_in(lab, generation_id) == pytest.approx(13, abs=1), "when the list lags no more"
    lab.sim.configure(list_lag=0)

    assert scan(lab, generation_id, uncertain_for=15) == {generation_id: Outcome.ADOPTED}

    assert lab.posts == 1
    lab.complete(generation_id)


def test_early_scans_that_find_nothing_decide_nothing(lab):
    """Absence is what only a settled attempt can show."""
    unsettled(lab)
    generation_id = lab.in_doubt(kind="drop_before")
    settles = due_in(lab, generation_id) + 133

    for uncertain_for, next_in in ((0.5, 1.5), (2, 13), (15, settles)):
        assert scan(lab, generation_id, uncertain_for=uncertain_for) == {
            generation_id: Outcome.EARLY
        }
        assert due_in(lab, generation_id) == pytest.approx(next_in, abs=5 if next_in > 99 else 0.5)
        view = lab.get(generation_id)
        assert (view.status, view.attention) == (Status.UNCERTAIN, None)
        assert lab.outcomes(generation_id) == ["unknown"]
    assert lab.value("SELECT failures FROM generations") == 0
    assert lab.resolve(generation_id) is Outcome.ABSENT
    lab.send_again(generation_id)
    lab.complete(generation_id)


def test_an_early_scan_reads_a_list_of_oldest_first_from_its_end(lab):
    unsettled(lab)
    lab.sim.configure(list_order="created_asc")
    for minutes in range(10):
        lab.sim.inject(count=95, age=7_200 - 60 * minutes, status="completed")
    generation_id = lab.in_doubt()
    assert scan(lab, generation_id, uncertain_for=2) == {generation_id: Outcome.ADOPTED}
    assert lists(lab) == 2, "the first page, and the last"
    lab.complete(generation_id)


def test_an_early_scan_reads_no_further_than_its_oldest_attempt(lab):
    unsettled(lab)
    lab.sim.inject(count=450, age=7_200, status="completed")
    generation_id = lab.in_doubt(kind="drop_before")
    assert scan(lab, generation_id, uncertain_for=2) == {generation_id: Outcome.EARLY}
    assert lists(lab) == 1


def test_an_early_scan_reads_few_pages_of_a_list_that_is_full_of_new_tasks(lab):
    unsettled(lab)
    generation_id = lab.in_doubt(kind="drop_before")
    lab.sim.inject(count=950)
    assert scan(lab, generation_id, uncertain_for=2) == {generation_id: Outcome.EARLY}
    assert lists(lab) == reading.MAX_NEWEST


def test_uncertain_generations_share_one_early_scan(lab):
    unsettled(lab)
    lost = [lab.in_doubt(f"lost {n}") for n in range(3)]
    dropped = [lab.in_doubt(f"dropped {n}", kind="drop_before") for n in range(2)]

    outcomes = scan(lab, *lost, *dropped, uncertain_for=2)

    assert lists(lab) == 1
    assert outcomes == dict.fromkeys(lost, Outcome.ADOPTED) | dict.fromkeys(dropped, Outcome.EARLY)
    assert len({lab.get(i).remote_task_id for i in lost}) == 3
    lab.end_tasks()


def test_settled_and_unsettled_generations_of_one_message_are_each_treated_as_such(lab):
    unsettled(lab)
    early, settled = (lab.in_doubt(f"cat {n}", kind="drop_before") for n in range(2))
    lab.settle(settled)
    outcomes = scan(lab, early, settled, uncertain_for=2)
    assert outcomes == {early: Outcome.EARLY, settled: Outcome.ABSENT}
    assert lab.get(early).status is Status.UNCERTAIN


class OneTry:
    """The client without retries of its own."""

    def __init__(self, client):
        self._client = client

    def __getattr__(self, name):
        return getattr(self._client, name)

    def list_tasks(self, *args, **options):
        return self._client.list_tasks(*args, **options, retry=False)


def test_an_early_scan_of_a_list_that_cannot_be_read_leaves_them_uncertain(lab):
    unsettled(lab)
    ids = [lab.in_doubt(f"cat {n}") for n in range(2)]
    lab.sim.fault("list", "error", code="SERVICE_BUSY", times=1)
    one_try = replace(lab.rt, client=OneTry(lab.rt.client))
    outcomes = scan(lab, *ids, rt=one_try, uncertain_for=2)
    assert outcomes == dict.fromkeys(ids, Outcome.EARLY)
    assert {lab.get(i).status for i in ids} == {Status.UNCERTAIN}
    assert {lab.get(i).attention for i in ids} == {None}
    assert lab.breakers() == set()
    assert lab.flow().resume_in <= 0
    assert due_in(lab, ids[0]) == pytest.approx(13, abs=1)
    assert scan(lab, *ids, uncertain_for=15) == dict.fromkeys(ids, Outcome.ADOPTED)
    lab.end_tasks()


@pytest.mark.parametrize("settled", [False, True], ids=["early", "settled"])
def test_throttling_while_the_list_is_read_slows_the_fleet(lab, settled):
    unsettled(lab)
    generation_id = lab.in_doubt()
    if settled:
        lab.settle(generation_id)
    lab.sim.fault("list", "rate_limited", times=1, retry_after=20)
    one_try = replace(lab.rt, client=OneTry(lab.rt.client))
    scan(lab, generation_id, rt=one_try, uncertain_for=2)
    assert lab.get(generation_id).status is Status.UNCERTAIN
    flow = lab.flow()
    assert 15 < flow.resume_in <= 20
    assert flow.rate is not None
    lab.enqueue()
    assert lab.admit() == []
    lab.calm()
    assert lab.resolve(generation_id) is Outcome.ADOPTED
    lab.complete(generation_id)


def test_a_refused_key_in_an_early_scan_opens_the_breaker(lab):
    unsettled(lab)
    generation_id = lab.in_doubt()
    lab.sim.change_account(lab.sim.api_key, enabled=False)
    assert scan(lab, generation_id, uncertain_for=2) == {generation_id: Outcome.EARLY}
    assert lab.breakers() == {"api_key"}
    lab.sim.change_account(lab.sim.api_key, enabled=True)
    lab.calm()
    assert lab.resolve(generation_id) is Outcome.ADOPTED
    lab.complete(generation_id)


def test_an_early_scan_without_a_turn_under_the_request_rate_leaves_it_uncertain(lab):
    unsettled(lab)
    generation_id = lab.in_doubt()
    slow = lab.make_runtime(rate_limit="1/minute", broker_url="amqp://nowhere", send_budget=60)
    slow.limiter.wait()
    assert scan(lab, generation_id, rt=slow, uncertain_for=2) == {generation_id: Outcome.EARLY}
    assert lists(lab) == 0
    assert lab.resolve(generation_id) is Outcome.ADOPTED
    lab.complete(generation_id)


@pytest.mark.parametrize("echo", ["null", "minus_one"])
def test_an_early_scan_adopts_no_task_without_a_shown_seed(lab, echo):
    unsettled(lab)
    lab.sim.configure(seed_echo=echo)
    generation_id = lab.in_doubt()
    assert scan(lab, generation_id, uncertain_for=2) == {generation_id: Outcome.EARLY}
    view = lab.get(generation_id)
    assert (view.status, view.attention) == (Status.UNCERTAIN, None)
    lab.unfollowed = 1


def test_an_early_scan_adopts_no_fixed_seed_of_a_key_that_others_may_use(lab):
    unsettled(lab)
    generation_id = lab.in_doubt(seed=42)
    assert scan(lab, generation_id, uncertain_for=2) == {generation_id: Outcome.EARLY}
    assert lab.get(generation_id).status is Status.UNCERTAIN
    lab.unfollowed = 1


def test_an_early_scan_adopts_no_fixed_seed_that_a_rival_may_have_sent(lab):
    unsettled(lab, key_exclusive=True)
    first = lab.in_doubt("first", kind="drop_before", seed=42)
    assert lab.resolve(first) is Outcome.ABSENT
    ask_to_cancel(lab, first)  # its request may still be on its way
    second = lab.in_doubt("second", seed=42)
    assert scan(lab, second, uncertain_for=2) == {second: Outcome.EARLY}
    assert lab.get(second).status is Status.UNCERTAIN
    lab.unfollowed = 1


def test_equal_fixed_seeds_whose_answers_are_lost_follow_one_another_by_early_scans(lab):
    """Each waits for the one before it only until that one's task is found."""
    unsettled(lab, key_exclusive=True)
    ids = [lab.enqueue(text_request(f"cat {n}", seed=42)) for n in range(3)]
    for generation_id in ids:
        lab.due_now(generation_id)
        [claim] = lab.admit()
        assert claim.id == generation_id
        lab.sim.fault("submit", "lost", times=1)
        submit.run(lab.rt, [(claim.id, claim.lease)])
        assert scan(lab, generation_id, uncertain_for=2) == {generation_id: Outcome.ADOPTED}
    assert len({lab.get(i).remote_task_id for i in ids}) == 3
    assert lab.posts == 3
    lab.end_tasks()


def test_an_early_scan_flags_a_second_task_of_the_generation(lab):
    lab.rt = lab.make_runtime(http_timeout=0.2)
    lab.sim.fault("submit", "delay_before", seconds=4, times=1)
    generation_id = lab.send()
    assert lab.resolve(generation_id) is Outcome.ABSENT  # K was wrong: it is still on its way
    lab.sim.fault("submit", "lost", times=1)
    assert lab.send_again(generation_id).status is Status.UNCERTAIN
    lab.sim.wait(tasks=2)

    assert scan(lab, generation_id, uncertain_for=2) == {generation_id: Outcome.ADOPTED}

    lab.second = 1
    assert lab.kinds() == ["second"]
    lab.complete(generation_id)


def test_an_answer_that_comes_during_an_early_scan_wins(lab):
    unsettled(lab)
    generation_id = lab.in_doubt()
    [task] = lab.submitted_tasks()

    class AnsweredMeanwhile:
        def list_tasks(self, *args, **options):
            page = lab.rt.client.list_tasks(*args, **options)
            with lab.rt.engine.begin() as conn:
                transitions.submitted(
                    conn, transitions.Answered(generation_id, 1, task["task_id"], "queued", 9, 1.0)
                )
            return page

    scan(lab, generation_id, rt=replace(lab.rt, client=AnsweredMeanwhile()), uncertain_for=2)
    assert lab.history(generation_id).count("adopt") == 0
    assert lab.get(generation_id).status is Status.RUNNING
    lab.complete(generation_id)


def test_what_another_generation_took_since_the_page_was_read_is_not_adopted_early(lab):
    unsettled(lab)
    taker = lab.send("the taker")
    generation_id = lab.in_doubt("the loser")
    own = next(t["task_id"] for t in lab.submitted_tasks() if t["task_id"] != task_of(lab, taker))
    before = task_of(lab, taker)

    class TakenMeanwhile:
        def list_tasks(self, *args, **options):
            return lab.rt.client.list_tasks(*args, **options)

    real = watch.followed
    calls = []

    def followed(conn, ids):
        calls.append(ids)
        if len(calls) == 2:  # the deciding transaction
            lab.sql("UPDATE generations SET remote_task_id = :t WHERE id = :id", t=own, id=taker)
        return real(conn, ids)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(watch, "followed", followed)
        outcomes = scan(
            lab, generation_id, rt=replace(lab.rt, client=TakenMeanwhile()), uncertain_for=2
        )
    assert outcomes == {generation_id: Outcome.EARLY}
    assert lab.get(generation_id).status is Status.UNCERTAIN
    lab.sql("UPDATE generations SET remote_task_id = :t WHERE id = :id", t=before, id=taker)
    assert scan(lab, generation_id, uncertain_for=15) == {generation_id: Outcome.ADOPTED}
    lab.end_tasks()


def task_of(lab, generation_id):
    return lab.get(generation_id).remote_task_id


def test_uncertain_generations_hold_no_slot(lab):
    unsettled(lab)
    lab.in_doubt("lost 1")
    lab.in_doubt("lost 2")
    waiting = lab.enqueue()
    [claim] = lab.admit(max_in_flight=1)
    assert claim.id == waiting
    assert lab.admit(max_in_flight=1) == []
    lab.unfollowed = 2


# --- readings of what has settled ---------------------------------------------------------------


def test_a_submitting_row_whose_worker_died(lab):
    """The lease of the intent ends, and nobody has said what became of the POST."""
    claim = lab.start()

    class DiedError(BaseException):
        pass

    class Client:
        def submit(self, *args, **options):
            lab.rt.client.submit(*args, **options)
            raise DiedError

    with pytest.raises(DiedError):
        submit.run(replace(lab.rt, client=Client()), [(claim.id, claim.lease)])
    assert lab.get(claim.id).status is Status.SUBMITTING

    assert lab.resolve(claim.id) is Outcome.ADOPTED
    assert lab.history(claim.id)[2:5] == ["intend", "doubt", "adopt"]
    lab.complete(claim.id)


@pytest.mark.parametrize(
    "config",
    [
        {"seed_echo": "string"},
        {"ratio_echo": "pixels"},
        {"ratio_echo": "decimal"},
        {"list_items": "string"},
        {"list_items": "mixed"},
        {"truncate_stamps": False},
        {"list_order": "created_asc"},
        {"list_order": "updated_desc"},
        {"list_order": "random"},
        {"error_style": "ok200"},
    ],
    ids=str,
)
def test_however_the_provider_shows_it(lab, config):
    lab.sim.configure(**config)
    lab.send("an answered one")
    generation_id = lab.in_doubt()
    assert lab.resolve(generation_id) is Outcome.ADOPTED
    lab.complete(generation_id)


# --- seeds that are not shown -------------------------------------------------------------------


@pytest.mark.parametrize("echo", ["null", "minus_one"])
def test_without_a_shown_seed_nothing_is_sent_again(lab, echo):
    """The lost task and a foreign one look alike: an operator decides, nothing is guessed."""
    lab.sim.configure(seed_echo=echo)
    generation_id = lab.in_doubt()

    for _ in range(resolve.ATTENTION_AFTER):
        assert lab.resolve(generation_id) is Outcome.UNDECIDED
    view = lab.get(generation_id)
    assert view.status is Status.UNCERTAIN
    assert "seedance resolve" in (view.attention or "")
    assert lab.submitted_tasks()[0]["task_id"] in (view.attention or "")
    assert lab.posts == 1
    assert lab.sim.received("get") >= 2, "a task without a seed is looked at by itself"

    # It is still read slowly: once the provider shows the seed it is adopted.
    lab.sim.configure(seed_echo="used")
    assert lab.resolve(generation_id) is Outcome.ADOPTED
    assert lab.get(generation_id).attention is None
    lab.complete(generation_id)


def test_a_seed_that_only_the_task_itself_shows(lab):
    """The list hides seeds; a GET of each candidate shows them."""
    generation_id = lab.in_doubt()
    [task] = lab.submitted_tasks()

    class HidesSeeds:
        def __getattr__(self, name):
            return getattr(lab.rt.client, name)

        def list_tasks(self, *args, **options):
            page = lab.rt.client.list_tasks(*args, **options)
            return page.model_copy(
                update={"data": tuple(task.model_copy(update={"seed": None}) for task in page.data)}
            )

    outcome = lab.resolve(generation_id, replace(lab.rt, client=HidesSeeds()))
    assert outcome is Outcome.ADOPTED
    assert lab.get(generation_id).remote_task_id == task["task_id"]
    lab.complete(generation_id)


def test_a_foreign_task_with_a_seed_of_its_own_is_in_nobodys_way(lab):
    generation_id = lab.in_doubt(kind="drop_before")
    foreign = lab.sim.inject(count=3)
    assert lab.resolve(generation_id) is Outcome.ABSENT
    lab.send_again(generation_id)
    lab.complete(generation_id)
    assert set(lab.reconcile().foreign) == set(foreign)


def test_an_old_foreign_task_without_a_seed_is_in_nobodys_way(lab):
    lab.sim.inject(age=3_600, status="completed")
    lab.sim.configure(seed_echo="null")
    generation_id = lab.in_doubt(kind="drop_before")
    assert lab.resolve(generation_id) is Outcome.ABSENT


def test_a_fresh_foreign_task_without_a_seed_could_be_ours(lab):
    generation_id = lab.in_doubt(kind="drop_before")
    lab.sim.configure(seed_echo="null")
    lab.sim.inject()
    assert lab.resolve(generation_id) is Outcome.UNDECIDED
    assert lab.posts == 1


# --- a producer's fixed seed --------------------------------------------------------------------


def test_a_fixed_seed_is_adopted_only_with_an_exclusive_key(lab):
    generation_id = lab.in_doubt(seed=42)
    assert lab.resolve(generation_id) is Outcome.UNDECIDED

    exclusive = lab.make_runtime(key_exclusive=True)
    assert lab.resolve(generation_id, exclusive) is Outcome.ADOPTED
    lab.complete(generation_id)


def test_a_fixed_seed_with_a_normalised_ratio_is_undecided(lab):
    lab.sim.configure(ratio_echo="pixels")
    generation_id = lab.in_doubt(seed=42)
    exclusive = lab.make_runtime(key_exclusive=True)
    assert lab.resolve(generation_id, exclusive) is Outcome.UNDECIDED
    lab.unfollowed = 1


def test_a_fixed_seed_that_never_came_through_is_sent_again(lab):
    generation_id = lab.in_doubt(kind="drop_before", seed=42)
    assert lab.resolve(generation_id) is Outcome.ABSENT
    lab.send_again(generation_id)
    lab.complete(generation_id)


def test_two_equal_tasks_for_one_attempt_are_undecided(lab):
    """One is ours, one is somebody's who shares the key against its declaration."""
    generation_id = lab.in_doubt(seed=42)
    lab.sim.inject(seed=42)
    exclusive = lab.make_runtime(key_exclusive=True)
    assert lab.resolve(generation_id, exclusive) is Outcome.UNDECIDED
    lab.unfollowed = 1


def test_equal_fixed_seeds_with_different_prompts_and_a_late_task(lab):
    """The first one's task comes after it was sent again: it is never given to the second."""
    lab.rt = lab.make_runtime(key_exclusive=True)
    lab.sim.fault("submit", "delay_before", seconds=1.2, times=1)
    lab.rt = lab.make_runtime(key_exclusive=True, http_timeout=0.2)
    first = lab.send("first", seed=42)
    assert lab.resolve(first) is Outcome.ABSENT  # K was wrong: it is still on its way
    second = lab.enqueue(text_request("second", seed=42))
    lab.due_now(first)
    [claim] = lab.admit()
    assert claim.id == first
    assert lab.get(second).blocked_by == first
    lab.sim.fault("submit", "drop_before", times=1)
    submit.run(lab.rt, [(claim.id, claim.lease)])
    lab.sim.wait(tasks=1)

    # Of which of its attempts it is does not matter: it is the first one's, nobody else's.
    outcome = lab.resolve(first)

    assert outcome is Outcome.ADOPTED
    [task] = lab.submitted_tasks()
    assert task["body"]["content"][0]["text"] == "first"
    assert lab.get(first).remote_task_id == task["task_id"]
    assert lab.get(second).status is Status.ACCEPTED
    lab.end_tasks()


def test_a_rival_with_an_open_attempt_makes_it_undecided(lab):
    lab.rt = lab.make_runtime(key_exclusive=True)
    first = lab.in_doubt("first", kind="drop_before", seed=42)
    assert lab.resolve(first) is Outcome.ABSENT
    ask_to_cancel(lab, first)  # its request may still be on its way
    second = lab.in_doubt("second", seed=42)

    assert lab.resolve(second) is Outcome.UNDECIDED

    assert lab.get(second).status is Status.UNCERTAIN
    lab.unfollowed = 1


# --- late and lagging ---------------------------------------------------------------------------


def test_processed_after_settling_it_is_adopted_while_accepted(lab):
    lab.rt = lab.make_runtime(http_timeout=0.2)
    lab.sim.fault("submit", "delay_before", seconds=0.8, times=1)
    generation_id = lab.send()
    assert lab.resolve(generation_id) is Outcome.ABSENT
    lab.sim.wait(tasks=1)

    assert len(lab.reconcile().adopted) == 1

    assert lab.get(generation_id).status is Status.RUNNING
    assert lab.posts == 1
    lab.complete(generation_id)


@pytest.mark.parametrize("ended", [False, True])
def test_processed_after_it_was_sent_again_it_is_flagged(lab, ended):
    lab.rt = lab.make_runtime(http_timeout=0.2)
    lab.sim.fault("submit", "delay_before", seconds=4, times=1)
    generation_id = lab.send()
    assert lab.resolve(generation_id) is Outcome.ABSENT
    lab.send_again(generation_id)
    if ended:
        lab.complete(generation_id)
    lab.sim.wait(tasks=2)

    report = lab.reconcile()

    assert len(report.second) == 1
    lab.second = 1
    [stray] = lab.strays(generation_id)
    assert (stray.kind, stray.attempt) == ("second", 1)
    assert lab.posts == 2
    lab.complete(generation_id)


def test_processed_while_it_is_sent_again_both_are_found(lab):
    """Both answers are lost: one task is adopted, the other flagged."""
    lab.rt = lab.make_runtime(http_timeout=0.2)
    lab.sim.fault("submit", "delay_before", seconds=4, times=1)
    generation_id = lab.send()
    assert lab.resolve(generation_id) is Outcome.ABSENT
    lab.sim.fault("submit", "lost", times=1)
    assert lab.send_again(generation_id).status is Status.UNCERTAIN
    lab.sim.wait(tasks=2)

    assert lab.resolve(generation_id) is Outcome.ADOPTED

    lab.second = 1
    assert lab.kinds() == ["second"]
    assert lab.posts == 2
    lab.complete(generation_id)


def test_a_list_lag_just_below_l(lab):
    lab.rt = lab.make_runtime(send_budget=2, late_creation=0.1, list_lag=0.6, settle_margin=0.1)
    lab.sim.configure(list_lag=0.5)
    generation_id = lab.in_doubt()
    lab.until(generation_id, lambda view: view.status is not Status.UNCERTAIN)
    assert lab.get(generation_id).status is Status.RUNNING
    assert lab.posts == 1
    lab.complete(generation_id)


def test_a_list_lag_above_l_can_pay_twice_and_says_so(lab):
    """L was set too low; the task shows after it was sent again."""
    lab.sim.configure(list_lag=1_000)
    generation_id = lab.in_doubt()
    assert lab.resolve(generation_id) is Outcome.ABSENT
    lab.send_again(generation_id)
    lab.sim.configure(list_lag=0)

    assert len(lab.reconcile().second) == 1

    lab.second = 1
    assert "second_task" in lab.history(generation_id)
    lab.complete(generation_id)


# --- clocks -------------------------------------------------------------------------------------


@pytest.mark.parametrize("truncated", [True, False])
@pytest.mark.parametrize("skew", [-3_600, -7, -1, 1, 7, 3_600])
def test_skewed_clocks(lab, skew, truncated):
    """A fixed seed is adopted by its stamp, an absence told in spite of old equal tasks."""
    lab.sim.configure(date_skew=skew, stamp_skew=skew, truncate_stamps=truncated)
    lab.rt = lab.make_runtime(key_exclusive=True)
    lab.sim.inject(seed=42, age=120 - skew, status="completed")
    generation_id = lab.in_doubt(seed=42)
    assert lab.resolve(generation_id) is Outcome.ADOPTED
    assert lab.posts == 1
    lab.complete(generation_id)


@pytest.mark.parametrize("skew", [-3_600, 3_600])
def test_a_drawn_seed_proves_itself_whatever_the_stamps_say(lab, skew):
    lab.sim.configure(stamp_skew=skew)
    generation_id = lab.in_doubt()
    assert lab.resolve(generation_id) is Outcome.ADOPTED
    lab.complete(generation_id)


@pytest.mark.parametrize("skew", [-7, 7])
def test_stamps_of_another_clock_than_the_date_header(lab, skew):
    """The Date header says that the clocks agree; a task of ours that was answered says more."""
    lab.rt = lab.make_runtime(key_exclusive=True)
    lab.sim.configure(stamp_skew=skew)
    lab.send("an answered one")
    generation_id = lab.in_doubt(seed=42)
    # Its window is so small that only the stamps' own clock leads into it.
    assert lab.resolve(generation_id) is Outcome.ADOPTED
    lab.end_tasks()


# --- readings -----------------------------------------------------------------------------------


def test_a_list_of_many_pages_is_read_to_where_it_can_end(lab):
    lab.sim.inject(count=450, age=7_200, status="completed", updated_at=time.time() - 7_000)
    generation_id = lab.in_doubt(kind="drop_before")
    lab.send("an answered one")
    lab.sql(
        "UPDATE submit_attempts SET decided_at = now() - interval '5 s' WHERE decided_at < now()"
    )
    before = lists(lab)
    assert lab.resolve(generation_id) is Outcome.ABSENT
    assert lists(lab) - before < 10, "a reading stops at the window's start"
    lab.end_tasks()


def test_a_task_on_the_last_page_of_an_ascending_list_is_found(lab):
    lab.sim.configure(list_order="created_asc")
    lab.sim.inject(count=250, age=7_200, status="completed")
    generation_id = lab.in_doubt()
    assert lab.resolve(generation_id) is Outcome.ADOPTED
    lab.complete(generation_id)


def test_a_list_that_says_there_is_more_than_it_shows_decides_nothing(lab):
    generation_id = lab.in_doubt(kind="drop_before")
    lab.sim.inject()
    lab.sim.fault("list", "empty_list")
    assert lab.resolve(generation_id) is Outcome.UNDECIDED
    lab.sim.clear_faults()
    assert lab.resolve(generation_id) is Outcome.ABSENT


def test_readings_that_disagree_decide_nothing(lab):
    """A task of ours shows between the first and the second reading."""
    lab.rt = lab.make_runtime(key_exclusive=True)
    generation_id = lab.in_doubt(kind="drop_before", seed=42)
    lab.sim.fault("list", "delay_before", seconds=0.5, after=1, times=1)
    lab.settle(generation_id)
    claim = lab.claim(generation_id)
    outcomes = {}
    with in_background(lambda: outcomes.update(resolve.run(lab.rt, [(claim.id, claim.lease)]))):
        lab.sim.wait(endpoint="list", received=2)
        lab.sim.inject(seed=42)
    assert outcomes == {generation_id: Outcome.UNDECIDED}
    assert lab.posts == 1


def test_the_second_reading_begins_when_the_first_has_ended(lab):
    """Two that run side by side would be fooled by the same change."""
    lab.sim.inject(count=150)
    generation_id = lab.in_doubt(kind="drop_before")
    lab.sim.fault("list", "delay_before", seconds=0.15)
    at_work: list[int] = []
    pages: list[int] = []

    class Watched:
        def __getattr__(self, name):
            return getattr(lab.rt.client, name)

        def list_tasks(self, number, size):
            pages.append(number)
            assert not at_work, "a page is asked for while another is read"
            at_work.append(number)
            try:
                return lab.rt.client.list_tasks(number, size)
            finally:
                at_work.remove(number)

    assert lab.resolve(generation_id, replace(lab.rt, client=Watched())) is Outcome.ABSENT
    assert pages == [1, 2, 1, 2]


def test_what_another_generation_took_between_reading_and_deciding_is_not_adopted(
    lab, caplog, monkeypatch
):
    """An operator gave the task away after the second reading: "unknown" is judged again."""
    lab.rt = lab.make_runtime(key_exclusive=True)
    taker = lab.send("the taker")
    generation_id = lab.in_doubt("the loser", seed=42)
    [own] = [t["task_id"] for t in lab.submitted_tasks() if t["seed"] == 42]
    lab.settle(generation_id)
    claim = lab.claim(generation_id)

    def decided(rt, one, verdict):
        lab.sql("UPDATE generations SET remote_task_id = :t WHERE id = :id", t=own, id=taker)
        return decide(rt, one, verdict)

    decide = resolve._decide
    monkeypatch.setattr(resolve, "_decide", decided)
    outcomes = resolve.run(lab.rt, [(claim.id, claim.lease)])

    assert outcomes == {generation_id: Outcome.UNDECIDED}
    assert lab.get(generation_id).status is Status.UNCERTAIN
    assert "could not be written" not in caplog.text
    lab.unfollowed = 1


def test_what_was_adopted_between_reading_and_deciding_is_not_adopted_again(lab):
    generation_id = lab.in_doubt()
    lab.settle(generation_id)
    claim = lab.claim(generation_id)

    class Reconciles:
        done = False

        def __getattr__(self, name):
            return getattr(lab.rt.client, name)

        def list_tasks(self, *args, **options):
            page = lab.rt.client.list_tasks(*args, **options)
            lab.reconcile()
            return page

    rt = replace(lab.rt, client=Reconciles())
    outcomes = resolve.run(rt, [(claim.id, claim.lease)])
    assert outcomes[generation_id] in (Outcome.LOST, Outcome.UNDECIDED)
    assert lab.history(generation_id).count("adopt") == 1
    lab.complete(generation_id)


def test_an_outage_of_the_list_burns_nothing(lab):
    lab.rt = lab.make_runtime()
    generation_id = lab.in_doubt()

    class Down:
        def list_tasks(self, *args, **options):
            return lab.rt.client.list_tasks(*args, **options, retry=False)

    down = replace(lab.rt, client=Down())
    lab.sim.fault("list", "error", code="SERVICE_BUSY")
    for _ in range(resolve.ATTENTION_AFTER + 2):
        lab.resolve(generation_id, down)
    view = lab.get(generation_id)
    assert (view.status, view.attention) == (Status.UNCERTAIN, None)
    assert lab.value("SELECT failures FROM generations") == 0
    lab.sim.clear_faults()
    assert lab.resolve(generation_id) is Outcome.ADOPTED
    lab.complete(generation_id)


def test_a_refused_key_while_reading_opens_the_breaker_and_decides_nothing(lab):
    generation_id = lab.in_doubt()
    lab.sim.change_account(lab.sim.api_key, enabled=False)
    lab.resolve(generation_id)
    assert lab.get(generation_id).status is Status.UNCERTAIN
    assert lab.breakers() == {"api_key"}
    lab.sim.change_account(lab.sim.api_key, enabled=True)
    assert lab.resolve(generation_id) is Outcome.ADOPTED
    lab.complete(generation_id)


def test_one_pair_of_readings_serves_many(lab):
    lab.sim.fault("submit", "lost", times=3)
    lost = [lab.send(f"lost {n}") for n in range(3)]
    lab.sim.fault("submit", "drop_before", times=3)
    dropped = [lab.send(f"dropped {n}") for n in range(3)]
    for generation_id in lost + dropped:
        lab.settle(generation_id)
        lab.due_now(generation_id)
    claims = lab.due()
    before = lists(lab)

    outcomes = resolve.run(lab.rt, [(claim.id, claim.lease) for claim in claims])

    assert lists(lab) - before == 2
    assert {outcomes[i] for i in lost} == {Outcome.ADOPTED}
    assert {outcomes[i] for i in dropped} == {Outcome.ABSENT}
    assert len({lab.get(i).remote_task_id for i in lost}) == 3
    lab.end_tasks()


def test_a_producers_open_transaction_on_one_holds_up_nobody_else(lab):
    """It cancels one in a transaction of its own, and takes its time to commit."""
    first, second, third = sorted(lab.in_doubt(f"cat {n}") for n in range(3))
    for generation_id in (first, second, third):
        lab.settle(generation_id)
        lab.due_now(generation_id)
    claims = [(claim.id, claim.lease) for claim in lab.due()]
    with lab.rt.engine.connect() as producer:
        transitions.cancel(producer, second)
        outcomes = resolve.run(lab.rt, claims)
        producer.rollback()
    assert outcomes == {first: Outcome.ADOPTED, third: Outcome.ADOPTED}
    assert lab.resolve(second) is Outcome.ADOPTED
    lab.end_tasks()


def test_a_lease_is_renewed_while_reading(lab):
    lab.rt = lab.make_runtime(lease=1.1, http_timeout=0.7, http_connect_timeout=0.3)
    lab.sim.inject(count=250)
    generation_id = lab.in_doubt(kind="drop_before")
    lab.sim.fault("list", "delay_before", seconds=0.25)
    lab.settle(generation_id)
    claim = lab.claim(generation_id)
    with in_background(lambda: resolve.run(lab.rt, [(claim.id, claim.lease)])):
        lab.sim.wait(endpoint="list", received=6)
        assert lab.due() == []
    assert lab.get(generation_id).status is Status.ACCEPTED


# --- messages -----------------------------------------------------------------------------------


def test_the_same_message_twice(lab):
    generation_id = lab.in_doubt(kind="drop_before")
    lab.settle(generation_id)
    claim = lab.claim(generation_id)
    assert resolve.run(lab.rt, [(claim.id, claim.lease)]) == {generation_id: Outcome.ABSENT}
    assert resolve.run(lab.rt, [(claim.id, claim.lease)]) == {}
    assert lab.history(generation_id).count("absent") == 1


def test_the_same_message_to_two_workers_at_once(lab):
    lab.sim.fault("submit", "lost", times=1)
    adopted = lab.send("lost")
    lab.sim.fault("submit", "drop_before", times=1)
    absent = lab.send("dropped")
    for generation_id in (adopted, absent):
        lab.settle(generation_id)
        lab.due_now(generation_id)
    claims = [(claim.id, claim.lease) for claim in lab.due()]
    start = threading.Barrier(2)

    def work():
        start.wait(10)
        resolve.run(lab.rt, claims)

    with in_background(work):
        work()
    assert lab.history(adopted).count("adopt") == 1
    assert lab.history(absent).count("absent") == 1
    assert lab.posts == 2
    lab.complete(adopted)


def test_an_old_message_does_nothing(lab):
    generation_id = lab.in_doubt()
    old = lab.claim(generation_id)
    lab.claim(generation_id)
    lab.settle(generation_id)
    assert resolve.run(lab.rt, [(old.id, old.lease)]) == {}
    assert lists(lab) == 0
    lab.resolve(generation_id)
    lab.complete(generation_id)


def test_a_batch_outlives_a_row_that_is_gone(lab):
    generation_id = lab.in_doubt()
    running = lab.send("running")
    lab.settle(generation_id)
    claim = lab.claim(generation_id)
    outcomes = resolve.run(lab.rt, [(running, 2), (claim.id, claim.lease)])
    assert outcomes == {generation_id: Outcome.ADOPTED}
    lab.end_tasks()


# --- attention ----------------------------------------------------------------------------------


def test_attention_gives_up_the_slot_and_keeps_the_lock(lab):
    generation_id = lab.in_doubt(seed=42)
    for _ in range(resolve.ATTENTION_AFTER):
        lab.resolve(generation_id)
    assert lab.get(generation_id).attention
    equal = lab.enqueue(text_request("equal", seed=42))
    other = lab.enqueue(text_request("other"))

    [claim] = lab.admit(max_in_flight=1)

    assert claim.id == other
    assert lab.get(equal).blocked_by == generation_id
    assert lab.history(generation_id).count("attention") == 1
    lab.unfollowed = 1


def test_blocked_rows_starve_nobody(lab):
    """More equal rows than slots wait; one of another seed still gets in."""
    generation_id = lab.in_doubt(seed=42)
    blocked = [lab.enqueue(text_request(f"equal {n}", seed=42), priority=5) for n in range(4)]
    other = lab.enqueue(text_request("other"))

    assert [claim.id for claim in lab.admit(max_in_flight=2)] == [other]
    assert {lab.get(i).blocked_by for i in blocked} == {generation_id}
    lab.unfollowed = 1


def test_leaving_doubt_wakes_the_oldest_waiter_alone(lab):
    generation_id = lab.in_doubt(kind="drop_before", seed=42)
    waiting = [lab.enqueue(text_request(f"equal {n}", seed=42)) for n in range(3)]
    assert lab.admit() == []
    lab.resolve(generation_id)
    assert [lab.get(i).blocked_by is None for i in waiting] == [True, False, False]


def test_reading_the_list_by_itself_raises_what_is_wrong(lab):
    lab.sim.fault("list", "error", code="INVALID_PARAMETER")
    with pytest.raises(ApiError):
        lab.reconcile()


def test_who_lost_the_row_while_reading_asks_no_operator(lab, monkeypatch):
    """An answer arrives between the readings and a decision that would be "undecided"."""
    lab.sim.configure(seed_echo="null")
    monkeypatch.setattr(resolve, "ATTENTION_AFTER", 1)
    generation_id = lab.in_doubt()
    task_id = lab.submitted_tasks()[0]["task_id"]

    def answer_arrives(place: str) -> None:
        if place == "resolve.after_reading":
            with lab.rt.engine.begin() as conn:
                transitions.submitted(
                    conn, transitions.Answered(generation_id, 1, task_id, "pending", None, 1.0)
                )

    monkeypatch.setattr(resolve, "reached", answer_arrives)
    lab.resolve(generation_id)
    view = lab.get(generation_id)
    assert view.status is Status.RUNNING
    assert view.attention is None
