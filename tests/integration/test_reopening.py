"""After a storm: one POST first, then more and more, over all workers; and back at new trouble."""

import itertools
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from models import gates, reads, schedule, submission, waiting
from models.gates import GateName, Reopening
from models.lifecycle import Status
from models.submission import Held, Intent
from tests.brokers import broker_with
from tests.integration.conftest import text_request
from tests.integration.invariants import laboratory
from tests.integration.test_dispatcher import Messages, dispatcher, running, until
from worker.checkup import postgres
from worker.cli import watch
from worker.dispatcher import Dispatcher
from worker.stages import common, submit


@pytest.fixture
def lab(make_runtime, sim, caplog):
    with laboratory(make_runtime, sim, caplog, max_in_flight=500) as lab:
        yield lab


def storm_is_over(lab, *, closed=1):
    """The gate was closed, so many times, and its time is just up."""
    for _ in range(closed):
        with lab.rt.engine.begin() as conn:
            gates.close(conn, GateName.BACKOFF, "SERVICE_BUSY", opens_in=60)
        time_is_up(lab)


def time_is_up(lab):
    lab.sql("UPDATE gates SET opens_at = now() - interval '1 ms' WHERE opens_at > now()")


def state(lab):
    with lab.rt.engine.connect() as conn:
        return gates.reopening(conn)


def let_in(lab):
    """Admit as a dispatcher does."""
    with lab.rt.engine.begin() as conn:
        ceiling = gates.sending(conn).ceiling
        return schedule.admit(conn, 100, max_in_flight=500, lease_seconds=60, ceiling=ceiling)


FAILURES = "SELECT coalesce(max(failures), 0) FROM gates"


def intend(rt, claim):
    with rt.engine.begin() as conn:
        return submission.begin(conn, submission.Wanted(claim.id, claim.lease), rt.settings.timing)


@pytest.mark.parametrize(
    ("well", "pending", "allowed"),
    [(0, 0, 1), (0, 1, 0), (1, 0, 2), (1, 1, 1), (3, 0, 4), (3, 9, 0), (63, 60, 4)],
)
def test_what_is_allowed(well, pending, allowed):
    assert Reopening("503", well, pending).allowed_now == allowed


def test_it_doubles_with_each_round_of_answers(lab):
    for n in range(40):
        lab.enqueue(text_request(f"cat {n}"))
    storm_is_over(lab)
    rounds = []
    while claims := let_in(lab):
        assert let_in(lab) == [], "nobody else until they are answered"
        rounds.append(len(claims))
        for claim in claims:
            submit.run(lab.rt, [(claim.id, claim.lease)])
    assert rounds == [1, 2, 4, 8, 16, 9]
    assert lab.posts == 40
    lab.end_tasks()


def test_an_answer_that_is_missing_holds_one_place_and_not_for_ever(lab):
    for n in range(3):
        lab.enqueue(text_request(f"cat {n}"))
    storm_is_over(lab)
    [claim] = let_in(lab)
    assert isinstance(intend(lab.rt, claim), Intent)  # and its worker dies
    assert let_in(lab) == []
    lab.sql("UPDATE submit_attempts SET started_at = started_at - interval '61 s'")
    lab.sql("UPDATE gates SET opens_at = opens_at - interval '90 s'")
    assert len(let_in(lab)) == 1


def test_what_was_let_in_before_the_storm_waits_as_well(lab):
    """Admitted, uploading, and ready when the gate's time is up: not all of them at once."""
    claims = [lab.start(text_request(f"cat {n}")) for n in range(12)]
    storm_is_over(lab)
    begun = [intend(lab.rt, claim) for claim in claims]
    assert [type(one) for one in begun] == [Intent] + [Held] * 11
    held = lab.get(claims[-1].id)
    assert held.status is Status.ACCEPTED
    assert held.waits_for == "the ramp-up after SERVICE_BUSY: at most 1 at a time"


def test_two_that_count_at_the_same_moment_are_not_both_the_first(lab):
    for n in range(8):
        lab.sql("DELETE FROM gates")
        claims = [lab.start(text_request(f"cat {n} {i}")) for i in range(4)]
        storm_is_over(lab)
        start = threading.Barrier(4)

        def one(claim, start=start):
            start.wait(10)
            return intend(lab.rt, claim)

        with ThreadPoolExecutor(4) as pool:
            begun = list(pool.map(one, claims))
        assert sum(isinstance(result, Intent) for result in begun) == 1


@pytest.mark.parametrize("kind", ["service_busy", "rate_limited", "bare"])
def test_trouble_that_returns_closes_it_for_longer(lab, kind):
    """Also a single 5xx without an envelope, which alone would close nothing."""
    for n in range(6):
        lab.enqueue(text_request(f"cat {n}"))
    waits = []
    lab.sim.fault("submit", kind)
    storm_is_over(lab)
    for _ in range(4):
        [claim] = let_in(lab)
        submit.run(lab.rt, [(claim.id, claim.lease)])
        assert lab.gates() == {"backoff"}
        assert let_in(lab) == []
        waits.append(float(lab.value("SELECT extract(epoch FROM opens_at - now()) FROM gates")))
        time_is_up(lab)
        lab.sql("UPDATE generations SET due_at = now() WHERE status = 'accepted'")
    # Each is at least half of what it can be, which doubles.
    assert all(wait > 2.0**n * 1.9 for n, wait in enumerate(waits)), waits
    assert waits[3] > waits[0]
    assert lab.posts == 4, "one for each time that it was tried"
    lab.sim.clear_faults()


def gate_opens(lab):
    """So much time passes that the backoff gate's is just up."""
    lab.sql(
        "UPDATE generations SET due_at = due_at - (SELECT opens_at - now() FROM gates)"
        " WHERE status = 'accepted'"
    )
    time_is_up(lab)


def test_one_that_is_refused_again_and_again_does_not_hold_up_the_others(lab):
    """The provider is well, but for one request: whoever is tried first must not always be it."""
    poison = lab.enqueue(text_request("poison"), priority=9)
    others = [lab.enqueue(text_request(f"cat {n}")) for n in range(5)]
    lab.sim.fault("submit", "service_busy", match="poison", retry_after=30)
    storm_is_over(lab)
    for _ in range(5):
        for claim in let_in(lab):
            submit.run(lab.rt, [(claim.id, claim.lease)])
        if lab.gates():
            gate_opens(lab)
    with lab.rt.engine.connect() as conn:
        views = reads.get_many(conn, [poison, *others])
    assert {views[one].status for one in others} == {Status.RUNNING}
    assert views[poison].status is Status.ACCEPTED
    lab.sim.clear_faults()
    lab.sql("UPDATE generations SET due_at = now() WHERE status = 'accepted'")
    [claim] = let_in(lab)
    submit.run(lab.rt, [(claim.id, claim.lease)])
    assert lab.value("SELECT count(*) FROM generations WHERE status = 'running'") == 6


def test_a_short_retry_after_is_not_believed_again_and_again(lab):
    lab.sim.fault("submit", "service_busy", retry_after=1)
    lab.send()
    assert float(lab.value("SELECT extract(epoch FROM opens_at - now()) FROM gates")) <= 1
    storm_is_over(lab, closed=5)
    lab.enqueue(text_request("another"))
    [claim] = let_in(lab)
    submit.run(lab.rt, [(claim.id, claim.lease)])
    assert float(lab.value("SELECT extract(epoch FROM opens_at - now()) FROM gates")) > 20
    lab.sim.clear_faults()


def test_it_says_so_everywhere(lab):
    ids = [lab.enqueue(text_request(f"cat {n}")) for n in range(5)]
    storm_is_over(lab)
    said = "re-opening after SERVICE_BUSY: 1 at a time"
    with lab.rt.engine.connect() as conn:
        summary = reads.summary(conn)
        assert summary.gates == {}
        assert summary.slowed == (said,)
        assert said in watch.line(summary)
        assert waiting.current(conn, lab.get(ids[3]), position=True).waits_for == (
            f"a free slot: 0 in flight, 3 ahead of it, {said}"
        )
        told = [check for check in postgres._rows(conn, lab.rt.settings) if check.name == "gates"]
    assert [check.found for check in told] == [said]


def test_after_enough_answers_it_is_open_and_told_once(lab, monkeypatch, caplog):
    monkeypatch.setattr(gates, "REOPENED", 3)
    for n in range(9):
        lab.enqueue(text_request(f"cat {n}"))
    storm_is_over(lab)
    first, second = dispatcher(lab, Messages(lab)), dispatcher(lab, Messages(lab))
    for one in (first, second, first, second):
        one._relaxed = -1e9
        one.tick()
    assert state(lab) is None
    told = [record for record in caplog.records if "gate backoff is open again" in record.message]
    assert len(told) == 1
    assert lab.value(FAILURES) == 1, "forgotten only when it stays well"
    lab.end_tasks()


def test_with_nobody_waiting_it_opens_by_its_time(lab):
    storm_is_over(lab)
    assert state(lab) is not None
    lab.sql("UPDATE gates SET opens_at = now() - interval '1 h'")
    with lab.rt.engine.begin() as conn:
        assert gates.forget(conn, after=600) == [GateName.BACKOFF]
        assert gates.forget(conn, after=600) == []
    assert state(lab) is None


class Threads(Messages):
    """A broker whose messages are worked on by threads, as a worker does."""

    def __init__(self, lab, pool):
        super().__init__(lab)
        self._pool, self._waiting = pool, 0

    def broker(self):
        return broker_with(
            publish=self.publish,
            probe=self.probe,
            observe=self.observe,
            depth=lambda: self._waiting,
        )

    def publish(self, stage, claims):
        self._waiting += 1
        self._pool.submit(self._work, stage, claims)

    def _work(self, stage, claims):
        self._waiting -= 1
        self.deliver(stage, claims)


N = 200
THREADS = 8


def test_a_storm_over_two_hundred_that_wait(lab, caplog):
    """Two workers. The provider sees a handful of POSTs in the storm, and each once after it."""
    lab.sim.fault("submit", "service_busy")
    lab.rt = lab.make_runtime(max_in_flight=500, poll_min=30, poll_max=30, tick=0.05, lease=60)
    ids = [lab.enqueue(text_request(f"cat {n}")) for n in range(N)]
    with ThreadPoolExecutor(THREADS) as pool:
        both = [
            Dispatcher(lab.rt, Threads(lab, pool).broker(), slots=THREADS // 2) for _ in range(2)
        ]
        with running(*both):
            until(lambda: lab.value(FAILURES) >= 2, timeout=60)
            lab.sim.clear_faults()
            during = lab.posts
            closings = lab.value(FAILURES)
            until(lambda: lab.posts >= during + N, timeout=120)
            until(
                lambda: lab.value("SELECT count(*) FROM generations WHERE status = 'running'") == N,
                timeout=60,
            )
    # The first to find out are those on their way; afterwards each re-opening tries with one.
    assert during <= THREADS + closings
    assert lab.posts - during <= N + THREADS, "each is sent once when it is over"
    assert {lab.get(i).status for i in ids} == {Status.RUNNING}
    closed = [r for r in caplog.records if "gate backoff is closed" in r.message]
    assert len(closed) == lab.value(FAILURES)
    lab.end_tasks()


def test_lost_answers_in_a_row_close_the_gate_once(lab, caplog):
    """Each 502 leaves one in doubt: after three in a minute nothing more is sent into it."""
    lab.sim.fault("submit", "bare_after", status=502)
    for n in range(submit.TROUBLE_DOUBTS):
        assert lab.gates() == set()
        assert lab.get(lab.send(f"cat {n}")).status is Status.UNCERTAIN
    # Each is counted once its outcome is recorded: the next one closes the gate.
    lab.send("one more")
    assert lab.gates() == {"backoff"}
    held = lab.send("held")
    assert lab.get(held).waits_for == "the end of the backoff"
    assert lab.posts == submit.TROUBLE_DOUBTS + 1
    told = [r for r in caplog.records if r.name == common.log.name and "is closed" in r.message]
    assert len(told) == 1
    lab.sim.clear_faults()
    for row in lab.sql("SELECT id FROM generations WHERE status = 'uncertain'"):
        lab.resolve(row.id)
    lab.end_tasks()


def test_lost_answers_of_long_ago_or_without_a_5xx_close_nothing(lab):
    for n in range(submit.TROUBLE_DOUBTS):
        lab.in_doubt(f"cat {n}", kind="lost")
    lab.in_doubt("lost as well", kind="lost")
    assert lab.gates() == set(), "a connection that breaks is no 5xx"
    lab.sql("UPDATE submit_attempts SET started_at = started_at - interval '61 s'")
    lab.in_doubt("a 5xx", kind="bare_after")
    assert lab.gates() == set()
    for row in lab.sql("SELECT id FROM generations WHERE status = 'uncertain'"):
        lab.resolve(row.id)
    lab.end_tasks()


def test_many_that_close_a_gate_at_once_tell_it_once(lab, caplog):
    """Each of them was refused; the one whose UPDATE closed it says so."""
    lab.sim.change_account(lab.sim.api_key, enabled=False)
    for _ in range(4):
        caplog.clear()
        lab.sql("DELETE FROM gates")
        claims = [lab.start(text_request(f"cat {n}")) for n in range(6)]
        start = threading.Barrier(6)

        def one(claim, start=start):
            start.wait(10)
            submit.run(lab.rt, [(claim.id, claim.lease)])

        with ThreadPoolExecutor(6) as pool:
            list(pool.map(one, claims))
        told = [r for r in caplog.records if "gate api_key is closed" in r.message]
        assert len(told) == 1
        assert lab.value(FAILURES) == 1


def test_probes_come_more_and_more_seldom(lab):
    with lab.rt.engine.begin() as conn:
        gates.close(conn, GateName.API_KEY, "401", probe_in=30)
    at, probes = 0, []
    while at < 4 * 3600:
        at += 50
        lab.sql(
            "UPDATE gates SET closed_at = closed_at - interval '50 s',"
            " probe_at = probe_at - interval '50 s'"
        )
        with lab.rt.engine.begin() as conn:
            if gates.take_probe(conn, every=30):
                probes.append(at)
                # What the probe hears closes the gate again, and brings no probe forward.
                gates.close(conn, GateName.API_KEY, "401", probe_in=30)
    pauses = [b - a for a, b in itertools.pairwise(probes)]
    assert pauses == sorted(pauses)
    assert pauses[0] == 50
    assert pauses[-1] == 300
    assert len(probes) < 60, "of 480 with an even pause"
