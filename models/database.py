"""Reaching the database: one address form, one engine, one way to begin.

An address may say that it leads through PgBouncer, in transaction mode, and where PostgreSQL
itself is: `…@pgbouncer:6432/db?pooler=transaction&direct=db-host:5432`. Then nothing of a session
is relied on, but where a session is needed: LISTEN and migrations go directly.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
from psycopg.conninfo import make_conninfo
from sqlalchemy import URL, Connection, Engine, ExceptionContext, create_engine, event, make_url
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.pool import ConnectionPoolEntry

DRIVER = "postgresql+psycopg"

SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
"""How TLS is used, by libpq; only the last two check the server's certificate."""


_POOLER = "pooler"
_DIRECT = "direct"
_OURS = (_POOLER, _DIRECT)

LIMITS = {
    "statement_timeout": "30s",
    "lock_timeout": "10s",
    "idle_in_transaction_session_timeout": "60s",
}
"""What a session is bound by. Behind a pooler the role has to say so (docs/scale.md)."""


def normalise_url(url: str) -> str:
    """The address with the psycopg driver: `postgres://` and `postgresql://` mean it too.

    Raises ValueError for anything that is not a PostgreSQL address; its password is not shown.
    """
    scheme, separator, rest = url.partition("://")
    if not separator or scheme not in ("postgres", "postgresql", DRIVER):
        raise ValueError(
            f"is not a PostgreSQL address (scheme {scheme[:20]!r});"
            " write postgresql+psycopg://user:password@host:5432/database"
        )
    parsed: URL = make_url(f"{DRIVER}://{rest}")
    if not parsed.database:
        raise ValueError("names no database; write it after the last slash")
    _check_pooler(parsed)
    _check_options(parsed)
    return parsed.render_as_string(hide_password=False)


def pooled(url: str | URL) -> bool:
    """Whether an address leads through a pooler that hands out a session for a transaction."""
    return _POOLER in make_url(url).query


def dsn(url: str | URL) -> str:
    """An address as libpq takes it."""
    given = make_url(url).difference_update_query(_OURS).set(drivername="postgresql")
    place, mark, query = given.render_as_string(hide_password=False).partition("?")
    # SQLAlchemy writes a space as a plus there, which libpq takes for a plus.
    return place.replace(" ", "%20") + mark + query.replace("+", "%20")


def direct_dsn(url: str | URL) -> str:
    """The same to PostgreSQL itself, for what needs a session of its own."""
    return dsn(direct(url))


def direct(url: str | URL) -> URL:
    """The address of PostgreSQL itself, with the same user, database and options."""
    given = make_url(url)
    place = given.query.get(_DIRECT)
    plain = given.difference_update_query(_OURS)
    if not isinstance(place, str):
        return plain
    host, port = _place(place)
    if host.startswith("/"):
        return URL.create(
            plain.drivername,
            username=plain.username,
            password=plain.password,
            database=plain.database,
            query={**plain.query, "host": host, "port": port},
        )
    return plain.set(host=host, port=int(port))


def _place(given: str) -> tuple[str, str]:
    host, colon, port = given.rpartition(":")
    return (host, port) if colon and port.isdigit() else (given, "5432")


def _check_pooler(url: URL) -> None:
    kind, place = url.query.get(_POOLER), url.query.get(_DIRECT)
    if kind is None and place is None:
        return
    if kind != "transaction":
        raise ValueError(f"has {_POOLER}={str(kind)[:40]!r}; write {_POOLER}=transaction")
    if not isinstance(place, str) or not _place(place)[0]:
        raise ValueError(
            f"has {_POOLER}=transaction without {_DIRECT}=HOST:PORT of PostgreSQL itself, which"
            " LISTEN and migrations need"
        )


def _check_options(url: URL) -> None:
    """Refuse what libpq would refuse at each connection, and a TLS that could only fail."""
    options = {
        name: value
        for name, value in url.query.items()
        if isinstance(value, str) and name not in _OURS
    }
    for name in options:
        try:
            make_conninfo(**{name: "x"})
        except psycopg.ProgrammingError:
            raise ValueError(f"has the option {name[:40]!r}, which libpq does not know") from None
    mode = options.get("sslmode", "prefer")
    if mode not in SSL_MODES:
        raise ValueError(f"has sslmode={mode[:40]!r}; use one of {', '.join(SSL_MODES)}")
    for name in ("sslrootcert", "sslcert", "sslkey"):
        if options.get(name, "system") != "system" and not Path(options[name]).is_file():
            raise ValueError(f"has {name}={options[name][:200]!r}, which is no file here")
    if options.get("sslrootcert") == "system" and mode != "verify-full":
        raise ValueError("has sslrootcert=system, which needs sslmode=verify-full")


_SESSION = {
    "options": "-c timezone=UTC " + " ".join(f"-c {name}={value}" for name, value in LIMITS.items())
}
_NO_SESSION = {"prepare_threshold": None}
"""Statements that are prepared would be known to one of the pooler's sessions only."""


def make_engine(
    url: str,
    *,
    pool_size: int = 5,
    application: str = "seedance",
    options: Mapping[str, Any] | None = None,
    trusted: float = 0.0,
) -> Engine:
    """An engine for one process. Connections are made when first needed, and checked when used;
    those that were used within `trusted` seconds are not.

    Statements that take over 30 s or wait over 10 s for a lock are given up: leases end, and
    the work is simply due again. `options` are execution options of every connection.
    """
    given = make_url(normalise_url(url))
    engine = create_engine(
        given,
        pool_size=pool_size,
        max_overflow=pool_size,
        pool_timeout=10,
        pool_pre_ping=trusted <= 0,
        execution_options=dict(options or {}),
        hide_parameters=True,  # they hold signed URLs and prompts, and errors are logged
        connect_args={
            "application_name": application,
            "connect_timeout": 5,
            # A server that is gone without a word would else hold a thread for many minutes.
            "keepalives_idle": 30,
            "keepalives_interval": 10,
            "keepalives_count": 3,
            "tcp_user_timeout": 30_000,
            **(_SESSION if not pooled(given) else _NO_SESSION),
        },
    )
    event.listen(engine, "do_connect", _without_ours)
    if pooled(given):
        event.listen(engine, "connect", _in_utc)
    event.listen(engine, "handle_error", _without_the_row)
    if trusted > 0:
        _check_the_idle(engine, trusted)
    return engine


@contextmanager
def alone(engine: Engine) -> Iterator[Connection]:
    """A connection on which each statement is a transaction of its own: BEGIN and COMMIT are a
    round trip each, and one statement needs neither.
    """
    with engine.connect() as conn:
        yield conn.execution_options(isolation_level="AUTOCOMMIT")


_USED = "seedance_used"
"""In a pooled connection's `info`: when it was given back, by the monotonic clock."""


def _check_the_idle(engine: Engine, trusted: float) -> None:
    """Check a connection that was idle for over so many seconds, and replace it if it is dead.

    A check is a round trip: as much as the one statement of an enqueue.
    """

    def given_back(dbapi_connection: Any, record: ConnectionPoolEntry) -> None:  # noqa: ARG001
        record.info[_USED] = time.monotonic()

    def taken(
        dbapi_connection: Any,
        record: ConnectionPoolEntry,
        proxy: Any,  # noqa: ARG001
    ) -> None:
        used = record.info.get(_USED)
        if used is None or time.monotonic() - used <= trusted:
            return
        try:
            engine.dialect.do_ping(dbapi_connection)
        except psycopg.Error as error:
            raise DisconnectionError(f"it was gone: {type(error).__name__}") from error

    event.listen(engine, "checkin", given_back)
    event.listen(engine, "checkout", taken)


def _without_ours(
    dialect: Any,  # noqa: ARG001  (SQLAlchemy's form)
    record: Any,  # noqa: ARG001
    args: list[Any],  # noqa: ARG001
    options: dict[str, Any],
) -> None:
    for name in _OURS:
        options.pop(name, None)


def _in_utc(connection: psycopg.Connection[Any], record: Any) -> None:  # noqa: ARG001
    """The one thing of a session that PgBouncer carries along with its client."""
    connection.execute("SET TIME ZONE 'UTC'")
    connection.commit()


def _without_the_row(context: ExceptionContext) -> None:
    """Cut PostgreSQL's DETAIL from an error: it quotes rows, with signed addresses and prompts.

    `orig.diag` keeps it for code that asks.
    """
    error = context.original_exception
    if not isinstance(error, psycopg.Error) or not error.diag.message_primary:
        return
    error.args = (error.diag.message_primary,)
    if context.sqlalchemy_exception is not None:
        kind = type(error)
        shown = f"({kind.__module__}.{kind.__name__}) {error.diag.message_primary}"
        context.sqlalchemy_exception.args = (shown,)
