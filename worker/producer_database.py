"""A producer's way to the database: its own engine, its caller's session, or a connection borrowed
from another framework.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import psycopg
from sqlalchemy import Connection, Engine, NullPool, create_engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session, scoped_session

from api_client import InvalidRequest
from models.database import DRIVER, make_engine
from worker.follower import Follower
from worker.variables import SettingsError, secret

T = TypeVar("T")

Own = Session | scoped_session[Session] | Connection
"""A caller's transaction."""

TRUSTED = 1.0
"""Seconds for which a connection is taken for alive after its last use. What is stored then over
one that is dead is stored again over another (`surely`).
"""

_engines: dict[tuple[int, str], Engine] = {}
_followers: dict[Engine, Follower] = {}


def engine() -> Engine:
    """This process's engine, for SEEDANCE_DATABASE_URL or what SEEDANCE_DATABASE_URL_FILE names.

    A forked child makes its own.
    """
    url = secret("SEEDANCE_DATABASE_URL")
    if not url:
        raise SettingsError("SEEDANCE_DATABASE_URL is not set: where shall generations be stored?")
    key = (os.getpid(), url)
    if key not in _engines:
        try:
            _engines[key] = make_engine(url, application="seedance-producer", trusted=TRUSTED)
        except ValueError as error:
            raise SettingsError(f"SEEDANCE_DATABASE_URL {error}") from None
    return _engines[key]


def follower() -> Follower:
    """What tells this process of changes: one for all who wait."""
    here = engine()
    return _followers.setdefault(here, Follower(here))


@contextmanager
def connection(session: Own | None) -> Iterator[Connection]:
    """The caller's transaction, or one of its own. Raises InvalidRequest for what has none."""
    if isinstance(session, Connection):
        yield session
    elif session is not None:
        if not isinstance(session, Session | scoped_session):
            raise InvalidRequest(
                "session", session, "a Session or Connection (an AsyncSession: worker.aproducer)"
            )
        # What the caller has added so far goes first, as it would by itself before a query.
        session.flush()
        yield session.connection()
    else:
        with engine().begin() as conn:
            yield conn


def surely(store: Callable[[], T]) -> T:
    """Do it, and once more if its connection turns out to be dead.

    Whether the first try was committed is then unknown. So only for what changes nothing when it
    is done twice: a generation under its id.
    """
    try:
        return store()
    except DBAPIError as error:
        if not error.connection_invalidated:
            raise
    return store()


class _Borrowed:
    """A psycopg connection whose transaction belongs to somebody else: he ends it, not we."""

    def __init__(self, owned: psycopg.Connection[Any]) -> None:
        self._owned = owned

    def __getattr__(self, name: str) -> Any:
        return getattr(self._owned, name)

    def commit(self) -> None:
        """Its owner does."""

    def rollback(self) -> None:
        """Its owner does."""

    def close(self) -> None:
        """Its owner does."""


@contextmanager
def joined(connection: psycopg.Connection[Any]) -> Iterator[Connection]:
    """Take part in the transaction of a psycopg connection that another framework holds.

    For Django: `with transaction.atomic(), joined(django.db.connection.connection) as session:`.
    Neither committed nor rolled back here; the owner's end is the end of what is stored.
    """
    engine = create_engine(
        f"{DRIVER}://",
        creator=lambda: _Borrowed(connection),
        poolclass=NullPool,
        use_native_hstore=False,  # asking for it wants a connection of psycopg's own class
    )
    with engine.connect() as conn:
        yield conn
