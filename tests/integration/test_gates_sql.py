"""Gates in the database: closed for every worker, opened by themselves."""

from collections.abc import Iterator
from datetime import timedelta
from decimal import Decimal

import pytest
from sqlalchemy import Connection, Engine, func, select, update

from models import gates
from models.base import table_of
from models.gates import GateName
from models.tables import Gate
from tests.integration import rows

gate = table_of(Gate)


@pytest.fixture
def conn(engine: Engine) -> Iterator[Connection]:
    """A connection whose changes are undone at the end."""
    with engine.connect() as conn:
        yield conn


def closed(conn: Connection) -> set[GateName]:
    return {state.name for state in gates.sending(conn).closed}


def earlier(conn: Connection, seconds: float) -> None:
    """Let so much time pass."""
    shift = timedelta(seconds=seconds)
    times = {name: gate.c[name] - shift for name in ("closed_at", "opens_at", "probe_at")}
    conn.execute(update(gate).values(times))


def balance(conn: Connection, remain: str) -> list[GateName]:
    return gates.record_balance(conn, total=Decimal(100), used=Decimal(0), remain=Decimal(remain))


def test_at_first_nothing_is_closed(conn):
    assert gates.sending(conn) == gates.Sending((), None)
    assert not gates.open_(conn, GateName.CREDIT)


@pytest.mark.parametrize("name", GateName)
def test_closing_is_told_once_and_opening_too(conn, name):
    assert gates.close(conn, name, "first")
    assert not gates.close(conn, name, "second")
    assert closed(conn) == {name}
    assert gates.sending(conn).closed[0].reason == "second"
    assert gates.open_(conn, name)
    assert not gates.open_(conn, name)
    assert closed(conn) == set()


def test_a_backoff_opens_by_its_time_alone_and_is_told_again(conn):
    gates.close(conn, GateName.BACKOFF, "429", opens_in=30)
    earlier(conn, 29)
    assert closed(conn) == {GateName.BACKOFF}
    earlier(conn, 1)
    assert closed(conn) == set()
    assert gates.close(conn, GateName.BACKOFF, "429", opens_in=30), "it was open in between"
    assert gates.failures(conn, GateName.BACKOFF) == 2


def test_a_shorter_wait_does_not_shorten_a_longer_one(conn):
    gates.close(conn, GateName.BACKOFF, "Retry-After: 60", opens_in=60)
    gates.close(conn, GateName.BACKOFF, "503", opens_in=1)
    [state] = gates.sending(conn).closed
    assert state.opens_at - rows.db_now(conn) == timedelta(seconds=60)


def test_a_backoff_is_forgotten_when_its_time_is_long_up(conn):
    gates.close(conn, GateName.BACKOFF, "503", opens_in=10)
    earlier(conn, 10 + 59)
    gates.forget(conn, after=60)
    assert gates.failures(conn, GateName.BACKOFF) == 1
    earlier(conn, 2)
    gates.forget(conn, after=60)
    assert gates.failures(conn, GateName.BACKOFF) == 0


def test_forgetting_does_not_open_the_other_gates(conn):
    for name in (GateName.API_KEY, GateName.CREDIT):
        gates.close(conn, name, "why", opens_in=1)
    earlier(conn, 1000)
    gates.forget(conn, after=1)
    assert conn.execute(select(func.count()).where(gate.c.closed_at.is_not(None))).scalar_one() == 2


def test_each_probe_is_handed_out_once(conn):
    gates.close(conn, GateName.API_KEY, "401", probe_in=30)
    assert gates.take_probe(conn, every=30) == []
    earlier(conn, 30)
    assert gates.take_probe(conn, every=30) == [GateName.API_KEY]
    assert gates.take_probe(conn, every=30) == []
    earlier(conn, 30)
    assert gates.take_probe(conn, every=30) == [GateName.API_KEY]


def test_refusals_do_not_put_the_probe_off(conn):
    gates.close(conn, GateName.API_KEY, "401", probe_in=30)
    earlier(conn, 20)
    gates.close(conn, GateName.API_KEY, "401", probe_in=30)
    earlier(conn, 10)
    assert gates.take_probe(conn, every=30) == [GateName.API_KEY]


def test_an_open_gate_is_not_probed(conn):
    gates.close(conn, GateName.API_KEY, "401", probe_in=0)
    gates.open_(conn, GateName.API_KEY)
    assert gates.take_probe(conn, every=30) == []


def test_two_workers_share_a_probe(engine):
    with engine.begin() as conn:
        gates.close(conn, GateName.CREDIT, "402", probe_in=-1)
    with engine.connect() as first, engine.connect() as second:
        taken = gates.take_probe(first, every=30)
        first.commit()
        assert taken + gates.take_probe(second, every=30) == [GateName.CREDIT]
    with engine.begin() as conn:
        conn.execute(gate.delete())


def test_an_answered_balance_shows_that_the_key_is_good(conn):
    gates.close(conn, GateName.API_KEY, "401")
    gates.close(conn, GateName.BACKOFF, "503", opens_in=60)
    assert balance(conn, "0") == [GateName.API_KEY]
    assert closed(conn) == {GateName.BACKOFF}


@pytest.mark.parametrize(("remain", "opens"), [("19.9999", False), ("20", True), ("500", True)])
def test_credits_for_what_was_refused_open_the_gate(conn, remain, opens):
    gates.close(conn, GateName.CREDIT, "402", refused_estimate=Decimal(20))
    assert balance(conn, remain) == [GateName.CREDIT] * opens
    assert (GateName.CREDIT in closed(conn)) is not opens


def test_the_cheapest_refusal_counts(conn):
    for estimate in (20, 5, 50):
        gates.close(conn, GateName.CREDIT, "402", refused_estimate=Decimal(estimate))
    assert gates.sending(conn).closed[0].refused_estimate == 5


def test_a_gate_that_opened_forgets_what_was_refused(conn):
    gates.close(conn, GateName.CREDIT, "402", refused_estimate=Decimal(5))
    gates.open_(conn, GateName.CREDIT)
    gates.close(conn, GateName.CREDIT, "402", refused_estimate=Decimal(50))
    [state] = gates.sending(conn).closed
    assert state.refused_estimate == 50
    assert state.failures == 2, "how often it closed is kept: it stays closed for longer"


def test_the_latest_balance_is_what_remains(engine):
    with engine.begin() as conn:
        gates.close(conn, GateName.CREDIT, "402", refused_estimate=Decimal(50))
    for remain in ("40", "30"):
        with engine.begin() as conn:
            balance(conn, remain)
    with engine.begin() as conn:
        assert gates.sending(conn).remaining == 30
        conn.execute(gate.delete())
