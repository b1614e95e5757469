"""The database: its server, its tables, its rows."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

from sqlalchemy import Connection, func, select, text
from sqlalchemy.exc import DBAPIError

from models import grants, reads
from models.artifacts.reading import unstored
from models.database import make_engine
from models.flow_control import breakers
from models.flow_control.breakers import BreakerName
from models.ledger.drift import drift
from models.lifecycle import Status
from models.metrics import pulses
from models.notices import State, reading
from models.operating.pauses import PauseView
from models.tables import Generation, RejectedMessage, StrayTask
from models.wait_reasons import WaitReason
from worker import migrate
from worker.checkup.finding import Check, Findings, ok, warn, wrong
from worker.redaction import redact
from worker.settings import Settings
from worker.upkeep.intervals import expected_within

_OLDEST_POSTGRES = 140_000
_LATE = 60.0
_FAILING_SHOWN = 5


def database(settings: Settings) -> Findings:
    """The server, its tables, and what the rows say of the service."""
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
                # Where rights are missing the rows can't be asked.
                checks += list(_rights(conn)) or _rows(conn, settings)
        return Findings(tuple(checks), (now - middle).total_seconds())
    except DBAPIError as error:
        said = redact(" ".join(str(error.orig).split()))[:300]
        return Findings(
            (
                wrong(
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
        checks = [wrong("database", f"PostgreSQL {version}", "14 or newer is needed")]
    else:
        checks = [ok("database", f"PostgreSQL {version} answers")]
    if shown["synchronous_commit"] == "off":
        found = "synchronous_commit is off: a crash can forget what was submitted"
        checks.append(wrong("database", found, "set it on; without it nothing here is promised"))
    if shown["fsync"] == "off":
        found = "fsync is off: a power cut can forget what was submitted, or break the data"
        checks.append(warn("database", found, "set it on, unless the data are for trying out"))
    return checks


def _tables(revision: migrate.Revision) -> Check:
    at = revision.current or "nothing"
    if revision.up_to_date:
        return ok("migrations", f"up to date ({at})")
    if not revision.known:
        return warn("migrations", f"at {at}, newer than this version", "update this version")
    return wrong("migrations", f"at {at}, {revision.head} is needed", "run `seedance migrate`")


def _rows(conn: Connection, settings: Settings) -> list[Check]:
    summary = reads.summary(conn)
    checks = [_lateness(summary)]
    opened = breakers.read(conn).open
    for breaker in opened:
        since = f"{breaker.opened_at.astimezone(UTC):%Y-%m-%d %H:%M:%S}Z"
        checks.append(
            warn(
                "breakers",
                f"{breaker.name} is open since {since}: {redact(breaker.reason)}",
                _BREAKERS[breaker.name],
            )
        )
    if not opened:
        checks.append(ok("breakers", "all closed"))
    limits = [limit for limit in summary.limits if limit.name != "ramp"]  # over within seconds
    checks += [warn("flow", redact(str(limit)), _LIMITS[limit.name]) for limit in limits]
    if not limits:
        checks.append(ok("flow", "nothing but the settings limits submission"))
    checks += [_pause(pause) for pause in summary.pauses]
    if summary.attention:
        found = f"{summary.attention} generations need an operator"
        checks.append(warn("attention", found, "seedance list --attention"))
    else:
        checks.append(ok("attention", "no generation needs an operator"))
    checks += _unstored(conn)
    second = _count(conn, select(func.count()).where(StrayTask.kind == "second"))
    if second:
        checks.append(
            warn(
                "strays",
                f"{second} second tasks: may be paid twice",
                "seedance reconcile lists them",
            )
        )
    day = func.now() - timedelta(days=1)
    rejected = _count(conn, select(func.count()).where(RejectedMessage.at > day))
    if rejected:
        checks.append(
            warn(
                "messages",
                f"{rejected} unreadable messages were set aside in the last day",
                "see the table rejected_messages: some producer sends nonsense",
            )
        )
    checks += _credits(conn)
    checks += _notices(conn)
    checks.append(_upkeep(conn, settings))
    return checks


def _pause(pause: PauseView) -> Check:
    resume = "seedance resume" + ("" if pause.tenant is None else f" --tenant {pause.tenant}")
    since = f"{pause.paused_at.astimezone(UTC):%Y-%m-%d %H:%M:%S}Z"
    return warn("pauses", f"{pause}, since {since}: nothing of it is sent", resume)


def _credits(conn: Connection) -> list[Check]:
    apart = drift(conn)
    checks = []
    if apart is not None and apart.large:
        checks.append(warn("ledger", apart.explain(), _DRIFTS[apart.credits > 0]))
    elif apart is not None:
        checks.append(ok("ledger", apart.explain()))
    waiting = _count(
        conn,
        select(func.count()).where(
            Generation.status == Status.ACCEPTED, Generation.wait_reason == WaitReason.CREDITS
        ),
    )
    if waiting:
        found = f"{waiting} generations wait for credits"
        checks.append(warn("credits", found, "buy credits; `seedance balance` tells what is free"))
    return checks


def _notices(conn: Connection) -> list[Check]:
    checks = []
    counts = reading.counts(conn)
    failing = [one for one in reading.receivers(conn) if one.waiting]
    for one in failing[:_FAILING_SHOWN]:
        found = f"{one.receiver} fails ({one.error}): {one.waiting} notices wait"
        checks.append(warn("notices", found, "it is tried again by itself: seedance notices list"))
    if counts[State.DEAD]:
        found = f"{counts[State.DEAD]} were not taken and are set aside"
        mend = "seedance notices list --status dead, then resend, or let retention remove them"
        checks.append(warn("notices", found, mend))
    unsigned = reading.unsigned(conn)
    if unsigned:
        found = f"{unsigned} webhooks wait: workers have no SEEDANCE_WEBHOOK_SECRETS"
        checks.append(warn("notices", found, "set it for all of them; nothing is sent unsigned"))
    return checks or [ok("notices", f"{counts[State.PENDING]} pending")]


def _rights(conn: Connection) -> Iterator[Check]:
    """A migration may bring tables that the workers' role was not yet given."""
    lacks = grants.missing(conn, grants.Purpose.WORKER)
    if lacks:
        shown = ", ".join(lacks[:3]) + (f" and {len(lacks) - 3} more" if lacks[3:] else "")
        role = conn.execute(text("SELECT current_user")).scalar_one()
        mend = f"as the tables' owner: seedance migrate --grant {role}"
        yield wrong("rights", f"the role {role} lacks {shown}", mend)


_DRIFTS = {
    True: "seedance reconcile, then look for others who use the key: seedance balance",
    False: "did the provider give credits back, or does the key belong to another account now?",
}
_BREAKERS = {
    BreakerName.API_KEY: "correct SEEDANCE_API_KEY; `seedance balance` closes it at once",
    BreakerName.CREDIT: "buy credits; `seedance balance` probes at once",
}
_LIMITS = {
    "throttled": "requests continue when the time is up",
    "rate": "set SEEDANCE_RATE_LIMIT to what the provider allows, if this comes back",
    "concurrency": "set SEEDANCE_MAX_IN_FLIGHT to what the provider allows, if this comes back",
    "outage": "see the provider's status page; submission continues with the first success",
    "failures": "see `seedance watch` for the errors; submission speeds up as they cease",
}


def _unstored(conn: Connection) -> Iterator[Check]:
    state = unstored(conn)
    if state.alarming:
        found = f"{state.alarming} results can't be stored for over a day: {state.error}"
        yield wrong("results", found, "seedance list --attention; the provider keeps them a week")
    elif state.failing:
        found = f"{state.failing} results could not be stored yet: {state.error}"
        yield warn("results", found, "they are tried again; seedance show tells of each")
    if state.lost:
        of = ", ".join(map(str, state.lost_of))
        found = f"{state.lost} results of the last week are lost, the latest of {of}"
        yield warn("results", found, "seedance show ID says why")


def _lateness(summary: reads.Summary) -> Check:
    late = summary.oldest_due_seconds
    if late > _LATE:
        return wrong(
            "schedule", f"work is late by {late:.0f} s", "start workers: `seedance worker`"
        )
    return ok("schedule", f"{summary.in_flight} in flight, nothing late")


def _upkeep(conn: Connection, settings: Settings) -> Check:
    """Beat leaves no trace but what it had done; in a new service, nothing for a while."""
    now, began = conn.execute(select(func.now(), func.min(Generation.created_at))).one()
    last = pulses.last(conn)
    missed = []
    for what, seconds in expected_within(settings).items():
        since = last.get(what, began)
        if since is not None and (age := (now - since).total_seconds()) > seconds:
            missed.append(f"{what} {f'{age:.0f} s ago' if what in last else 'never'}")
    if missed:
        found = f"last success: {', '.join(missed)}"
        return warn("upkeep", found, "is `seedance beat` running, and a worker?")
    return ok("upkeep", "all of it succeeded lately")


def _count(conn: Connection, query: object) -> int:
    return int(conn.execute(query).scalar_one())  # type: ignore[call-overload]
