"""Connections to the database: checked when they were idle, not for each transaction."""

import contextlib
from types import SimpleNamespace

from sqlalchemy import text

from models import database
from worker.runtime import TRUSTED


def test_what_a_message_does_in_a_row_checks_its_connection_once(rt, monkeypatch):
    now, checks = [1000.0], []
    monkeypatch.setattr(database, "time", SimpleNamespace(monotonic=lambda: now[0]))
    check = rt.engine.dialect.do_ping
    monkeypatch.setattr(rt.engine.dialect, "do_ping", lambda c: (checks.append(1), check(c))[1])

    def use():
        with rt.engine.begin() as conn:
            conn.execute(text("SELECT 1"))

    for _ in range(5):
        use()
        now[0] += TRUSTED / 2
    assert checks == []
    now[0] += 2 * TRUSTED
    use()
    assert checks == [1]


def test_an_idle_connection_that_died_is_replaced(rt, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(database, "time", SimpleNamespace(monotonic=lambda: now[0]))
    with rt.engine.begin() as conn:
        old = conn.execute(text("SELECT pg_backend_pid()")).scalar_one()
    another = database.make_engine(rt.settings.database_url)
    with contextlib.closing(another.connect()) as conn:
        conn.execute(text("SELECT pg_terminate_backend(:old, 5000)"), {"old": old})
    another.dispose()
    now[0] += 2 * TRUSTED
    with rt.engine.begin() as conn:
        assert conn.execute(text("SELECT pg_backend_pid()")).scalar_one() != old
