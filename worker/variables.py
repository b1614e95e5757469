"""Environment variables as such: which hold secrets, and secrets that come from files.

`SEEDANCE_API_KEY_FILE` may name a file instead of the value, and so for every secret. A variable
and its file exclude each other; whoever sets one over a given environment takes the other out.
"""

import os
from collections.abc import Mapping

from models import secret_files
from models.secret_files import SUFFIX, SecretFileError

PREFIX = "SEEDANCE_"

SECRET = frozenset(
    {
        "api_key",
        "database_url",
        "broker_url",
        "rate_limit_url",
        "webhook_secrets",
        "metrics_token",
    }
)
"""Settings whose values are or hold secrets: shown nowhere, and taken from files as well."""

FILES = frozenset(f"{PREFIX}{name.upper()}{SUFFIX}" for name in SECRET)
"""Variables that name the file of a secret."""


class SettingsError(ValueError):
    """The environment does not make valid settings. The message names each variable."""


def secret(variable: str, environ: Mapping[str, str] | None = None) -> str | None:
    """The value of a variable that may come from a file; None for none. Raises SettingsError."""
    try:
        return secret_files.given(os.environ if environ is None else environ, variable)
    except SecretFileError as error:
        raise SettingsError(str(error)) from None


def is_given(variable: str, environ: Mapping[str, str] | None = None) -> bool:
    """Whether a variable or its file is named, whatever is in the file."""
    env = os.environ if environ is None else environ
    return bool(env.get(variable) or env.get(variable + SUFFIX))


def over(environ: Mapping[str, str], values: Mapping[str, str]) -> dict[str, str]:
    """An environment with `values` set in it, in place of what it said of the same settings."""
    said = {name.removesuffix(SUFFIX) for name in values}
    displaced = {one for name in said for one in (name, name + SUFFIX)} & (
        FILES | {file.removesuffix(SUFFIX) for file in FILES}
    )
    return {n: v for n, v in environ.items() if n not in displaced} | dict(values)


def adopt(values: Mapping[str, str]) -> None:
    """The same for this process, and so for those that it starts."""
    wanted = over(os.environ, values)
    for name in set(os.environ) - set(wanted):
        del os.environ[name]
    os.environ.update(wanted)
