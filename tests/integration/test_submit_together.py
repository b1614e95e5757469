"""Several generations in one message share transactions, and each keeps its own guarantees."""

from dataclasses import replace

import pytest
from sqlalchemy.exc import DBAPIError

from api_client import Submitted
from models import marks, submission, transitions
from models.lifecycle import Status
from models.operating import pauses
from models.operating.actions import By
from tests.integration import rows
from tests.integration.conftest import text_request
from tests.integration.invariants import in_background, laboratory, paused, quick
from tests.waiting import wait_for
from worker.runtime import waking_clock
from worker.stages import submit


@pytest.fixture
def lab(make_runtime, sim, caplog):
    with laboratory(make_runtime, sim, caplog) as lab:
        quick(lab.rt)
        yield lab


def begin(lab, *requests, **options):
    """Enqueue and admit: ids, and the claims of their one message."""
    ids = [lab.enqueue(request, **options) for request in requests]
    claims = {claim.id: claim for claim in lab.admit()}
    return ids, [(one, claims[one].lease) for one in ids]


def cats(count, **fields):
    return [text_request(f"cat {n}", **fields) for n in range(count)]


def statuses(lab, ids):
    return [lab.get(one).status for one in ids]


def outcomes(lab, ids):
    return [[attempt.outcome for attempt in lab.attempts(one)] for one in ids]


class Client:
    """The real client, but for what happens around its POSTs: called with their number."""

    def __init__(self, client, *, before=lambda number: None, after=lambda number, answer: answer):
        self._client, self._before, self._after = client, before, after
        self._posts = 0

    def __getattr__(self, name):
        return getattr(self._client, name)

    def submit(self, request, **options):
        self._posts += 1
        self._before(self._posts)
        return self._after(self._posts, self._client.submit(request, **options))


def with_client(rt, **around):
    return replace(rt, client=Client(rt.client, **around))


def test_a_line_tells_each_task_of_which_generation_it_is(lab, caplog):
    ids, claims = begin(lab, *cats(3))
    submit.run(lab.rt, claims)
    told = {
        record.generation: record.remote_task
        for record in caplog.records
        if record.name == submit.__name__ and record.levelname == "INFO"
    }
    assert told == {str(one): lab.get(one).remote_task_id for one in ids}


def test_one_transaction_each_for_all_intents_and_all_answers(lab, monkeypatch):
    monkeypatch.setattr(submit, "RECORD_WITHIN", 60.0)
    ids, claims = begin(lab, *cats(8))

    submit.run(lab.rt, claims)

    assert statuses(lab, ids) == [Status.RUNNING] * 8
    assert lab.posts == 8
    assert lab.value("SELECT count(DISTINCT started_at) FROM submit_attempts") == 1
    assert lab.value("SELECT count(DISTINCT submitted_at) FROM generations") == 1
    assert lab.value("SELECT count(DISTINCT seed) FROM submit_attempts") == 8
    for generation_id in ids:
        [attempt] = lab.attempts(generation_id)
        assert attempt.outcome == "submitted"
        assert attempt.remote_task_id == lab.get(generation_id).remote_task_id
    for generation_id in ids:
        lab.complete(generation_id)


def test_those_that_something_stands_in_the_way_of_are_looked_at_each(lab):
    """A fixed seed twice, a wish to cancel, a pause, a deadline: the others go all the same."""
    ids, claims = begin(
        lab, *cats(2), text_request("same", seed=7), text_request("same", seed=8), *cats(2)
    )
    [late], [claim] = begin(lab, text_request("late"))
    [other], [held] = begin(lab, text_request("other"), tenant="held")
    # Without its being stopped before: as if it came after the message went out.
    lab.sql("UPDATE generations SET cancel_requested_at = now() WHERE id = :id", id=ids[0])
    lab.sql("UPDATE generations SET deadline_at = now() - interval '1 s' WHERE id = :id", id=late)
    with lab.rt.engine.begin() as conn:
        pauses.pause(conn, "held", By("ana", "a test"))

    submit.run(lab.rt, [*claims, claim, held])

    assert statuses(lab, [*ids, late, other]) == [
        Status.CANCELLED,
        *[Status.RUNNING] * 5,
        Status.EXPIRED,
        Status.ACCEPTED,
    ]
    assert lab.posts == 5
    for generation_id in ids[1:]:
        lab.complete(generation_id)


def test_a_learned_limit_holds_for_a_message_of_several(lab):
    ids, claims = begin(lab, *cats(4))
    lab.sql(
        "INSERT INTO learned_limits (name, value, refused, pause) VALUES ('in_flight', 2, 3, 30)"
    )

    submit.run(lab.rt, claims)

    assert statuses(lab, ids) == [*[Status.RUNNING] * 2, *[Status.ACCEPTED] * 2]
    view = lab.get(ids[3])
    assert (view.wait_reason, view.wait_detail) == ("concurrency", {"provider_limit": 2})
    for generation_id in ids[:2]:
        lab.complete(generation_id)


def test_a_second_attempt_is_looked_at_by_itself(lab):
    """Of its first one a callback came: it has a task, so it is not sent again."""
    again = lab.in_doubt(kind="drop_before")
    lab.resolve(again)
    claim = lab.readmit(again)
    [other], [fresh] = begin(lab, *cats(1))
    lab.sql("UPDATE submit_attempts SET callback_at = now()")
    before = lab.posts

    submit.run(lab.rt, [(claim.id, claim.lease), fresh])

    assert lab.posts == before + 1
    assert statuses(lab, [again, other]) == [Status.ACCEPTED, Status.RUNNING]
    assert "called back" in lab.get(again).attention
    lab.complete(other)


def test_the_same_message_twice_submits_nothing_again(lab):
    ids, claims = begin(lab, *cats(4))
    submit.run(lab.rt, claims)
    submit.run(lab.rt, claims)
    assert lab.posts == 4
    for generation_id in ids:
        lab.complete(generation_id)


def test_a_producers_open_transaction_on_one_does_not_keep_the_others_from_being_sent(lab):
    ids, claims = begin(lab, *cats(4))
    with lab.rt.engine.connect() as producer:
        transitions.cancel(producer, ids[1])
        with in_background(lambda: submit.run(lab.rt, claims)):
            wait_for(
                lambda: statuses(lab, ids).count(Status.RUNNING) == 3, "the others are sent", 20
            )
            producer.commit()
    assert lab.get(ids[1]).status is Status.CANCELLED
    for generation_id in set(ids) - {ids[1]}:
        lab.complete(generation_id)


def test_one_that_its_intent_fails_for_leaves_no_other_in_doubt(lab):
    """The intents that are committed are sent; nobody else knows that they were not."""
    ids, claims = begin(lab, *cats(2), text_request("a dog", seed=7))
    with lab.rt.engine.connect() as other:
        # An equal one's intent, which is not committed yet.
        mark = marks.fingerprint(lab.get(ids[2]).request, 7)
        rows.make(other, Status.SUBMITTING, fingerprint=mark)
        with in_background(lambda: submit.run(lab.rt, claims)):
            [waiting] = wait_for(
                lambda: lab.sql(
                    "SELECT pid FROM pg_stat_activity"
                    " WHERE datname = current_database() AND wait_event_type = 'Lock'"
                ),
                "its intent waits for the other's",
            )
            lab.sql("SELECT pg_terminate_backend(:pid)", pid=waiting.pid)
        other.rollback()
    assert statuses(lab, ids) == [Status.RUNNING, Status.RUNNING, Status.UPLOADING]
    assert outcomes(lab, ids) == [["submitted"], ["submitted"], []]
    lab.run(lab.claim(ids[2]))
    for generation_id in ids:
        lab.complete(generation_id)


def test_a_gate_that_one_closes_stops_the_rest(lab):
    ids, claims = begin(lab, *cats(5))
    lab.sim.fault("submit", "service_busy", times=1)

    submit.run(lab.rt, claims)

    assert lab.posts == 1
    assert statuses(lab, ids) == [Status.ACCEPTED] * 5
    assert outcomes(lab, ids) == [["refused"], *[["not_sent"]] * 4]


@pytest.mark.parametrize(("holds", "sent"), [(0.0, 2), (60.0, 4)])
def test_what_was_read_before_a_post_holds_for_a_moment_only(lab, monkeypatch, holds, sent):
    monkeypatch.setattr(submit, "CHECK_HOLDS", holds)
    ids, claims = begin(lab, *cats(4))

    def after(number, answer):
        if number == 2:
            for generation_id in ids[2:]:
                ask_to_cancel(lab, generation_id)
        return answer

    submit.run(with_client(lab.rt, after=after), claims)

    assert lab.posts == sent
    assert statuses(lab, ids[:2]) == [Status.RUNNING] * 2
    expected = Status.CANCELLED if sent == 2 else Status.RUNNING
    assert statuses(lab, ids[2:]) == [expected] * 2
    for generation_id in ids[:sent]:
        lab.complete(generation_id)


def ask_to_cancel(lab, generation_id):
    with lab.rt.engine.begin() as conn:
        transitions.cancel(conn, generation_id)


def test_quick_posts_share_one_check(lab, monkeypatch):
    monkeypatch.setattr(submit, "CHECK_HOLDS", 60.0)
    asked = []
    real = submission.may_still_send

    def counted(conn, intents):
        asked.append(len(intents))
        return real(conn, intents)

    monkeypatch.setattr(submission, "may_still_send", counted)
    ids, claims = begin(lab, *cats(6))
    submit.run(lab.rt, claims)
    assert asked == [6]
    for generation_id in ids:
        lab.complete(generation_id)


def test_intents_that_grew_old_behind_a_slow_one_are_not_sent(lab):
    rt = lab.make_runtime(send_budget=1.0)
    quick(rt)
    ids, claims = begin(lab, *cats(3))

    def after(number, answer):
        if number == 1:  # the first one's answer takes longer than an intent may be old
            age.append(2.0)
        return answer

    age = [0.0]
    real = waking_clock

    def clock():
        return real() + sum(age)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(submit, "waking_clock", clock)
        submit.run(with_client(rt, after=after), claims)

    assert lab.posts == 1
    assert statuses(lab, ids) == [Status.RUNNING, Status.ACCEPTED, Status.ACCEPTED]
    assert outcomes(lab, ids) == [["submitted"], ["not_sent"], ["not_sent"]]
    lab.complete(ids[0])


def test_a_bug_at_one_leaves_it_in_doubt_keeps_what_was_answered_and_sends_no_more(lab):
    ids, claims = begin(lab, *cats(4))

    def after(number, answer):
        if number == 2:
            raise RuntimeError("a bug")
        return answer

    with pytest.raises(RuntimeError):
        submit.run(with_client(lab.rt, after=after), claims)

    assert statuses(lab, ids) == [
        Status.RUNNING,
        Status.UNCERTAIN,
        Status.ACCEPTED,
        Status.ACCEPTED,
    ]
    assert outcomes(lab, ids) == [["submitted"], ["unknown"], ["not_sent"], ["not_sent"]]
    assert lab.posts == 2
    lab.resolve(ids[1])
    for generation_id in ids[:2]:
        lab.complete(generation_id)


def test_an_answer_that_the_tables_refuse_does_not_take_the_others_with_it(lab, monkeypatch):
    monkeypatch.setattr(submit, "RECORD_WITHIN", 60.0)
    ids, claims = begin(lab, *cats(4))
    first = []

    def after(number, answer):
        if number == 1:
            first.append(answer)
        if number == 2:  # the provider names the same task twice
            return Submitted.model_validate({**answer.model_dump(), "task_id": first[0].task_id})
        return answer

    with pytest.raises(DBAPIError):
        submit.run(with_client(lab.rt, after=after), claims)

    assert [lab.get(one).status is Status.RUNNING for one in ids] == [True, False, True, True]
    lab.settle(ids[1])
    lab.resolve(ids[1])
    for generation_id in ids:
        lab.complete(generation_id)


def test_as_many_as_the_request_rate_has_room_for(lab):
    rt = lab.make_runtime(rate_limit="3/minute", broker_url="amqp://nowhere", lease=2.6)
    quick(rt)
    ids, claims = begin(lab, *cats(5))

    submit.run(rt, claims)

    assert statuses(lab, ids) == [*[Status.RUNNING] * 3, *[Status.ACCEPTED] * 2]
    assert lab.posts == 3
    assert lab.get(ids[3]).waits_for == "the request rate"
    for generation_id in ids[:3]:
        lab.complete(generation_id)


def test_answers_are_recorded_soon_though_more_are_to_come(lab, monkeypatch):
    monkeypatch.setattr(submit, "RECORD_WITHIN", 0.0)
    ids, claims = begin(lab, *cats(3))
    seen = []
    submit.run(
        with_client(lab.rt, before=lambda number: seen.append(statuses(lab, ids)[0])), claims
    )
    assert seen == [Status.SUBMITTING, Status.SUBMITTING, Status.RUNNING]
    for generation_id in ids:
        lab.complete(generation_id)


def test_a_paused_check_is_one_of_the_whole_message(lab):
    """Where something happens between intents and check, all of them see it."""
    ids, claims = begin(lab, *cats(3))
    rt = paused(
        lab.rt,
        before_check=lambda: lab.sql(
            "INSERT INTO gates (name, closed_at, reason) VALUES ('api_key', now(), 'test')"
            " ON CONFLICT DO NOTHING"
        ),
    )
    submit.run(rt, claims)
    assert lab.posts == 0
    assert outcomes(lab, ids) == [["not_sent"]] * 3


def test_slow_posts_go_by_themselves(lab):
    rt = lab.make_runtime()
    assert rt.pace.most == 1
    ids, claims = begin(lab, *cats(3))
    submit.run(rt, claims)
    assert lab.value("SELECT count(DISTINCT started_at) FROM submit_attempts") > 1
    for generation_id in ids:
        lab.complete(generation_id)
