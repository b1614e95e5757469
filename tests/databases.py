"""Migrated databases for tests, emptied and used again: a copy of the template costs far more."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg

from models import workers  # noqa: F401  (its tables are emptied as well)
from models.base import Base
from models.flow_control import table  # noqa: F401  (likewise)
from worker.embedded_postgres import EmbeddedPostgres

TEMPLATE = "template_seedance"

CALM = "DELETE FROM flow_control"
"""A migrated database ramps its account up, since nothing is known of it; tests start calm."""

_SHAPE = """
    SELECT md5(string_agg(line, E'\\n' ORDER BY line)) FROM (
        SELECT format('%s %s %s', relname, relkind, relpersistence) AS line FROM pg_class
        WHERE relnamespace = 'public'::regnamespace
        UNION ALL
        SELECT format('%s %s %s %s %s', attrelid::regclass, attname, atttypid, attnotnull,
                      attidentity)
        FROM pg_attribute JOIN pg_class ON pg_class.oid = attrelid
        WHERE relnamespace = 'public'::regnamespace AND attnum > 0
        UNION ALL
        SELECT format('%s %s', conrelid::regclass, pg_get_constraintdef(oid)) FROM pg_constraint
        WHERE connamespace = 'public'::regnamespace
        UNION ALL
        SELECT format('%s %s %s', tgrelid::regclass, tgname, tgenabled) FROM pg_trigger
        WHERE NOT tgisinternal
        UNION ALL
        SELECT format('%s %s', proname, md5(prosrc)) FROM pg_proc
        WHERE pronamespace = 'public'::regnamespace
        UNION ALL
        SELECT array_to_string(setconfig, ' ') FROM pg_db_role_setting
        WHERE setdatabase = (SELECT oid FROM pg_database WHERE datname = current_database())
        UNION ALL
        SELECT spcname FROM pg_tablespace
        UNION ALL
        SELECT format('version %s', version_num) FROM alembic_version
    ) lines
"""
"""What a test may have changed beside rows; a database of another shape isn't used again."""

_MOST_BYTES = 40_000_000
"""Beyond this it's cheaper, and fairer to the next test, to begin with a new one."""


class Databases:
    """The databases of one server, lent to one test at a time."""

    def __init__(self, server: EmbeddedPostgres) -> None:
        self._server = server
        self._free: list[str] = []
        self._shape = self._ask(TEMPLATE)[0]

    @contextmanager
    def lend(self) -> Iterator[str]:
        """The address of an empty, migrated database."""
        name = self._free.pop() if self._free else self._new()
        try:
            yield self._server.url(name)
        finally:
            if self._empty(name):
                self._free.append(name)
            else:
                self._server.drop_database(name)

    def _new(self) -> str:
        name = f"test_{uuid.uuid4().hex[:12]}"
        self._server.create_database(name, template=TEMPLATE)
        return name

    def _connect(self, name: str) -> "psycopg.Connection[tuple[str, int]]":
        url = self._server.url(name).replace("+psycopg", "")
        return psycopg.connect(url, autocommit=True)

    def _ask(self, name: str) -> tuple[str, int]:
        with self._connect(name) as conn:
            row = conn.execute(
                f"SELECT ({_SHAPE}), pg_database_size(current_database())"
            ).fetchone()
        assert row is not None
        return row

    def _empty(self, name: str) -> bool:
        """Take back whatever the test wrote. False if it did more than write rows."""
        try:
            shape, size = self._ask(name)
            if shape != self._shape or size > _MOST_BYTES:
                return False
            with self._connect(name) as conn:
                # What still uses it, a killed worker say, must not write into the next test.
                conn.execute(
                    "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
                    " WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )
                # Neither foreign keys nor a trigger against deletion stand in the way.
                conn.execute("SET session_replication_role = replica")
                conn.execute(";".join(f"DELETE FROM {t}" for t in Base.metadata.tables))
                conn.execute("SELECT setval(seqrelid::regclass, seqstart, false) FROM pg_sequence")
        except psycopg.Error:
            return False
        return True
