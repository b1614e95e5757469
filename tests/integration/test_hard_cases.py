"""Hard cases: each of these once paid twice, lost a row, or stopped the work of others."""

import contextlib
import dataclasses
import threading
import time
import uuid
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
import sqlalchemy as sa
from sqlalchemy import text

from api_client import ApiError
from api_client.answers import Submitted
from models import gates, reads, resolution, schedule, submission, transitions, watch
from models.lifecycle import Observation, Status
from models.submission import Intent
from tests.integration.conftest import Steps
from worker.reading import DatabaseClock
from worker.stages import accept, common, resolve, submit, upload
from worker.upkeep import reconcile

REQ = {"content": [{"type": "text", "text": "a cat"}]}


def sql(rt, q, **kw):
    with rt.engine.begin() as c:
        r = c.execute(text(q), kw)
        return r.all() if r.returns_rows else r.rowcount


def intent_of(rt, steps, gid=None, **fields):
    gid = gid or steps.enqueue({**REQ, **fields})
    [claim] = [c for c in steps.admit() if c.id == gid]
    with rt.engine.begin() as c:
        i = submission.begin(c, gid, claim.lease, rt.settings.timing)
    return gid, i


def settle(rt, gid):
    sql(
        rt,
        "update submit_attempts set settle_at = now() - interval '1 s' where generation_id=:i",
        i=gid,
    )
    sql(rt, "update generations set due_at = now() where id=:i", i=gid)


def running(rt, steps, sim, words="seconds=100000", **f):
    gid = steps.enqueue({"content": [{"type": "text", "text": f"x [sim: {words}]"}], **f})
    v = steps.until(gid, lambda v: v.status == Status.RUNNING)
    return gid, v


def test_sleeper_past_settle_then_wakes_breaks_resolve_for_its_whole_batch(rt, steps, sim):
    gid, intent = intent_of(rt, steps)
    settle(rt, gid)
    other, _ = intent_of(rt, steps)
    settle(rt, other)
    with rt.engine.begin() as c:  # resolve began: submitting -> uncertain
        transitions.doubt(c, gid, 1, why="no answer came")
    with pytest.raises(submit.TooLateError):  # the sleeper wakes: its check stops it ...
        with rt.engine.connect() as c:
            raise submit.TooLateError(submission.may_still_send(c, intent))
    submit._not_sent(rt, intent, "no longer the row's attempt", seconds=1.0)  # ... as _post does
    claims = [(c.id, c.lease) for c in steps.due()]
    assert {c[0] for c in claims} >= {gid, other}
    resolve.run(rt, claims)  # ValueError: max() iterable argument is empty
    assert steps.get(other).status is Status.ACCEPTED
    assert steps.get(gid).status is Status.ACCEPTED


def test_second_task_known_row_without_task_pays_again(rt, steps, sim):
    gid, one = intent_of(rt, steps)
    with rt.engine.begin() as c:
        transitions.doubt(c, gid, 1, why="lost")
        transitions.absent(c, gid, 1, max_attempts=5, detail={})
    gid, _two = intent_of(rt, steps, gid)
    submit.record_answer(
        rt, one, Submitted(task_id="T1", status="processing")
    )  # late: of attempt 1
    with rt.engine.begin() as c:
        transitions.declined(c, gid, 2, code="SERVICE_BUSY", waits_for="x", seconds=0)
    # guard: "no unknown remote task already matches one of its open attempts"
    gid, three = intent_of(rt, steps, gid)
    assert not isinstance(three, Intent), "a third POST is allowed though T1 is known to be its own"


def test_watch_flags_a_generations_own_task_as_second(rt, steps, sim, monkeypatch):
    gid, intent = intent_of(rt, steps)
    real = watch.followed

    def followed(conn, ids):
        found = real(conn, ids)
        monkeypatch.setattr(watch, "followed", real)
        submit.record_answer(
            rt, intent, Submitted(task_id="T1", status="processing")
        )  # commits now
        return found

    monkeypatch.setattr(watch, "followed", followed)
    with rt.engine.begin() as c:
        seen = watch.hold_against(c, [Observation("T1", "processing", seed=intent.seed)])
    assert steps.get(gid).remote_task_id == "T1"
    assert seen.second == []
    assert "second_task" not in steps.history(gid)
    with rt.engine.connect() as c:
        assert reads.strays(c) == []


def test_stray_of_a_task_that_is_followed_now_stays_and_blocks_the_next(rt, steps, sim):
    gid, intent = intent_of(rt, steps, seed=7)
    with rt.engine.begin() as c:  # reconcile sees the task while its answer is on the way
        watch.hold_against(
            c,
            [
                Observation(
                    "T1",
                    "processing",
                    seed=7,
                    model="seedance-2.0",
                    resolution="720p",
                    ratio="16:9",
                    duration=5,
                    generate_audio=False,
                    created_at=datetime.now(UTC),
                )
            ],
        )
    submit.record_answer(rt, intent, Submitted(task_id="T1", status="processing"))
    assert steps.get(gid).remote_task_id == "T1"
    with rt.engine.connect() as c:
        left = reads.strays(c)
    # an equal generation afterwards, whose first POST was found absent, is now stuck for an operator
    gid2, _i2 = intent_of(rt, steps, seed=7)
    with rt.engine.begin() as c:
        transitions.doubt(c, gid2, 1, why="lost")
        transitions.absent(c, gid2, 1, max_attempts=5, detail={})
    _, again = intent_of(rt, steps, gid2)
    assert isinstance(again, Intent), f"{again} strays={left}"


def test_nul_in_error_message_never_ends(rt, steps, sim):
    gid, v = running(rt, steps, sim)
    sim.change(
        v.remote_task_id, status="failed", error_code="INTERNAL_ERROR", error_message="a\x00b"
    )
    steps.until_ended(gid, 5)


def test_surrogate_in_error_message_never_ends(rt, steps, sim):
    gid, v = running(rt, steps, sim)
    sim.change(v.remote_task_id, status="failed", error_code="INTERNAL_ERROR", error_message="a")

    def obs(task_id, retry=False):
        t = type(rt.client).get(rt.client, task_id, retry=retry)
        return t.model_copy(update={"error_message": "a\ud800b"})

    rt.client.get = obs
    try:
        steps.until_ended(gid, 5)
    finally:
        del rt.client.get


def test_foreign_huge_seed_stops_reconcile(rt, steps, sim):
    _gid, _v = running(rt, steps, sim)
    sim.inject(seed=2**63, status="completed")
    reconcile.run(rt)


def test_foreign_negative_credit_or_huge_duration(rt, steps, sim):
    with rt.engine.begin() as c:
        watch.hold_against(c, [Observation("F", "completed", seed=5, duration=2**40)])


def test_submit_answer_with_huge_credit_cost_is_lost(make_runtime, sim):
    rt = make_runtime(lease=3)
    steps = Steps(rt)
    gid, intent = intent_of(rt, steps)
    submit.record_answer(
        rt, intent, Submitted.model_validate({"task_id": "T1", "credit_cost": "99999999999999"})
    )
    assert steps.get(gid).remote_task_id == "T1"


def test_negative_credit_cost(make_runtime, sim):
    rt = make_runtime(lease=3)
    steps = Steps(rt)
    gid, intent = intent_of(rt, steps)
    submit.record_answer(
        rt, intent, Submitted.model_validate({"task_id": "T1", "credit_cost": "-1"})
    )
    assert steps.get(gid).remote_task_id == "T1"


def test_nul_in_refusal_message(rt, steps, sim):
    sim.fault("submit", "error", code="INVALID_PARAMETER", message="bad \x00 thing", status=400)
    gid = steps.enqueue()
    v = steps.until_ended(gid, 8)
    assert v.error_code == "INVALID_PARAMETER"


def test_nul_in_401_message_never_closes_gate(rt, steps, sim):
    sim.fault("submit", "error", code="INVALID_API_KEY", message="bad \x00 key", status=401)
    steps.enqueue()
    steps.once()
    with rt.engine.connect() as c:
        assert gates.sending(c).closed


def test_cancel_500_stops_polling(rt, steps, sim):
    gid, v = running(rt, steps, sim)
    sim.fault("cancel", "error")  # 500 INTERNAL_ERROR for ever: "R, then GET"
    with rt.engine.begin() as c:
        transitions.cancel(c, gid)
    sim.change(v.remote_task_id, status="completed")
    steps.until_ended(gid, 6)


def test_cancel_404_while_invisible_is_never_repeated(rt, steps, sim):
    gid, v = running(rt, steps, sim)
    sim.fault("cancel", "not_found", times=1)
    with rt.engine.begin() as c:
        transitions.cancel(c, gid)
    v = steps.until_ended(gid, 4)
    assert v.status is Status.CANCELLED


def test_declined_with_a_wish_is_not_cancelled(rt, steps, sim):
    gid, _intent = intent_of(rt, steps)
    with rt.engine.begin() as c:
        transitions.cancel(c, gid)
    with rt.engine.begin() as c:
        gates.close(c, gates.GateName.API_KEY, "401", probe_in=30)
        transitions.declined(c, gid, 1, code="INVALID_API_KEY", waits_for="gate api_key", seconds=0)
    assert steps.get(gid).status is Status.CANCELLED


@pytest.mark.parametrize(
    "kwargs",
    [
        {"request": {**REQ, "a\x00b": 1}},
        {"request": {**REQ, "seed": float("nan")}},
        {"request": REQ, "o\x00": 1},
        {"request": {**REQ, "a\ud800b": 1}},
        {"request": REQ, "metadata": eval("[" * 0 + "{'a':" * 90 + "1" + "}" * 90)},
    ],
    ids=["nul-field", "nan", "nul-option", "surrogate-field", "control-ok"],
)
def test_a_bad_message_is_recorded_not_looped_nor_lost(rt, steps, kwargs):
    gid = uuid.uuid4()
    accept.run(rt, str(gid), [], kwargs)
    assert steps.get(gid)


def test_pool_timeout_loses_the_request(rt, steps, monkeypatch):
    from worker import runtime as rtm
    from worker.tasks import generate

    tiny = sa.create_engine(rt.settings.database_url, pool_size=1, max_overflow=0, pool_timeout=0.2)
    rtm.use(dataclasses.replace(rt, engine=tiny))
    try:
        with tiny.connect():  # every connection is taken, as in a busy process
            r = generate.apply(kwargs={"request": REQ}, task_id=str(uuid.uuid4()))
    finally:
        rtm._built.clear()
        tiny.dispose()
    # FAILURE is acknowledged (acks_on_failure_or_timeout): the message, all there is, is gone
    assert r.state == "REJECTED", (r.state, type(r.result), r.result)


def test_blocked_rows_starve_everybody(rt, steps, sim):
    _holder, _ = intent_of(rt, steps, seed=7)  # in doubt, holds the fingerprint
    for _ in range(150):
        steps.enqueue({**REQ, "seed": 7})
    poor = steps.enqueue({**REQ})
    for _tick in range(400):  # 400 ticks of 1 s, one slot free
        with rt.engine.begin() as c:
            schedule.admit(c, 1, max_in_flight=50, lease_seconds=60, ceiling=None)
        # a second passes
        sql(rt, "update generations set due_at = due_at - interval '1 s' where status='accepted'")
        if steps.get(poor).status is not Status.ACCEPTED:
            break
    assert steps.get(poor).status is not Status.ACCEPTED


def test_an_open_producer_transaction_stops_all_admission(rt, steps, sim):
    a = steps.enqueue()
    b = steps.enqueue()
    with rt.engine.connect() as slow, slow.begin():
        slow.execute(
            text("select 1 from generations where id=:i for update"), {"i": a}
        )  # e.g. cancel(a, session=…)
        steps.admit()  # lock_timeout, again and again: nobody is admitted
        assert steps.get(b).status is Status.UPLOADING
        slow.rollback()


def test_more_than_65535_remote_tasks_break_resolve_and_reconcile(rt):
    ids = [f"t{i}" for i in range(70_000)]
    errors = []
    with rt.engine.connect() as c:
        try:
            watch.followed(c, ids)
        except Exception as e:
            errors.append(f"followed: {type(e).__name__} {str(e)[:120]}")
    with rt.engine.connect() as c:
        try:
            watch.running_unseen(c, ids, before=datetime.now(UTC))
        except Exception as e:
            errors.append(f"running_unseen: {type(e).__name__} {str(e)[:120]}")
    assert not errors, errors


@pytest.mark.parametrize("status", [400, 401, 403, 404, 302])
def test_bare_4xx_after_creation_is_ambiguous(rt, steps, sim, status):
    sim.fault("submit", "bare_after", status=status, times=1)
    gid = steps.enqueue()
    steps.once()
    assert len(sim.tasks()) == 1
    v = steps.get(gid)
    assert v.status is Status.UNCERTAIN, (v.status, v.error_code, v.waits_for)


def test_bare_401_after_creation_pays_twice(rt, steps, sim):
    sim.configure(seed_echo="null")
    sim.fault("submit", "bare_after", status=401, times=1)
    gid = steps.enqueue()
    steps.once()
    sql(
        rt, "update gates set closed_at=null, reason=null, opens_at=null, probe_at=null"
    )  # balance answered
    with contextlib.suppress(AssertionError):
        steps.until(gid, lambda v: v.status is Status.RUNNING, 6)
    assert len(sim.tasks()) == 1


def test_normalised_producer_seed_could_still_be_ours():
    now = datetime.now(UTC)
    given = 2**40 + 5
    att = resolution.Attempt(1, given, False, now, now + timedelta(seconds=90))
    req = {
        "model": "seedance-2.0",
        "resolution": "720p",
        "ratio": "16:9",
        "duration": 5,
        "generate_audio": False,
    }
    case = resolution.Case(uuid.uuid4(), req, (att,))
    shown = Observation(
        "T", "processing", seed=given % 2**32, created_at=now + timedelta(seconds=1), **req
    )
    skew = resolution.Skew(timedelta(0), timedelta(0))
    assert not isinstance(resolution.judge(case, [shown], skew), resolution.Absent)


def test_late_seedless_task_is_called_foreign_and_paid_twice(rt, steps, sim):
    sim.configure(seed_echo="null")
    gid, _one = intent_of(rt, steps)
    with rt.engine.begin() as c:
        transitions.doubt(c, gid, 1, why="lost")
        transitions.absent(c, gid, 1, max_attempts=5, detail={})
    sim.inject(seconds=100000)  # created later than K: shows no seed
    rep = reconcile.run(rt)
    assert rep.foreign == () and rep.possible, rep


def test_second_becomes_foreign_at_the_next_reconcile(rt, steps, sim):
    gid, one = intent_of(rt, steps, seed=7)
    submit.record_answer(rt, one, Submitted(task_id="T1", status="processing"))
    o = Observation(
        "T2",
        "processing",
        seed=7,
        model="seedance-2.0",
        resolution="720p",
        ratio="16:9",
        duration=5,
        generate_audio=False,
        created_at=datetime.now(UTC),
    )
    with rt.engine.begin() as c:
        watch.flag_second(c, gid, 1, o)
        watch.hold_against(c, [o])
        [s] = reads.strays(c)
    assert s.kind == "second"


def test_drawn_second_becomes_foreign_when_seeds_are_not_shown(rt, steps, sim):
    gid, one = intent_of(rt, steps)
    submit.record_answer(rt, one, Submitted(task_id="T1", status="processing"))
    with rt.engine.begin() as c:
        watch.flag_second(c, gid, 1, Observation("T2", "processing", seed=one.seed))
        watch.hold_against(c, [Observation("T2", "processing", seed=None)])
        [s] = reads.strays(c)
    assert s.kind == "second"


def test_definite_refusals_use_up_the_attempts(rt, steps, sim):
    gid = steps.enqueue()
    for _ in range(4):
        _, i = intent_of(rt, steps, gid)
        with rt.engine.begin() as c:
            transitions.declined(c, gid, i.attempt, code="SERVICE_BUSY", waits_for="x", seconds=0)
    _, i = intent_of(rt, steps, gid)
    with rt.engine.begin() as c:
        transitions.doubt(c, gid, i.attempt, why="lost")
        transitions.absent(c, gid, i.attempt, max_attempts=rt.settings.max_attempts, detail={})
    v = steps.get(gid)
    assert v.status is Status.ACCEPTED, (v.status, v.error_message)


def test_presign_outage_fails_generations(make_runtime, sim, tmp_path, monkeypatch):
    import pathlib

    root = pathlib.Path(__file__).parents[2] / "examples" / "media"
    rt = make_runtime(media_roots=str(root))
    steps = Steps(rt)
    slept = []
    real = upload.backoff
    monkeypatch.setattr(upload, "backoff", lambda *a, **k: slept.append(real(*a, **k)) or 0.0)
    rt.client._calls._sleep = lambda s: None
    sim.fault("presign", "service_busy")
    gid = steps.enqueue(
        {
            "content": [
                {"type": "text", "text": "x"},
                {"type": "image_url", "image_url": "path:lake.jpg"},
            ]
        }
    )
    for _ in range(12):
        steps.once()
    v = steps.get(gid)
    assert v.status is not Status.FAILED, (
        v.error_code,
        v.error_message,
        f"after {sum(slept):.0f} s of pauses",
    )


def test_one_crash_looping_row_stops_all_claims(rt, steps, sim):
    gid, _v = running(rt, steps, sim)
    _other, _ = running(rt, steps, sim)
    sql(rt, "update generations set due_at=now()")
    sql(rt, "update generations set tries=32767 where id=:i", i=gid)
    assert len(steps.due()) == 2


def test_the_same_upload_message_twice_uploads_twice(make_runtime, sim):
    import pathlib

    root = pathlib.Path(__file__).parents[2] / "examples" / "media"
    rt = make_runtime(media_roots=str(root))
    steps = Steps(rt)
    steps.enqueue(
        {
            "content": [
                {"type": "text", "text": "x"},
                {"type": "image_url", "image_url": "path:lake.jpg"},
            ]
        }
    )
    [claim] = steps.admit()
    sim.fault("presign", "delay_before", seconds=0.7, times=2)
    ts = [threading.Thread(target=upload.run, args=(rt, claim.id, claim.lease)) for _ in range(2)]
    for t in ts:
        t.start()
    for t in ts:
        t.join()
    assert sum(u["puts"] for u in sim.uploads()) == 1
    assert len(sim.tasks()) == 1


def test_database_errors_print_signed_urls(rt, steps, sim):
    _gid, v = running(rt, steps, sim)
    secret = "https://cdn.example/v.mp4?X-Amz-Signature=SECRET"
    leaked = []
    for bad in ({"error_message": "a\x00"}, {"credit_cost": Decimal("-1")}):
        try:
            with rt.engine.begin() as c:
                transitions.apply_observation(
                    c, Observation(v.remote_task_id, "completed", video_url=secret, **bad)
                )
        except Exception as e:
            if "SECRET" in str(e):
                leaked.append(
                    (type(e).__name__, "orig too" if "SECRET" in str(e.orig) else "parameters")
                )
    assert not leaked, leaked


@pytest.mark.parametrize("deadline", ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-12:00"])
def test_a_deadline_at_the_end_of_time_breaks_every_listing(rt, steps, deadline):
    accept.run(rt, str(uuid.uuid4()), [], {"request": REQ, "deadline": deadline})
    steps.enqueue()
    with rt.engine.connect() as c:
        assert len(reads.newest(c)) == 2


def test_backoff_gate_never_grows(rt, steps):
    e = ApiError("m", endpoint="submit", disposition=None, code="SERVICE_BUSY", http_status=503)
    for _ in range(12):
        common.hold(rt, e)
        sql(rt, "update gates set opens_at = now() - interval '1 s' where name='backoff'")
    common.hold(rt, e)
    [(s,)] = sql(rt, "select extract(epoch from opens_at - now()) from gates where name='backoff'")
    assert s > 10, s


def test_get_that_shows_another_task_moves_another_generation(rt, steps, sim):
    a, va = running(rt, steps, sim)
    _b, _vb = running(rt, steps, sim)
    real = type(rt.client).get
    rt.client.get = lambda task_id, retry=False: real(rt.client, va.remote_task_id).model_copy(
        update={"task_id": "X-" + va.remote_task_id, "status": "completed"}
    )
    sql(
        rt,
        "update generations set due_at=now()-interval '1s', submitted_at = now() - interval '2 days' where id=:i",
        i=a,
    )
    for _ in range(3):
        steps.once()
        time.sleep(0.6)
    del rt.client.get
    assert steps.get(a).attention or steps.get(a).ended


def test_swapped_key_between_post_and_resolve_pays_twice(make_runtime, sim):
    sim.configure(api_keys=["sim-key", "other-key"])
    rt = make_runtime()
    steps = Steps(rt)
    _a, _ = running(rt, steps, sim)  # one known task on the right account
    sim.fault("submit", "lost", times=1)
    gid = steps.enqueue({"content": [{"type": "text", "text": "y [sim: seconds=100000]"}]})
    steps.until(gid, lambda v: v.status is Status.UNCERTAIN)
    other = Steps(make_runtime(api_key="other-key"))
    settle(rt, gid)
    sql(rt, "update submit_attempts set decided_at = decided_at - interval '1 minute'")
    other.once()
    v = steps.get(gid)
    assert v.status is Status.UNCERTAIN, (
        v.status,
        "the list of an account that shows none of our tasks proves nothing",
    )


def test_poison_without_any_death(rt, steps):
    """Ten messages that were lost (or waited in a worker's memory): nobody died of it."""
    from worker.dispatcher import Broker, Dispatcher

    gid = steps.enqueue()
    d = Dispatcher(rt, Broker(lambda s, c: None, lambda: None, lambda: 0), slots=4)
    for _ in range(12):
        d.tick()
        sql(rt, "update generations set due_at=now() where due_at is not null")
    assert steps.get(gid).status is not Status.FAILED, steps.get(gid).error_message


def test_expired_upload_path_is_sent(make_runtime, sim):
    import pathlib

    root = pathlib.Path(__file__).parents[2] / "examples" / "media"
    rt = make_runtime(media_roots=str(root))
    steps = Steps(rt)
    sim.fault("submit", "service_busy", times=1)
    gid = steps.enqueue(
        {
            "content": [
                {"type": "text", "text": "x"},
                {"type": "image_url", "image_url": "path:lake.jpg"},
            ]
        }
    )
    steps.once()
    assert steps.get(gid).status is Status.ACCEPTED
    sql(
        rt,
        "update uploads set uploaded_at = now()-interval '3 days', valid_until = now() - interval '2 days'",
    )
    sql(rt, "update generations set content_until = now() - interval '2 days', due_at=now()")
    sql(rt, "update gates set closed_at=null, reason=null, opens_at=null")
    [claim] = steps.admit()
    assert claim.stage is schedule.Stage.UPLOAD, claim


def test_credits_of_second_tasks_are_in_the_ledger(rt, steps):
    _gid, one = intent_of(rt, steps)
    submit.record_answer(rt, one, Submitted(task_id="T1", status="processing"))
    with rt.engine.begin() as c:
        transitions.apply_observation(c, Observation("T1", "completed", credit_cost=Decimal(9)))
        watch.hold_against(
            c, [Observation("T2", "completed", seed=one.seed, credit_cost=Decimal(9))]
        )
        [line] = reads.cost(c, ["tenant"])
    assert line.charged == 18, line


def test_list_without_video_url_completes_without_it(rt, steps):
    gid, one = intent_of(rt, steps)
    submit.record_answer(rt, one, Submitted(task_id="T1", status="processing"))
    with rt.engine.begin() as c:
        watch.hold_against(c, [Observation("T1", "completed", credit_cost=Decimal(9))])
    with rt.engine.begin() as c:
        transitions.apply_observation(
            c, Observation("T1", "completed", video_url="https://v/1.mp4?s")
        )
    assert steps.get(gid).video_url


def test_gate_probe_storm(rt, steps):
    """402 while the balance covers the estimate (credits reserved elsewhere): open, refused, open…"""
    sent = 0
    for _ in range(20):
        with rt.engine.begin() as c:
            if gates.sending(c).obstacle(Decimal(9)) is None:
                sent += 1
                gates.close(
                    c, gates.GateName.CREDIT, "402", probe_in=0.0, refused_estimate=Decimal(9)
                )
        with rt.engine.begin() as c:
            if gates.take_probe(c, every=30):
                gates.record_balance(c, total=Decimal(100), used=Decimal(0), remain=Decimal(50))
    assert sent <= 2, f"{sent} POSTs and probes without a pause"


def test_one_odd_task_keeps_the_rest_of_the_batch_undecided(rt, steps, sim):
    sim.fault("submit", "lost", times=2)
    ids = [
        steps.enqueue({"content": [{"type": "text", "text": f"b{i} [sim: seconds=100000]"}]})
        for i in range(2)
    ]
    for i in ids:
        steps.until(i, lambda v: v.status is Status.UNCERTAIN)
    bad, good = ids
    [t] = [t for t in sim.tasks() if "b0" in str(t["body"])]
    sim.change(t["task_id"], credit_cost="1e12")
    for i in ids:
        settle(rt, i)
    claims = {c.id: c.lease for c in steps.due()}
    resolve.run(rt, [(bad, claims[bad]), (good, claims[good])])
    assert steps.get(good).status is Status.RUNNING, steps.get(good).status


def test_a_drawn_seed_reused_by_the_producer_is_blamed_on_the_first(rt, steps, sim):
    d, one = intent_of(rt, steps)
    submit.record_answer(rt, one, Submitted(task_id="TD", status="processing"))
    with rt.engine.begin() as c:
        transitions.apply_observation(
            c, Observation("TD", "completed", seed=one.seed, credit_cost=Decimal(9))
        )
    # "the same again, with this seed": what a producer does with a seed that it liked
    p, _two = intent_of(rt, steps, seed=one.seed)
    with rt.engine.begin() as c:
        transitions.doubt(c, p, 1, why="lost")
        got = watch.hold_against(
            c,
            [
                Observation(
                    "TP",
                    "processing",
                    seed=one.seed,
                    model="seedance-2.0",
                    resolution="720p",
                    ratio="16:9",
                    duration=5,
                    generate_audio=False,
                    created_at=datetime.now(UTC),
                )
            ],
        )
        strays = reads.strays(c)
    assert strays[0].generation_id != d, (
        f"{got} flagged as a second (paid) task of the wrong generation"
    )


def test_bare_401_after_creation_pays_twice_with_seeds_shown_too(rt, steps, sim):
    sim.fault("submit", "bare_after", status=401, times=1)
    steps.enqueue()
    steps.once()
    from worker.upkeep import balance

    balance.run(rt)  # the probe, some seconds later: the key is good
    sql(rt, "update generations set due_at=now()")
    steps.once()
    assert len(sim.tasks()) == 1


def test_attempt_overflow(rt, steps, sim):
    gid, i = intent_of(rt, steps)
    with rt.engine.begin() as c:
        transitions.declined(c, gid, 1, code="SERVICE_BUSY", waits_for="x", seconds=0)
    sql(rt, "update generations set attempt=32767 where id=:i", i=gid)
    _, i = intent_of(rt, steps, gid)
    assert isinstance(i, Intent)


def test_not_sent_when_the_check_itself_fails(rt, steps, sim, monkeypatch):
    """The check could not be made (database away): nothing was written, yet it is `uncertain`."""

    def boom(conn, intent):
        raise sa.exc.OperationalError("select", {}, OSError("database away"))

    monkeypatch.setattr(submission, "may_still_send", boom)
    gid = steps.enqueue()
    steps.once()
    assert sim.received("submit") == 0
    assert steps.get(gid).status is Status.ACCEPTED, steps.get(gid).status


def test_mark_backoff_of_one_burst(rt, steps, sim):
    from api_client import ApiError
    from worker.stages import common

    e = ApiError("m", endpoint="submit", disposition=None, code="SERVICE_BUSY", http_status=503)
    for _ in range(50):  # fifty submits in flight meet one blip
        common.hold(rt, e)
    [(s,)] = sql(rt, "select extract(epoch from opens_at - now()) from gates where name='backoff'")
    assert s < 10, s


def test_an_unknown_status_is_told_once_and_ends_nothing(rt, steps, sim):
    gid, v = running(rt, steps, sim)
    for _ in range(2):
        with rt.engine.begin() as c:
            transitions.apply_observation(c, Observation(v.remote_task_id, "post_processing"))
    assert steps.get(gid).status is Status.RUNNING
    assert steps.history(gid).count("unknown_status") == 1


def test_a_cancel_that_races_a_decline_is_carried_out(rt, steps, sim):
    for order in range(2):
        gid, _intent = intent_of(rt, steps)
        both = [
            lambda c, gid=gid: transitions.cancel(c, gid),
            lambda c, gid=gid: transitions.declined(
                c, gid, 1, code="SERVICE_BUSY", waits_for="x", seconds=0
            ),
        ]
        started = threading.Event()

        def second(write=both[1 - order], started=started):
            with rt.engine.begin() as c:
                started.set()
                write(c)

        thread = threading.Thread(target=second)
        with rt.engine.begin() as c:
            both[order](c)
            thread.start()  # and waits for the row's lock
            started.wait(5)
        thread.join(10)
        assert steps.get(gid).status is Status.CANCELLED


def test_a_pause_while_the_clock_is_sampled_makes_the_window_wider():
    t0 = datetime(2026, 1, 1, tzinfo=UTC)
    paused = DatabaseClock(at=t0, asked=1000.0, answered=1005.0)
    skew = resolution.Skew.of_answer(
        date=t0 + timedelta(seconds=10),
        sent=paused.earliest(1009.9),
        received=paused.latest(1010.0),
    )
    attempt = resolution.Attempt(1, 5, True, t0 - timedelta(seconds=95), t0 - timedelta(seconds=5))
    ours = Observation("T", "processing", created_at=t0 - timedelta(seconds=94.8))
    case = resolution.Case(uuid.uuid4(), {}, (attempt,))
    assert not isinstance(resolution.judge(case, [ours], skew), resolution.Absent)
