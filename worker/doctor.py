"""What is missing or wrong with a service, and how to mend it.

Each group of checks runs in a thread of its own, within a bound: a doctor that hangs helps nobody.
"""

import threading
import time
from collections.abc import Callable, Iterable, Mapping

from models.secret_files import SUFFIX
from worker.checkup.archive import archive
from worker.checkup.finding import Check, Findings, Level, ok, warn, wrong
from worker.checkup.postgres import database
from worker.checkup.provider import provider
from worker.checkup.valkey import broker, rate
from worker.redaction import redact
from worker.settings import SettingsError, load_settings, unknown_variables

_BOUND = 15.0
_SKEW_DATABASE = 5.0
_SKEW_PROVIDER = 60.0


def examine(environ: Mapping[str, str], *, found_by: str) -> list[Check]:
    """Look at everything that these settings lead to."""
    checks = [
        warn("settings", f"{name} is no setting", "correct its name, or unset it")
        for name in unknown_variables(environ)
    ]
    try:
        settings = load_settings(environ)
    except SettingsError as error:
        hint = "set it right, or start `seedance up` in this folder and unset all SEEDANCE_…"
        checks += [wrong("settings", line, hint) for line in str(error).splitlines()]
        return checks + _what_can_be_told(environ)
    checks.append(ok("settings", f"from {found_by}"))
    groups: dict[str, Callable[[], Findings]] = {
        "database": lambda: database(settings),
        "broker": lambda: broker(settings.broker_url),
        "provider": lambda: provider(settings),
        "archive": lambda: archive(settings),
        "rate": lambda: rate(settings),
    }
    findings = _all_at_once(groups)
    for name in groups:
        checks += findings[name].checks
    checks += _clocks(findings["database"].ahead, findings["provider"].ahead)
    return checks


def _what_can_be_told(environ: Mapping[str, str]) -> list[Check]:
    """With wrong settings, what stands by itself is still looked at."""
    try:
        partial = load_settings(
            {
                "SEEDANCE_API_KEY": "unset",
                **{
                    name: environ[name]
                    for variable in ("SEEDANCE_DATABASE_URL", "SEEDANCE_BROKER_URL")
                    for name in (variable, variable + SUFFIX)
                    if environ.get(name)
                },
            }
        )
    except SettingsError:
        return []
    groups: dict[str, Callable[[], Findings]] = {
        "database": lambda: database(partial),
        "broker": lambda: broker(partial.broker_url),
    }
    return [check for found in _all_at_once(groups).values() for check in found.checks]


def _all_at_once(groups: Mapping[str, Callable[[], Findings]]) -> dict[str, Findings]:
    found: dict[str, Findings] = {}

    def look(name: str, group: Callable[[], Findings]) -> None:
        try:
            found[name] = group()
        except Exception as error:  # noqa: BLE001  (the other groups shall still be told)
            said = redact(" ".join(str(error).split()))[:200]
            check = wrong(name, f"{type(error).__name__}: {said}", "see the message")
            found[name] = Findings((check,))

    # Daemons: one that hangs must not keep the process.
    threads = [
        threading.Thread(target=look, args=item, daemon=True, name=item[0])
        for item in groups.items()
    ]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + _BOUND
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    said = f"no answer within {_BOUND:g} s"
    return {
        name: found.get(name)
        or Findings((wrong(name, said, "look at the network and at that server"),))
        for name in groups
    }


def _clocks(database: float | None, provider: float | None) -> Iterable[Check]:
    told = 0
    if database is not None:
        told += 1
        if abs(database) > _SKEW_DATABASE:
            yield warn(
                "clock",
                f"this machine is {_off(-database)} the database",
                "let both follow NTP; ages shown here are wrong by as much",
            )
            told -= 1
    if database is not None and provider is not None:
        apart = provider - database
        if abs(apart) > _SKEW_PROVIDER:
            yield warn(
                "clock",
                f"the provider is {_off(apart)} the database",
                "let the database's machine follow NTP; reading the task list takes longer",
            )
            told = 0
    if told:
        others = "the database" if provider is None else "the database and the provider"
        sides = f"this machine{' and' if provider is None else ','} {others}"
        yield ok("clock", f"{sides} agree")


def _off(seconds: float) -> str:
    return f"{abs(seconds):.0f} s {'ahead of' if seconds > 0 else 'behind'}"


__all__ = ["Check", "Level", "examine"]
