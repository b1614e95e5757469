"""How Flower is run: behind a password, remembering what it saw, within bounds.

It is started by the broker's address alone. Started with our app it would import the whole worker,
for a list of task names that it learns from events anyway (docs/operate.md has the figures).
"""

import os
import secrets
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from worker import broker_address
from worker.variables import secret

LOGIN = "FLOWER_BASIC_AUTH"
COOKIE_SECRET = "FLOWER_COOKIE_SECRET"  # noqa: S105  (the name of a variable)

USER = "operator"
SHORTEST = 8
"""Characters that a password has at least."""

_WELL_KNOWN = frozenset({"change-me", "changeme", "password", "operator", "flower12"})
_DATABASE = "state"

SETTINGS = {
    "FLOWER_PERSISTENT": "true",
    # Milliseconds. A save stops everything else for as long as it takes: a second of CPU for
    # all tasks, which on a machine without one to spare were ten seconds and more.
    "FLOWER_STATE_SAVE_INTERVAL": "300000",
    "FLOWER_MAX_TASKS": "20000",
    "FLOWER_MAX_WORKERS": "500",
    # Long enough to be seen: a worker that does not come back is news.
    "FLOWER_PURGE_OFFLINE_WORKERS": "600",
    # The id says it all: generation, stage, lease. Keywords tell what a request is.
    "FLOWER_TASKS_COLUMNS": "name,uuid,state,received,runtime,worker,kwargs",
}
"""Flower's own variables, where nobody has set them."""


class LoginError(ValueError):
    """FLOWER_BASIC_AUTH can't be used; says what is allowed."""


@dataclass(frozen=True)
class Login:
    """Who may look: as `user:password`, several separated by commas."""

    credentials: str
    kept_in: Path | None = None
    """Where it was written, if nobody gave one."""
    fresh: bool = False
    """Whether that was just now."""


def login(folder: Path, environ: Mapping[str, str]) -> Login:
    """The given login, or one that is made once and kept in the folder. Raises LoginError."""
    given = check(environ)
    if given:
        return Login(given)
    file = folder / "login"
    fresh = not file.exists()
    return Login(_kept(file, f"{USER}:{secrets.token_urlsafe(15)}"), file, fresh)


def environment(
    folder: Path, broker_url: str, known: Login, environ: Mapping[str, str]
) -> dict[str, str]:
    """What Flower's process gets beside the environment; what was set there holds.

    By the environment, since passwords in a command line are seen by whoever lists processes.
    """
    defaults = {**SETTINGS, "FLOWER_DB": str(folder / _DATABASE)}
    made = {name: value for name, value in defaults.items() if not environ.get(name)}
    secret = environ.get(COOKIE_SECRET) or _kept(
        folder / "cookie-secret", secrets.token_urlsafe(48)
    )
    address = broker_address.read(broker_url)
    if address.transport_options or address.ssl is not None:
        # What no address can say, Celery's client takes from a module.
        made["CELERY_CONFIG_MODULE"] = "worker.flower_broker"
        made["SEEDANCE_BROKER_URL"] = broker_url
    return {
        **made,
        LOGIN: known.credentials,
        COOKIE_SECRET: secret,
        "CELERY_BROKER_URL": address.url,
    }


def command(address: str, port: int, *options: str) -> list[str]:
    """Flower's command line. `-P`: a folder here must not shadow a package."""
    where = [f"--address={address}", f"--port={port}"]
    return [sys.executable, "-P", "-m", "celery", "flower", *where, "--logging=warning", *options]


def check(environ: Mapping[str, str]) -> str:
    """The given login, from FLOWER_BASIC_AUTH or the file of FLOWER_BASIC_AUTH_FILE; or none.

    Raises LoginError for one that is open to anybody, SettingsError for a file that can't be read.
    """
    given = (secret(LOGIN, environ) or "").strip()
    for one in given.split(",") if given else ():
        user, _, password = one.partition(":")
        if not user or len(password) < SHORTEST or password in _WELL_KNOWN:
            # Not the value: it is, or is like, a password.
            raise LoginError(
                f"{LOGIN} has an entry that is not allowed; allowed: user:password, the password"
                f" of at least {SHORTEST} characters and from no example (several: with commas)"
            )
    return given


def _kept(file: Path, value: str) -> str:
    """What the file says; `value`, written there, if there is none yet."""
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return file.read_text(encoding="utf-8").strip()
    with os.fdopen(descriptor, "w", encoding="utf-8") as opened:
        opened.write(value + "\n")
    return value
