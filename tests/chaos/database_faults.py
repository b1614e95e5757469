"""Making PostgreSQL fail on purpose, in the ways in which it fails under load."""

import contextlib
from collections.abc import Iterator

import psycopg
from sqlalchemy import make_url

TABLES = ("generations", "submit_attempts", "uploads", "breakers", "flow_control")

_FUNCTION = """
CREATE OR REPLACE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF random() < {share} THEN
        RAISE EXCEPTION '{message}' USING ERRCODE = '{code}';
    END IF;
    RETURN NEW;
END $$
"""


def connect(url: str) -> psycopg.Connection[tuple[object, ...]]:
    """A connection past SQLAlchemy, to the address that a service uses."""
    plain = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    return psycopg.connect(plain, autocommit=True, connect_timeout=5)


def as_user(url: str, user: str) -> str:
    """The same database for another role."""
    return make_url(url).set(username=user).render_as_string(hide_password=False)


def add_serializable_user(url: str, name: str = "serializable") -> str:
    """A role whose transactions are SERIALIZABLE. Returns the database's address for it."""
    with connect(url) as conn:
        known = conn.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", (name,)).fetchone()
        if known is None:
            conn.execute(f"CREATE ROLE {name} SUPERUSER LOGIN")
            conn.execute(f"ALTER ROLE {name} SET default_transaction_isolation = 'serializable'")
    return as_user(url, name)


def statements_time_out(url: str, share: float) -> None:
    """From now on so many of the writes are cancelled as by `statement_timeout`."""
    _fail(url, "chaos_statement", share, "canceling statement due to statement timeout", "57014")


def commits_fail(url: str, share: float) -> None:
    """From now on so many of the writing transactions fail at COMMIT, as SERIALIZABLE ones do."""
    message = "could not serialize access due to read/write dependencies among transactions"
    _fail(url, "chaos_commit", share, message, "40001", constraint=True)


def _fail(
    url: str, name: str, share: float, message: str, code: str, *, constraint: bool = False
) -> None:
    with connect(url) as conn:
        conn.execute("SET lock_timeout = '5s'")
        conn.execute(_FUNCTION.format(name=name, share=share, message=message, code=code))
        for table in TABLES:
            conn.execute(f"DROP TRIGGER IF EXISTS {name} ON {table}")
            when = (
                f"CREATE CONSTRAINT TRIGGER {name} AFTER INSERT OR UPDATE ON {table}"
                " DEFERRABLE INITIALLY DEFERRED"
                if constraint
                else f"CREATE TRIGGER {name} BEFORE INSERT OR UPDATE ON {table}"
            )
            # A constraint is of rows; what times out is a statement.
            each = "ROW" if constraint else "STATEMENT"
            conn.execute(f"{when} FOR EACH {each} EXECUTE FUNCTION {name}()")


def mend(url: str) -> None:
    """Nothing fails any more."""
    with connect(url) as conn:
        conn.execute("SET lock_timeout = '5s'")
        for name in ("chaos_statement", "chaos_commit"):
            for table in TABLES:
                conn.execute(f"DROP TRIGGER IF EXISTS {name} ON {table}")


def cut_connections(url: str) -> int:
    """End every other session of the database. Returns how many there were."""
    with connect(url) as conn:
        cut = conn.execute(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        ).fetchone()
    return int(str(cut[0])) if cut else 0


@contextlib.contextmanager
def failing(url: str, how: str, share: float) -> Iterator[None]:
    """`statements_time_out` or `commits_fail` for the length of a block."""
    {"statements": statements_time_out, "commits": commits_fail}[how](url, share)
    try:
        yield
    finally:
        mend(url)
