"""Totals and the present state: right whatever the order of commits, and never shrinking."""

import threading
import uuid
from collections.abc import Iterator
from decimal import Decimal

import pytest
from sqlalchemy import Connection, Engine, delete, insert, text, update

from models import intake, submission, transitions
from models.base import table_of
from models.flow_control import breakers, evidence
from models.flow_control.breakers import BreakerName
from models.lifecycle import Observation
from models.metrics import MetricCursor, present, pulses, totals
from models.metrics import definitions as d
from models.metrics.definitions import SUM, Total
from models.metrics.totals import Classes, Sample
from models.operating.tables import Pause
from models.submission import Timing
from models.tables import BalanceSnapshot, Generation
from tests.integration import rows
from tests.integration.conftest import text_request
from worker.embedded_postgres import EmbeddedPostgres
from worker.requests import new_generation

TIMING = Timing(10, 60, 15)
CLASSES = Classes(("seedance-2.0", "seedance-2.0-fast"), {"acme": "gold"})


@pytest.fixture
def engine(postgres: EmbeddedPostgres) -> Iterator[Engine]:
    """A database of the test's own: totals are of all that is in it."""
    with rows.fresh_database(postgres) as engine:
        yield engine


def accept(conn: Connection, **options: object) -> uuid.UUID:
    return intake.accept(conn, new_generation(text_request(), **options)).id


def admitted(conn: Connection, generation_id: uuid.UUID) -> int:
    """Admit it; returns its lease."""
    [moved] = transitions.admit(conn, [generation_id], lease_seconds=60)
    return moved.lease


def submit(conn: Connection, generation_id: uuid.UUID, task: str) -> None:
    made = submission.begin(
        conn, submission.Wanted(generation_id, admitted(conn, generation_id)), TIMING
    )
    assert isinstance(made, submission.Intent)
    transitions.submitted(
        conn,
        transitions.Answered(
            generation_id,
            made.attempt,
            remote_task_id=task,
            remote_status="pending",
            credit_cost=Decimal("9.5"),
            look_in=5,
        ),
    )


def complete(conn: Connection, task: str, **options: object) -> uuid.UUID:
    """One generation, from acceptance to its end."""
    generation_id = accept(conn, **options)
    submit(conn, generation_id, task)
    transitions.apply_observation(conn, Observation(task, "completed", credit_cost=Decimal("9.5")))
    return generation_id


def value(engine: Engine, total: Total, *labels: str, bucket: int = SUM) -> float:
    with engine.connect().execution_options(isolation_level="REPEATABLE READ") as conn:
        found = [
            s.value
            for s in totals.read(conn, CLASSES)
            if (s.name, s.labels, s.bucket) == (total.name, labels, bucket)
        ]
    assert len(found) <= 1, "one value for each series"
    return float(sum(found))


def fold(engine: Engine, **bound: int) -> bool:
    """Whether there is more to do."""
    with engine.begin() as conn:
        return totals.fold(conn, CLASSES, **bound)


def test_a_generation_is_counted_at_each_of_its_steps(engine: Engine) -> None:
    for folded in (False, True):
        with engine.begin() as conn:
            complete(conn, f"T{folded}", tenant="acme")
        if folded:
            assert not fold(engine)
    both = ("seedance-2.0", "gold")
    assert value(engine, d.ACCEPTED, *both) == 2
    assert value(engine, d.SUBMITTED, "answered", *both) == 2
    assert value(engine, d.FINISHED, "completed", "none", *both) == 2
    assert value(engine, d.TRANSITIONS, "intend") == 2
    assert value(engine, d.CHARGED, *both) == 19
    assert value(engine, d.ESTIMATED, *both) == 18
    assert value(engine, d.WAITING, "gold", bucket=0) == 2
    assert value(engine, d.RUNNING, "completed", "seedance-2.0", bucket=0) == 2


def test_labels_have_few_values(engine: Engine) -> None:
    with engine.begin() as conn:
        accept(conn, tenant="acme")
        accept(conn, tenant="somebody")
        odd = accept(conn, tenant="else")
        conn.execute(
            update(Generation)
            .where(table_of(Generation).c.id == odd)
            .values(request={**rows.REQUEST, "model": "made-up"})
        )
        lease = admitted(conn, odd)
        transitions.reject(conn, odd, lease, code="A_NEW_CODE_OF_THEIRS", message="?")
    assert value(engine, d.ACCEPTED, "seedance-2.0", "gold") == 1
    assert value(engine, d.ACCEPTED, "seedance-2.0", "other") == 1
    assert value(engine, d.FINISHED, "failed", "provider", "other", "other") == 1


def test_what_commits_late_is_counted_once(engine: Engine) -> None:
    """A producer's transaction stays open while others come and go: its rows have lower numbers."""
    with engine.connect() as late:
        accept(late, tenant="acme")
        for _ in range(2):
            with engine.begin() as conn:
                accept(conn)
            assert not fold(engine)
            assert value(engine, d.ACCEPTED, "seedance-2.0", "gold") == 0
        assert value(engine, d.ACCEPTED, "seedance-2.0", "other") == 2, "the others don't wait"
        late.commit()
    for _ in range(3):
        assert value(engine, d.ACCEPTED, "seedance-2.0", "gold") == 1
        assert value(engine, d.ACCEPTED, "seedance-2.0", "other") == 2
        assert value(engine, d.ESTIMATED, "seedance-2.0", "gold") == 9
        assert not fold(engine)


def test_nothing_shrinks_when_history_and_generations_are_deleted(engine: Engine) -> None:
    with engine.begin() as conn:
        complete(conn, "T1")
    fold(engine)
    with engine.begin() as conn:
        conn.execute(delete(Generation))
    assert value(engine, d.FINISHED, "completed", "none", "seedance-2.0", "other") == 1
    assert value(engine, d.CHARGED, "seedance-2.0", "other") == 9.5


def test_processes_that_fold_at_once_count_each_row_once(engine: Engine) -> None:
    stop = threading.Event()
    failures: list[BaseException] = []

    def folding() -> None:
        try:
            while not stop.is_set():
                fold(engine)
        except BaseException as error:  # noqa: BLE001  (told by the test)
            failures.append(error)

    def accepting() -> None:
        try:
            for _ in range(40):
                with engine.begin() as conn:
                    accept(conn)
        except BaseException as error:  # noqa: BLE001
            failures.append(error)

    folders = [threading.Thread(target=folding) for _ in range(2)]
    writers = [threading.Thread(target=accepting) for _ in range(4)]
    seen = []
    for thread in folders + writers:
        thread.start()
    while any(thread.is_alive() for thread in writers):
        seen.append(value(engine, d.TRANSITIONS, "accept"))
    stop.set()
    for thread in folders + writers:
        thread.join()
    assert failures == []
    assert seen == sorted(seen), "a counter never falls"
    assert value(engine, d.TRANSITIONS, "accept") == 160
    fold(engine)
    assert value(engine, d.TRANSITIONS, "accept") == 160


def test_much_is_counted_in_parts(engine: Engine) -> None:
    for _ in range(7):
        with engine.begin() as conn:
            accept(conn)
            accept(conn)  # two of one transaction
    rounds = 0
    while fold(engine, most=3):
        rounds += 1
        with engine.connect() as conn:
            kept = conn.execute(text("SELECT sum(value) FROM metric_totals WHERE name LIKE '%tr%'"))
            assert kept.scalar_one() % 2 == 0
        assert value(engine, d.TRANSITIONS, "accept") == 14, "what is left is counted anew"
    assert rounds >= 4
    assert value(engine, d.TRANSITIONS, "accept") == 14


def test_one_large_transaction_is_no_obstacle(engine: Engine) -> None:
    with engine.begin() as conn:
        for _ in range(5):
            accept(conn)
    rounds = 0
    while fold(engine, most=2):
        rounds += 1
        assert rounds < 10
    assert value(engine, d.TRANSITIONS, "accept") == 5


def test_a_restored_dump_is_counted_on(engine: Engine) -> None:
    """Another server has lower transaction numbers than those that were kept."""
    with engine.begin() as conn:
        accept(conn)
    fold(engine)
    far = 10**15
    with engine.begin() as conn:
        conn.execute(text("UPDATE generation_events SET txid = :t"), {"t": far})
        conn.execute(update(MetricCursor).values(txid=far + 1))
        accept(conn)  # as if written there, and not yet counted
        conn.execute(
            text("UPDATE generation_events SET txid = txid + :t WHERE txid < :t"), {"t": far}
        )
    assert not fold(engine)
    with engine.begin() as conn:
        accept(conn)
    for _ in range(2):
        assert value(engine, d.TRANSITIONS, "accept") == 3
        assert not fold(engine)


def test_what_was_there_before_the_metrics_is_not_counted(engine: Engine) -> None:
    with engine.begin() as conn:
        accept(conn)
        conn.execute(text("UPDATE generation_events SET txid = NULL"))
        accept(conn)
    assert value(engine, d.TRANSITIONS, "accept") == 1
    fold(engine)
    assert value(engine, d.TRANSITIONS, "accept") == 1


def test_processes_add_what_they_counted(engine: Engine) -> None:
    one = [Sample(d.REQUESTS.name, ("get", "ok"), SUM, Decimal(2))]
    with engine.begin() as conn:
        totals.add(conn, [*one, Sample(d.REQUESTS.name, ("get", "lost"), SUM, Decimal(0))])
        totals.add(conn, one)
        totals.add(conn, [])
    assert value(engine, d.REQUESTS, "get", "ok") == 4
    with engine.connect() as conn:
        kept = [s for s in totals.read(conn, CLASSES) if s.name == d.REQUESTS.name]
    assert [s.labels for s in kept] == [("get", "ok")], "nothing is kept of nothing"


def test_counting_reads_what_is_new_and_no_more(engine: Engine) -> None:
    with engine.begin() as conn:
        for n in range(300):
            accept(conn, tenant=f"t{n}")
    fold(engine)
    with engine.begin() as conn:
        conn.execute(text("ANALYZE"))
        conn.execute(text("SET LOCAL enable_seqscan = off"))
        cursor = conn.execute(text("SELECT max(txid) FROM metric_cursors")).scalar_one()
        for statement in totals._SOURCES.values():
            plan = "\n".join(
                conn.execute(
                    text(f"EXPLAIN {statement.text}"),
                    {**CLASSES.parameters, "low": cursor, "high": None, "passed": 0},
                ).scalars()
            )
            assert "_txid on" in plan, plan
            assert "Seq Scan" not in plan, plan


def test_the_present_state(engine: Engine) -> None:
    with engine.begin() as conn:
        accept(conn, tenant="acme")
        accept(conn, tenant="nobody")
        for n in range(3):
            submit(conn, accept(conn), f"R{n}")
        conn.execute(
            text(
                "UPDATE generations SET observed_at = now() - interval '70 s',"
                " due_at = now() - interval '9 s', attention = '?', attention_at = now()"
                " WHERE remote_task_id = 'R1'"
            )
        )
        breakers.trip(conn, BreakerName.API_KEY, "bad key", probe_in=30)
        evidence.throttled(conn, measured=10.0, retry_after=30.0, reason="429")
        conn.execute(
            insert(BalanceSnapshot).values(total_credits=100, used_credits=40, remain_credits=60)
        )
        conn.execute(insert(Pause).values(tenant="acme", reason="r", paused_by="me"))
        pulses.tell(conn, "reconcile")
        conn.execute(
            text(
                "INSERT INTO workers (name, locked, seen_at) VALUES ('w1', true, now()),"
                " ('w2', false, now()), ('gone', false, now() - interval '5 min')"
            )
        )
    with engine.connect() as conn:
        now = present.read(conn, CLASSES)
    assert now.generations == {
        ("accepted", "gold"): 1,
        ("accepted", "other"): 1,
        ("running", "other"): 3,
    }
    assert now.reserved == {("seedance-2.0", "other"): Decimal("27.0000")}
    assert now.due_oldest == pytest.approx(9, abs=5)
    assert now.attention == 1
    assert sum(now.ages) == 3
    assert now.ages[4] == 1, "between a minute and two"
    assert now.breakers == {"api_key": True, "credit": False}
    assert 20 < now.flow.resume_in <= 30
    assert now.flow.rate is not None
    assert now.flow.outage_age is None
    assert now.paused == {"all": 0, "tenant": 1}
    assert set(now.pulses) == {"reconcile"}
    assert now.dispatchers == 2
    assert now.balance is not None
    assert (now.balance.used, now.balance.remain) == (40, 60)
    assert now.notices["webhook"].pending == 0


def test_an_empty_database_has_figures_too(engine: Engine) -> None:
    with engine.connect() as conn:
        now = present.read(conn, CLASSES)
        assert totals.read(conn, CLASSES) == []
    assert now.generations == {}
    assert (now.due_oldest, now.attention, now.rejected, now.dispatchers) == (0, 0, 0, 0)


def test_processes_that_are_gone_are_forgotten_but_never_the_last(engine: Engine) -> None:
    with engine.begin() as conn:
        for process in ("w1", "w2"):
            pulses.tell(conn, "reconcile", process)
            conn.execute(text("UPDATE pulses SET at = at - interval '1 day'"))
        assert pulses.forget(conn, after=3600) == 1
        assert list(pulses.last(conn)) == ["reconcile"]
