"""What went wrong, in one line that says what may be done about it."""

import click
from sqlalchemy.exc import DBAPIError, ProgrammingError

from api_client import ApiError, InvalidApiKey
from worker.embedded_errors import EmbeddedError
from worker.redaction import redact


class Failed(click.ClickException):
    """The thing failed: exit code 1."""

    exit_code = 1


class BadInput(click.ClickException):
    """What was given can't be right: exit code 2, one line."""

    exit_code = 2


def explain(error: DBAPIError | ApiError | EmbeddedError) -> str:
    """An expected error in one line."""
    if isinstance(error, DBAPIError):
        return database_problem(error)
    if isinstance(error, InvalidApiKey):
        return f"the provider refuses the API key ({error}): check SEEDANCE_API_KEY"
    if isinstance(error, ApiError):
        return f"the provider did not do it: {error}"
    return str(error)


def database_problem(error: DBAPIError) -> str:
    """Why the database did not answer as hoped."""
    said = redact(" ".join(str(error.orig or error).split()))[:300]
    if isinstance(error, ProgrammingError) and "does not exist" in said:
        return f"the database lacks tables ({said.partition(' LINE ')[0]}): run `seedance migrate`"
    if error.connection_invalidated or "connection" in said:
        return f"the database can't be reached: {said}; check SEEDANCE_DATABASE_URL"
    if getattr(error.orig, "sqlstate", None) == "42501":
        return f"the database refused: {said}; as the tables' owner: seedance migrate --grant ROLE"
    return f"the database refused: {said}"
