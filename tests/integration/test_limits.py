"""What is shared between workers: the rate of requests, and how many tasks the provider takes."""

import os
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import ANY

import pytest
from sqlalchemy import text

from models import schedule
from models.flow_control import state as flow_state
from models.flow_control.rules import ConcurrencyLimit
from models.lifecycle import Status
from tests.integration import rows
from tests.integration.conftest import text_request
from tests.integration.invariants import laboratory
from tests.integration.test_dispatcher import Messages, dispatcher
from worker.stages import submit

ROOT = Path(__file__).parents[2]
LIMIT = 5


@pytest.fixture
def lab(make_runtime, sim, caplog):
    with laboratory(make_runtime, sim, caplog) as lab:
        yield lab


# --- how many tasks the provider takes ----------------------------------------------------------


def rounds(lab, ids, most=60):
    """Work like the dispatcher, with all that was admitted on its way, until all have ended."""
    one = dispatcher(lab, Messages(lab), slots=50)
    for _ in range(most):
        one.tick()
        for generation_id in ids:
            lab.settle(generation_id)
        lab.sim.advance(400)
        lab.sql("UPDATE generations SET due_at = now() WHERE due_at IS NOT NULL")
        if all(lab.get(i).ended for i in ids):
            return


@pytest.mark.parametrize("mode", ["refused", "created"])
def test_a_provider_that_takes_five_at_a_time(lab, mode):
    """Thirty wait. Each is made once; of refusals there are few, as each leaves one in doubt."""
    lab.sim.configure(max_concurrent=LIMIT, concurrency_mode=mode)
    lab.rt = lab.make_runtime(max_attempts=2)
    ids = [lab.enqueue(text_request(f"cat {n}")) for n in range(30)]
    claims = lab.admit(12, max_in_flight=50)
    for claim in claims:
        submit.run(lab.rt, [(claim.id, claim.lease)])
    with lab.rt.engine.connect() as conn:
        assert flow_state.read(conn).concurrency == ConcurrencyLimit(LIMIT, LIMIT + 1, ANY)
    refused = lab.posts - LIMIT
    assert refused == 1, "the others of the crowd were held before their POST"
    rounds(lab, ids)
    assert {lab.get(i).status for i in ids} == {Status.COMPLETED}
    assert len(lab.submitted_tasks()) == 30
    assert lab.posts <= 30 + refused + 1


def test_refusals_for_the_number_of_tasks_burn_no_attempts(lab):
    """Another user of the key has all the places: it waits, and is not failed."""
    lab.rt = lab.make_runtime(max_attempts=2)
    lab.sim.configure(max_concurrent=1, concurrency_mode="refused")
    lab.sim.inject(count=1, status="processing", seconds=100_000, age=3600)
    generation_id = lab.enqueue()
    for _ in range(4):
        lab.send_again(generation_id)
        assert lab.get(generation_id).status is Status.UNCERTAIN
        lab.resolve(generation_id)
    assert lab.get(generation_id).status is Status.ACCEPTED
    assert lab.outcomes(generation_id) == ["absent"] * 4
    assert {attempt.code for attempt in lab.attempts(generation_id)} == {
        "CONCURRENCY_LIMIT_REACHED"
    }
    lab.sim.configure(max_concurrent=9)
    assert lab.send_again(generation_id).status is Status.RUNNING
    lab.complete(generation_id)


def test_other_lost_answers_still_count_beside_them(lab):
    lab.rt = lab.make_runtime(max_attempts=2)
    generation_id = lab.enqueue()
    for kind in ("drop_before", "concurrency", "drop_before"):
        mode = {"mode": "refused"} if kind == "concurrency" else {}
        lab.sim.fault("submit", kind, times=1, **mode)
        lab.send_again(generation_id)
        lab.resolve(generation_id)
    view = lab.get(generation_id)
    assert (view.status, view.error_code) == (Status.FAILED, "SUBMIT_ATTEMPTS_EXHAUSTED")
    assert lab.posts == 3


# --- the rate of requests ----------------------------------------------------------------------

ASK = """
import sys, time
from worker.runtime import build
from worker.settings import load_settings

rt = build(load_settings())
print("ready", flush=True)
sys.stdin.readline()
ends = time.monotonic() + float(sys.argv[1])
while time.monotonic() < ends:
    rt.client.balance(retry=False)
rt.close()
"""
RATE = 20
SECONDS = 4


def test_two_processes_together_keep_the_rate(environment, sim):
    """Each asks as fast as it may; the provider's own log shows what came, of both."""
    env = {**os.environ, **environment, "SEEDANCE_RATE_LIMIT": f"{RATE}/second"}
    askers = [
        subprocess.Popen(
            [sys.executable, "-c", ASK, str(SECONDS)],
            cwd=ROOT,
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    try:
        for asker in askers:
            assert asker.stdout is not None
            assert asker.stdout.readline() == "ready\n"
        began = time.monotonic()
        for asker in askers:
            assert asker.stdin is not None
            asker.stdin.write("\n")
            asker.stdin.flush()
        for asker in askers:
            assert asker.wait(60) == 0
        took = time.monotonic() - began
    finally:
        for asker in askers:
            asker.kill()
            asker.communicate()
    log = [entry for entry in sim.requests(log=1000)["log"] if entry["endpoint"] == "balance"]
    assert len(log) <= RATE * (took + 1), "in all"
    times = sorted(entry["time"] for entry in log)
    # What was let through a second apart may arrive closer together on a busy machine.
    busiest = max(sum(at <= other < at + 1 for other in times) for at in times)
    assert busiest <= 1.6 * RATE
    assert len(log) > RATE, "and they were not simply slow"


# --- what admission costs ----------------------------------------------------------------------


def blocks(conn, **values):
    """How many blocks the query for who is next reads."""
    plan = conn.execute(
        text("EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) " + schedule._WAITING.text),
        {"free": 10, "ceiling": None, **values},
    ).scalar_one()
    root = plan[0]["Plan"]
    return root["Shared Hit Blocks"] + root["Shared Read Blocks"]


def test_what_admission_reads_does_not_grow_with_what_waits(postgres):
    with rows.fresh_database(postgres) as engine:
        read = {}
        for waiting in (100, 10_000, 40_000):
            with engine.begin() as conn:
                conn.execute(text("TRUNCATE generations CASCADE"))
                conn.execute(
                    text(
                        "INSERT INTO generations (id, status, request, tenant, estimated_cost,"
                        " due_at, created_at) SELECT gen_random_uuid(), 'accepted', '{}',"
                        " 't' || n % 3, 9, now(), now() - interval '1 day' + n * interval '1 ms'"
                        " FROM generate_series(1, CAST(:n AS int)) n"
                    ),
                    {"n": waiting},
                )
            with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
                conn.execute(text("VACUUM ANALYZE generations"))
                read[waiting] = blocks(conn)
        assert read[40_000] < read[100] + 100, read


def test_admission_behind_an_open_breaker_reads_nothing_of_what_waits(lab):
    statements = []
    lab.enqueue()
    with lab.rt.engine.connect() as conn:
        execute = conn.execute

        def listening(statement, *values, **options):
            statements.append(statement)
            return execute(statement, *values, **options)

        conn.execute = listening
        assert schedule.admit(conn, 10, max_in_flight=10, lease_seconds=60, ceiling=-1) == []
        assert schedule._WAITING not in statements
        assert schedule.admit(conn, 10, max_in_flight=10, lease_seconds=60, ceiling=None)
        assert schedule._WAITING in statements
