"""Flow control as a worker knows it: what it caches, and which answers it reports."""

import logging
from decimal import Decimal

import pytest
from sqlalchemy import event, text

from api_client import ApiError, Disposition
from api_client.errors import AnswerLost, InsufficientCredit, InvalidApiKey
from models import schedule
from models.flow_control import evidence
from models.flow_control import state as flow_state
from models.flow_control.rules import RateLimit
from models.flow_control.state import FlowState
from models.wait_reasons import WaitReason
from tests.integration.invariants import laboratory
from worker import flow
from worker.flow import MAX_AGE, FlowMonitor
from worker.stages import common


@pytest.fixture
def lab(make_runtime, sim, caplog):
    with laboratory(make_runtime, sim, caplog) as lab:
        yield lab


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Monitor:
    """A monitor on a clock of the test's own, and how often it read the database."""

    def __init__(self, engine) -> None:
        self.clock = Clock()
        self.reads = 0
        self.monitor = FlowMonitor(engine, clock=self.clock)

        @event.listens_for(engine, "before_cursor_execute")
        def count(conn, cursor, statement, *rest):
            self.reads += "flow_control" in statement and statement.startswith("SELECT")

    def now(self) -> FlowState:
        return self.monitor.now()


@pytest.fixture
def known(lab) -> Monitor:
    return Monitor(lab.rt.engine)


def throttle(lab, retry_after: float = 30.0) -> FlowState:
    with lab.rt.engine.begin() as conn:
        return evidence.throttled(conn, measured=10.0, retry_after=retry_after, reason="429")


def error(
    code: str = "",
    *,
    status: int | None = 500,
    retry_after: float | None = None,
    endpoint: str = "get",
    kind: type[ApiError] = ApiError,
    disposition: Disposition = Disposition.RETRY,
) -> ApiError:
    return kind(
        "no",
        endpoint=endpoint,
        disposition=disposition,
        code=code,
        http_status=status,
        retry_after=retry_after,
    )


# --- the cache ----------------------------------------------------------------------------------


def test_state_is_read_once_within_its_age(lab, known):
    throttle(lab)
    known.reads = 0
    for _ in range(50):
        assert known.now().rate is not None
    assert known.reads == 1
    known.clock.now += MAX_AGE + 0.01
    known.now()
    known.now()
    assert known.reads == 2


def test_evidence_of_other_workers_is_seen_within_a_second(lab, known):
    assert known.now().calm
    throttle(lab)
    assert known.now().calm
    known.clock.now += MAX_AGE + 0.01
    assert known.now().resume_in > 29


def test_cached_state_ages_between_two_reads(known):
    known.monitor.update(FlowState(rate=RateLimit(7.0, 10.0, 0.0), resume_in=0.5))
    known.clock.now += 0.9
    found = known.now()
    assert found.resume_in == pytest.approx(-0.4)
    assert found.rate is not None
    assert found.rate.age == pytest.approx(0.9)
    assert known.reads == 0


def test_state_that_was_read_elsewhere_replaces_the_cached_one(known):
    known.now()
    known.monitor.update(FlowState(resume_in=5.0))
    assert known.now().resume_in == 5.0
    assert known.reads == 1


def test_without_the_database_the_known_state_ages_and_ends(lab, known, caplog):
    """A pause of five seconds lasts five seconds, also while the database is away."""
    throttle(lab, retry_after=5.0)
    assert known.now().resume_in > 4
    lab.sql("ALTER TABLE flow_control RENAME TO away")
    with caplog.at_level(logging.WARNING, logger=flow.log.name):
        for _ in range(5):
            known.clock.now += MAX_AGE + 0.01
            found = known.now()
    lab.sql("ALTER TABLE away RENAME TO flow_control")
    assert found.resume_in <= 0
    assert found.rate is not None
    assert found.rate.age > 5
    warnings = [r for r in caplog.records if r.name == flow.log.name]
    assert len(warnings) == 5, "once for each read that failed"


def test_failed_read_is_not_repeated_for_each_request(lab, known):
    lab.sql("ALTER TABLE flow_control RENAME TO away")
    for _ in range(20):
        assert known.now().calm
    lab.sql("ALTER TABLE away RENAME TO flow_control")
    assert known.reads == 1


# --- which answers throttle ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "throttles"),
    [
        (error("RATE_LIMIT_EXCEEDED", status=429), True),
        (error(status=429), True),  # without the envelope: a proxy before the provider, say
        (error("CONCURRENCY_LIMIT_REACHED", status=429), False),
        (error("CONCURRENCY_LIMIT_REACHED", status=429, retry_after=1.0), True),
        (error("SERVICE_BUSY", status=503), False),
        (error("SERVICE_BUSY", status=503, retry_after=2.0), True),
        (error(status=503, retry_after=0.0), True),
        (error("INTERNAL_ERROR"), False),
        (error(status=None), False),
        (error("RATE_LIMIT_EXCEEDED", status=429, endpoint="list"), True),
        (error("RATE_LIMIT_EXCEEDED", status=429, endpoint="submit"), True),
        (error(status=429, endpoint="storage"), False),
        (error(status=503, retry_after=60.0, endpoint="storage"), False),
        (error("RATE_LIMIT_EXCEEDED", status=429, retry_after=1.0, endpoint="storage"), False),
    ],
    ids=lambda value: str(value),
)
def test_answers_that_ask_for_fewer_requests(answer, throttles):
    assert flow.is_throttling(answer) is throttles


def test_throttling_is_stored_cached_and_logged_once(lab, caplog):
    answer = error("RATE_LIMIT_EXCEEDED", status=429, retry_after=7.0)
    with caplog.at_level(logging.WARNING, logger=flow.log.name):
        for _ in range(3):
            wait = flow.throttled(lab.rt.engine, lab.rt.flow, answer, measured=10.0)
    assert wait.reason is WaitReason.RATE
    assert 6 < lab.rt.flow.now().resume_in <= 7
    assert lab.flow().reason == "RATE_LIMIT_EXCEEDED"
    [warning] = [r for r in caplog.records if r.name == flow.log.name]
    assert "7 requests/s from now on, none for 7.0 s" in warning.getMessage()


def test_throttling_wakes_the_dispatchers_of_other_workers(lab):
    with lab.rt.engine.connect() as listener:
        listener.execute(text(f"LISTEN {schedule.CHANNEL}"))
        listener.commit()
        flow.throttled(lab.rt.engine, lab.rt.flow, error(status=429), measured=10.0)
        raw = listener.connection.dbapi_connection
        assert [n.channel for n in raw.notifies(timeout=10, stop_after=1)] == [schedule.CHANNEL]


# --- requests that are no submits ---------------------------------------------------------------


def test_throttled_poll_slows_every_request(lab):
    generation_id = lab.send()
    lab.sim.fault("get", "rate_limited", retry_after=30, times=1)
    lab.run(lab.claim(generation_id))
    found = lab.flow()
    assert found.resume_in > 25
    assert found.rate is not None
    assert lab.rt.flow.now().resume_in > 25
    waiting = lab.enqueue()
    assert lab.admit() == []
    assert lab.get(waiting).attempt == 0
    lab.calm()
    lab.complete(generation_id)
    lab.send_again(waiting)
    lab.end_tasks()


def test_storage_that_throttles_does_not_slow_the_provider(lab):
    answer = error(status=429, retry_after=60.0, endpoint="storage")
    assert common.report(lab.rt, answer) is None
    assert lab.flow() == FlowState()


def test_failed_poll_is_no_evidence(lab):
    assert common.report(lab.rt, error("INTERNAL_ERROR")) is None
    assert common.report(lab.rt, error(kind=AnswerLost, status=None)) is None
    assert lab.flow() == FlowState()
    assert lab.breakers() == set()


def test_rejected_key_opens_its_breaker_and_is_probed_later(lab):
    answer = error("INVALID_API_KEY", status=401, kind=InvalidApiKey, disposition=Disposition.HOLD)
    wait = common.report(lab.rt, answer)
    assert wait is not None
    assert (wait.reason, wait.detail) == (WaitReason.BREAKER, {"breaker": "api_key"})
    assert lab.breakers() == {"api_key"}
    assert lab.value("SELECT probe_at > now() FROM breakers")


def test_missing_credits_open_their_breaker_and_are_probed_at_once(lab):
    answer = error(
        "INSUFFICIENT_CREDIT", status=402, kind=InsufficientCredit, disposition=Disposition.HOLD
    )
    wait = flow.trip(lab.rt.engine, answer, probe_every=30.0, estimate=Decimal(9))
    assert wait is not None
    assert str(wait) == "circuit breaker credit"
    assert lab.value("SELECT probe_at <= now() FROM breakers")
    assert lab.value("SELECT refused_estimate FROM breakers") == 9


def test_other_answers_open_no_breaker(lab):
    assert flow.trip(lab.rt.engine, error("SERVICE_BUSY"), probe_every=30.0) is None
    assert lab.breakers() == set()


def test_state_that_is_read_equals_the_cached_one(lab):
    throttle(lab)
    with lab.rt.engine.connect() as conn:
        read = flow_state.read(conn)
    assert lab.rt.flow.now().resume_at == read.resume_at
