"""What is missing or wrong with a service, and how to mend it.

Each group of checks runs in a thread of its own, within a bound: a doctor that hangs helps nobody.
"""

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any

import redis
from celery import Celery
from kombu.exceptions import OperationalError as BrokerError
from sqlalchemy import Connection, func, select, text
from sqlalchemy.exc import DBAPIError

from api_client import ApiError, ClientConfig, InvalidApiKey, NotSent, SeedanceClient, redact
from models import gates, reads
from models.database import make_engine
from models.tables import BalanceSnapshot, Generation, RejectedMessage, StrayTask
from worker import migrate
from worker.settings import Settings, SettingsError, load_settings, unknown_variables

_BOUND = 15.0
_OLDEST_POSTGRES = 140_000
_SKEW_DATABASE = 5.0
_SKEW_PROVIDER = 60.0
_LATE = 60.0
_PING = 2.0


class Level(StrEnum):
    """How bad it is. Only what is WRONG stops work."""

    OK = "ok"
    WARN = "warn"
    WRONG = "wrong"


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    name: str
    level: Level
    found: str
    mend: str | None = None


@dataclass(frozen=True)
class _Findings:
    checks: tuple[Check, ...]
    ahead: float | None = None
    """Seconds that the other side's clock is ahead of this machine's, where it told."""


def _ok(name: str, found: str) -> Check:
    return Check(name, Level.OK, found)


def _warn(name: str, found: str, mend: str) -> Check:
    return Check(name, Level.WARN, found, mend)


def _wrong(name: str, found: str, mend: str) -> Check:
    return Check(name, Level.WRONG, found, mend)


def examine(environ: Mapping[str, str], *, found_by: str) -> list[Check]:
    """Look at everything that these settings lead to."""
    checks = [
        _warn("settings", f"{name} is no setting", "correct its name, or unset it")
        for name in unknown_variables(environ)
    ]
    try:
        settings = load_settings(environ)
    except SettingsError as error:
        hint = "set it right, or start `seedance up` in this folder and unset all SEEDANCE_…"
        checks += [_wrong("settings", line, hint) for line in str(error).splitlines()]
        return checks + _what_can_be_told(environ)
    checks.append(_ok("settings", f"from {found_by}"))
    groups: dict[str, Callable[[], _Findings]] = {
        "database": lambda: _database(settings),
        "broker": lambda: _broker(settings.broker_url),
        "provider": lambda: _provider(settings),
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
                    for name in ("SEEDANCE_DATABASE_URL", "SEEDANCE_BROKER_URL")
                    if environ.get(name)
                },
            }
        )
    except SettingsError:
        return []
    groups: dict[str, Callable[[], _Findings]] = {
        "database": lambda: _database(partial),
        "broker": lambda: _broker(partial.broker_url),
    }
    return [check for found in _all_at_once(groups).values() for check in found.checks]


def _all_at_once(groups: Mapping[str, Callable[[], _Findings]]) -> dict[str, _Findings]:
    found: dict[str, _Findings] = {}

    def look(name: str, group: Callable[[], _Findings]) -> None:
        try:
            found[name] = group()
        except Exception as error:  # noqa: BLE001  (the other groups shall still be told)
            said = redact(" ".join(str(error).split()))[:200]
            wrong = _wrong(name, f"{type(error).__name__}: {said}", "see the message")
            found[name] = _Findings((wrong,))

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
    late = _wrong("", f"no answer within {_BOUND:g} s", "look at the network and at that server")
    return {
        name: found.get(name) or _Findings((Check(name, late.level, late.found, late.mend),))
        for name in groups
    }


# --- the database -------------------------------------------------------------------------------


def _database(settings: Settings) -> _Findings:
    engine = make_engine(settings.database_url, pool_size=1, application="seedance-doctor")
    try:
        with engine.connect() as conn:
            before = datetime.now(UTC)
            now = conn.execute(select(func.clock_timestamp())).scalar_one()
            middle = before + (datetime.now(UTC) - before) / 2
            checks = _server(conn)
        revision = migrate.revision(engine)
        checks.append(_tables(revision))
        if revision.up_to_date or not revision.known:
            with engine.connect() as conn:
                checks += _rows(conn, settings)
        return _Findings(tuple(checks), (now - middle).total_seconds())
    except DBAPIError as error:
        said = redact(" ".join(str(error.orig).split()))[:300]
        return _Findings(
            (
                _wrong(
                    "database",
                    f"PostgreSQL can't be used: {said}",
                    "start it, or correct SEEDANCE_DATABASE_URL (host, user, password, name)",
                ),
            )
        )
    finally:
        engine.dispose()


def _server(conn: Connection) -> list[Check]:
    shown = {
        name: str(conn.execute(text(f"SHOW {name}")).scalar_one())
        for name in ("server_version", "server_version_num", "synchronous_commit", "fsync")
    }
    version = shown["server_version"].split()[0]
    if int(shown["server_version_num"]) < _OLDEST_POSTGRES:
        checks = [_wrong("database", f"PostgreSQL {version}", "14 or newer is needed")]
    else:
        checks = [_ok("database", f"PostgreSQL {version} answers")]
    if shown["synchronous_commit"] == "off":
        found = "synchronous_commit is off: a crash can forget what was submitted"
        checks.append(_wrong("database", found, "set it on; without it nothing here is promised"))
    if shown["fsync"] == "off":
        found = "fsync is off: a power cut can forget what was submitted, or break the data"
        checks.append(_warn("database", found, "set it on, unless the data are for trying out"))
    return checks


def _tables(revision: migrate.Revision) -> Check:
    at = revision.current or "nothing"
    if revision.up_to_date:
        return _ok("migrations", f"up to date ({at})")
    if not revision.known:
        return _warn("migrations", f"at {at}, newer than this version", "update this version")
    return _wrong("migrations", f"at {at}, {revision.head} is needed", "run `seedance migrate`")


def _rows(conn: Connection, settings: Settings) -> list[Check]:
    summary = reads.summary(conn)
    checks = [_lateness(summary)]
    closed = gates.sending(conn).closed
    for gate in closed:
        since = f"{gate.closed_at.astimezone(UTC):%Y-%m-%d %H:%M:%S}Z"
        until = f", opens at {gate.opens_at:%H:%M:%S}Z" if gate.opens_at else ""
        checks.append(
            _warn(
                "gates",
                f"{gate.name} is closed since {since}{until}: {redact(gate.reason)}",
                _GATES[gate.name],
            )
        )
    if not closed:
        checks.append(_ok("gates", "all open"))
    if summary.attention:
        found = f"{summary.attention} generations need an operator"
        checks.append(_warn("attention", found, "seedance list --attention"))
    else:
        checks.append(_ok("attention", "no generation needs an operator"))
    second = _count(conn, select(func.count()).where(StrayTask.kind == "second"))
    if second:
        checks.append(
            _warn("strays", f"{second} second tasks: paid twice", "seedance reconcile lists them")
        )
    day = func.now() - timedelta(days=1)
    rejected = _count(conn, select(func.count()).where(RejectedMessage.at > day))
    if rejected:
        checks.append(
            _warn(
                "messages",
                f"{rejected} unreadable messages were set aside in the last day",
                "see the table rejected_messages: some producer sends nonsense",
            )
        )
    checks.append(_upkeep(conn, settings))
    return checks


_GATES = {
    gates.GateName.API_KEY: "correct SEEDANCE_API_KEY; `seedance balance` opens it at once",
    gates.GateName.CREDIT: "buy credits; `seedance balance` opens it at once",
    gates.GateName.BACKOFF: "the provider asked to wait: it opens by itself",
}


def _lateness(summary: reads.Summary) -> Check:
    late = summary.oldest_due_seconds
    if late > _LATE:
        return _wrong(
            "schedule", f"work is late by {late:.0f} s", "start workers: `seedance worker`"
        )
    return _ok("schedule", f"{summary.in_flight} in flight, nothing late")


def _upkeep(conn: Connection, settings: Settings) -> Check:
    """Beat leaves no trace but what it had done: balances are recorded as often as it says."""
    age: float | None = conn.execute(
        select(func.extract("epoch", func.now() - func.max(BalanceSnapshot.at)))
    ).scalar_one()
    patience = 3 * settings.balance_every + 60
    if age is None:
        oldest = conn.execute(
            select(func.extract("epoch", func.now() - func.min(Generation.created_at)))
        ).scalar_one()
        if oldest is None or oldest < patience:
            return _ok("upkeep", "nothing recorded yet")
    elif age < patience:
        return _ok("upkeep", f"the balance was recorded {float(age):.0f} s ago")
    since = "never" if age is None else f"{float(age):.0f} s ago"
    return _warn("upkeep", f"the balance was last recorded {since}", "is `seedance beat` running?")


def _count(conn: Connection, query: object) -> int:
    return int(conn.execute(query).scalar_one())  # type: ignore[call-overload]


# --- the broker, and who listens to it ------------------------------------------------------------


def _broker(url: str) -> _Findings:
    if not url.startswith(("redis://", "rediss://")):
        return _Findings((_warn("broker", "not Redis or Valkey: not looked at", "use redis://"),))
    client = redis.Redis.from_url(url, socket_timeout=3, socket_connect_timeout=3)
    try:
        client.ping()
        checks = [_ok("broker", _broker_name(client)), *_persistence(client)]
    except redis.RedisError as error:
        said = redact(" ".join(str(error).split()))[:200]
        return _Findings(
            (
                _wrong(
                    "broker",
                    f"Valkey or Redis can't be used: {said}",
                    "start it, or correct SEEDANCE_BROKER_URL",
                ),
            )
        )
    finally:
        client.close()
    return _Findings((*checks, _workers(url)))


def _broker_name(client: redis.Redis) -> str:
    info: Any = client.info("server")
    name = "Valkey" if "valkey_version" in info else "Redis"
    return f"{name} {info.get('valkey_version') or info.get('redis_version')} answers"


def _persistence(client: Any) -> Iterable[Check]:
    try:
        values: Any = {
            **client.config_get("appendonly"),
            **client.config_get("maxmemory-policy"),
        }
    except redis.ResponseError:
        yield _ok("broker", "does not tell its configuration (a managed one?)")
        return
    if values.get("appendonly") == "no":
        yield _warn(
            "broker",
            "keeps no append-only file: a restart forgets requests sent by Celery clients",
            "start it with --appendonly yes",
        )
    if values.get("maxmemory-policy") not in (None, "noeviction"):
        yield _warn(
            "broker",
            f"drops keys when memory is short ({values['maxmemory-policy']})",
            "start it with --maxmemory-policy noeviction",
        )


def _workers(url: str) -> Check:
    with Celery(broker=url) as app:
        app.conf.broker_transport_options = {
            "socket_timeout": 3,
            "socket_connect_timeout": 3,
            "max_retries": 0,
        }
        try:
            answers = app.control.ping(timeout=_PING) or []
        except (BrokerError, OSError) as error:
            return _warn("workers", f"can't be asked: {type(error).__name__}", "ask again")
    names = sorted(name for answer in answers for name in answer)
    if not names:
        return _warn("workers", f"none answers within {_PING:g} s", "start `seedance worker`")
    return _ok("workers", f"{len(names)}: {', '.join(names[:8])}{', …' if names[8:] else ''}")


# --- the provider ---------------------------------------------------------------------------------


def _provider(settings: Settings) -> _Findings:
    where = settings.api_base_url
    config = ClientConfig(
        api_key=settings.api_key.get_secret_value(),
        base_url=where,
        # Shorter than a worker's: somebody waits for the answer.
        connect_timeout=min(settings.http_connect_timeout, 4.0),
        read_timeout=min(settings.http_timeout, 8.0),
        total_timeout=min(settings.http_timeout, 8.0),
    )
    try:
        with SeedanceClient(config) as client:
            balance = client.balance(retry=False)
    except InvalidApiKey as error:
        return _Findings(
            (
                _wrong(
                    "api key",
                    f"{where} refuses it: {error.code} {error.message}",
                    "correct SEEDANCE_API_KEY, or SEEDANCE_API_BASE_URL if it is another's",
                ),
            )
        )
    except NotSent as error:
        mend = "look at the network, and at SEEDANCE_API_BASE_URL"
        return _Findings((_wrong("provider", f"{where} can't be reached: {error.message}", mend),))
    except ApiError as error:
        mend = "try again later; if it stays, look at SEEDANCE_API_BASE_URL"
        return _Findings((_wrong("provider", f"{where} does not answer well: {error}", mend),))
    checks = [_ok("api key", f"accepted by {where}")]
    left = balance.remain_credits
    if left <= 0:
        checks.append(_wrong("balance", f"{left:f} credits left", "buy credits"))
    else:
        checks.append(_ok("balance", f"{left.normalize():f} credits left"))
    ahead = None
    exchange = balance.exchange
    if exchange is not None and exchange.date is not None:
        received = datetime.now(UTC) - timedelta(seconds=time.monotonic() - exchange.received)
        # The header is cut to whole seconds: its middle.
        ahead = (exchange.date + timedelta(seconds=0.5) - received).total_seconds()
    return _Findings(tuple(checks), ahead)


def _clocks(database: float | None, provider: float | None) -> Iterable[Check]:
    told = 0
    if database is not None:
        told += 1
        if abs(database) > _SKEW_DATABASE:
            yield _warn(
                "clock",
                f"this machine is {_off(-database)} the database",
                "let both follow NTP; ages shown here are wrong by as much",
            )
            told -= 1
    if database is not None and provider is not None:
        apart = provider - database
        if abs(apart) > _SKEW_PROVIDER:
            yield _warn(
                "clock",
                f"the provider is {_off(apart)} the database",
                "let the database's machine follow NTP; reading the task list takes longer",
            )
            told = 0
    if told:
        others = "the database" if provider is None else "the database and the provider"
        sides = f"this machine{' and' if provider is None else ','} {others}"
        yield _ok("clock", f"{sides} agree")


def _off(seconds: float) -> str:
    return f"{abs(seconds):.0f} s {'ahead of' if seconds > 0 else 'behind'}"
