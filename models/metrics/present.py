"""The present state in figures. Each query is bounded by what lives, not by what there ever was."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

from sqlalchemy import Connection, select, text

from models import workers
from models.base import table_of
from models.flow_control import breakers
from models.flow_control import state as flow_state
from models.flow_control.breakers import BreakerName
from models.flow_control.state import FlowState
from models.lifecycle import LIVE, RESERVED, Status
from models.metrics import pulses
from models.metrics.definitions import AGES
from models.metrics.totals import Classes, bucket_of, model_label, tenant_label
from models.operating.tables import Pause
from models.tables import LIVE_SQL, BalanceSnapshot

_STATUSES = (Status.ACCEPTED, *sorted(LIVE))
_RESERVED = ", ".join(repr(str(status)) for status in sorted(RESERVED))


@dataclass(frozen=True)
class Balance:
    """The account as the provider told it last, in credits."""

    at: datetime
    used: Decimal
    remain: Decimal


@dataclass(frozen=True)
class Notices:
    """Notices of one target that are not delivered."""

    pending: int
    dead: int
    oldest_seconds: float
    """Age of the oldest pending one; 0 without any."""


@dataclass(frozen=True)
class Artifacts:
    """Results that the archive does not have."""

    waiting: int
    attention: int
    lost: int
    oldest_seconds: float
    """Age of the oldest that waits; 0 without any."""


@dataclass(frozen=True)
class Present:
    """How things stand. Keys of mappings are label values, in the order of the name."""

    generations: Mapping[tuple[str, str], int]
    """By status and tenant, those that have not ended."""
    waiting_oldest: Mapping[str, float]
    """Age in seconds of the oldest accepted one, by tenant."""
    due_oldest: float
    """How late the most overdue live one is, in seconds."""
    attention: int
    attention_oldest: float
    ages: tuple[int, ...]
    """How many running tasks were last seen so long ago: a number for each bucket of `AGES`."""
    ages_sum: float
    breakers: Mapping[str, bool]
    """Whether each is open."""
    flow: FlowState
    paused: Mapping[str, int]
    """Pauses of submission: `all`, and how many `tenant`s."""
    reserved: Mapping[tuple[str, str], Decimal]
    """Credits set aside, by model and tenant."""
    balance: Balance | None
    strays: Mapping[str, int]
    """Second and possible remote tasks."""
    rejected: int
    """Messages set aside, ever."""
    pulses: Mapping[str, datetime]
    dispatchers: int
    notices: Mapping[str, Notices]
    artifacts: Artifacts


_WAITING = text(
    f"""
    SELECT {tenant_label("tenant")} AS tenant, sum(n) AS n,
           extract(epoch FROM now() - min(oldest)) AS oldest
    FROM (SELECT tenant, count(*) AS n, min(created_at) AS oldest
          FROM generations WHERE status = 'accepted' GROUP BY tenant) waiting
    GROUP BY 1
    """  # noqa: S608  (built from constants of this package)
)

_LIVE = text(
    f"""
    SELECT status, {tenant_label("tenant")} AS tenant,
           {model_label("(request ->> 'model')")} AS model, count(*) AS n,
           coalesce(sum(estimated_cost) FILTER (WHERE status IN ({_RESERVED})), 0) AS reserved
    FROM generations WHERE {LIVE_SQL} GROUP BY 1, 2, 3
    """  # noqa: S608
)

_AGES = text(
    f"""
    SELECT {bucket_of("age", AGES)} AS bucket, count(*) AS n, sum(age) AS seconds
    FROM (SELECT greatest(extract(epoch FROM now() - coalesce(observed_at, submitted_at)), 0) AS age
          FROM generations WHERE {LIVE_SQL} AND status = 'running') running
    GROUP BY 1
    """  # noqa: S608
)

_LATE = text(
    f"""
    SELECT (SELECT extract(epoch FROM now() - min(due_at))
            FROM generations WHERE {LIVE_SQL}) AS due,
           count(*) AS attention, extract(epoch FROM now() - min(attention_at)) AS oldest
    FROM generations WHERE attention IS NOT NULL
    """  # noqa: S608
)

_STRAYS = text(
    """
    SELECT kind, count(*) AS n FROM stray_tasks
    WHERE generation_id IS NOT NULL AND kind IN ('second', 'possible') GROUP BY kind
    """
)

# The number of the latest row: rows are deleted in the end, their numbers are never used again.
_REJECTED = text(
    "SELECT coalesce(pg_sequence_last_value(pg_get_serial_sequence('rejected_messages', 'id')), 0)"
)

_NOTICES = text(
    """
    SELECT target, count(*) FILTER (WHERE status = 'pending') AS pending,
           count(*) FILTER (WHERE status = 'dead') AS dead,
           extract(epoch FROM now() - min(created_at) FILTER (WHERE status = 'pending')) AS oldest
    FROM (SELECT target, status, created_at FROM notices WHERE status = 'pending'
          UNION ALL
          SELECT target, status, created_at FROM notices WHERE status = 'dead') n
    GROUP BY target
    """
)

_ARTIFACTS = text(
    """
    SELECT count(*) AS waiting, count(attention_at) AS attention,
           extract(epoch FROM now() - min(made_at)) AS oldest,
           (SELECT count(*) FROM artifacts WHERE lost_at IS NOT NULL) AS lost
    FROM artifacts WHERE due_at IS NOT NULL
    """
)


def read(conn: Connection, classes: Classes) -> Present:
    """Read it all."""
    generations: dict[tuple[str, str], int] = {}
    waiting_oldest: dict[str, float] = {}
    for row in conn.execute(_WAITING, {"tenants": classes.parameters["tenants"]}):
        generations[str(Status.ACCEPTED), row.tenant] = int(row.n)
        waiting_oldest[row.tenant] = max(0.0, float(row.oldest))
    reserved: dict[tuple[str, str], Decimal] = {}
    for row in conn.execute(_LIVE, classes.parameters):
        one = row.status, row.tenant
        generations[one] = generations.get(one, 0) + row.n
        credit = row.model, row.tenant
        reserved[credit] = reserved.get(credit, Decimal(0)) + row.reserved
    ages = [0] * (len(AGES) + 1)
    ages_sum = 0.0
    for row in conn.execute(_AGES):
        ages[row.bucket] = row.n
        ages_sum += float(row.seconds)
    late = conn.execute(_LATE).one()
    return Present(
        generations=generations,
        waiting_oldest=waiting_oldest,
        due_oldest=max(0.0, float(late.due or 0)),
        attention=late.attention,
        attention_oldest=max(0.0, float(late.oldest or 0)),
        ages=tuple(ages),
        ages_sum=ages_sum,
        breakers=_breakers(conn),
        flow=flow_state.read(conn),
        paused=_paused(conn),
        reserved=reserved,
        balance=_balance(conn),
        strays={"second": 0, "possible": 0} | {r.kind: r.n for r in conn.execute(_STRAYS)},
        rejected=int(conn.execute(_REJECTED).scalar_one()),
        pulses=pulses.last(conn),
        dispatchers=workers.alive(conn),
        notices=_notices(conn),
        artifacts=_artifacts(conn),
    )


def _breakers(conn: Connection) -> dict[str, bool]:
    opened = {str(breaker.name): True for breaker in breakers.read(conn).open}
    return {str(name): False for name in BreakerName} | opened


def _paused(conn: Connection) -> dict[str, int]:
    tenants = conn.execute(select(table_of(Pause).c.tenant)).scalars().all()
    return {"all": tenants.count(""), "tenant": len(tenants) - tenants.count("")}


def _balance(conn: Connection) -> Balance | None:
    b = table_of(BalanceSnapshot).c
    row = conn.execute(
        select(b.at, b.used_credits, b.remain_credits).order_by(b.at.desc()).limit(1)
    ).one_or_none()
    return None if row is None else Balance(*row)


def _notices(conn: Connection) -> dict[str, Notices]:
    found = {target: Notices(0, 0, 0.0) for target in ("webhook", "task")}
    for row in conn.execute(_NOTICES):
        oldest = max(0.0, float(row.oldest or 0))
        found[row.target] = Notices(row.pending, row.dead, oldest)
    return found


def _artifacts(conn: Connection) -> Artifacts:
    row = conn.execute(_ARTIFACTS).one()
    return Artifacts(row.waiting, row.attention, row.lost, max(0.0, float(row.oldest or 0)))
