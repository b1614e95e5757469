"""Where a command finds the service: the environment, or the `seedance up` of this folder."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import Engine

from models.database import make_engine
from worker import stack_file
from worker.embedded import DEFAULT_DATA_DIR
from worker.runtime import Runtime, build
from worker.settings import load_settings
from worker.variables import SettingsError, is_given, over, secret

DATABASE = "SEEDANCE_DATABASE_URL"


def data_dir(given: Path | None = None) -> Path:
    """The folder of embedded servers: an option, SEEDANCE_DATA_DIR, or `seedance-data` here."""
    return given or Path(os.environ.get("SEEDANCE_DATA_DIR") or DEFAULT_DATA_DIR)


def environment() -> dict[str, str]:
    """The settings that hold here.

    Without SEEDANCE_DATABASE_URL those of a `seedance up` that runs in this folder come first, all
    of them: half of one service and half of another would send a key where it doesn't belong.
    Files of secrets are named in it as they were given, not read.
    """
    own = dict(os.environ)
    return own if is_given(DATABASE) else over(own, stack_file.find(data_dir()))


def found_by() -> str:
    """Says where the settings come from."""
    if is_given(DATABASE):
        return "the environment"
    if stack_file.find(data_dir()):
        return f"the `seedance up` that runs in {data_dir()}"
    return "the environment (no `seedance up` runs in this folder)"


def database_url(environ: Mapping[str, str]) -> str:
    """The database's address. Raises SettingsError."""
    url = secret(DATABASE, environ)
    if url is None:
        raise SettingsError(
            f"{DATABASE} is not set, and no `seedance up` runs in {data_dir()}:"
            " set it (postgresql+psycopg://user:password@host/database), or start `seedance up`"
        )
    return url


@contextmanager
def database(environ: Mapping[str, str] | None = None) -> Iterator[Engine]:
    """The database, which is all that most commands need. Opens no connection yet."""
    url = database_url(environment() if environ is None else environ)
    try:
        engine = make_engine(url, pool_size=2, application="seedance-cli")
    except ValueError as error:
        raise SettingsError(f"{DATABASE} {error}") from None
    try:
        yield engine
    finally:
        engine.dispose()


@contextmanager
def service() -> Iterator[Runtime]:
    """Everything a worker has: database, provider, rate limit. Raises SettingsError."""
    environ = environment()
    database_url(environ)
    rt = build(load_settings(environ), pool_size=2)
    try:
        yield rt
    finally:
        rt.close()
