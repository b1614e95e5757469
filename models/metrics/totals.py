"""Totals: counted from history and ledger, or added by processes. They only ever grow.

Rows of both tables are written once and carry the transaction that wrote them (`txid`). All
transactions below the oldest one that still runs have ended, so every row of theirs is visible:
`fold` adds the rows between the last such boundary and the present one, each exactly once,
whatever order they were committed in. What is newer is counted anew at each reading.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal

from sqlalchemy import Connection, TextClause, func, select, text
from sqlalchemy.dialects.postgresql import insert

from models.base import table_of
from models.error_classes import class_sql
from models.lifecycle import TERMINAL, Event
from models.metrics import definitions as d
from models.metrics.definitions import SUM, Total
from models.metrics.tables import MetricCursor, MetricTotal
from models.tables import Generation

_totals = table_of(MetricTotal)
_FOLD_LOCK = 0x5EED_F01D


@dataclass(frozen=True)
class Classes:
    """What labels may say: the models by name, and the class of each tenant that has one."""

    models: Sequence[str]
    tenants: Mapping[str, str] = field(default_factory=dict)

    @property
    def parameters(self) -> dict[str, str]:
        """For statements that use `model_label` and `tenant_label`."""
        return {
            "models": json.dumps({name: name for name in self.models}),
            "tenants": json.dumps(dict(self.tenants)),
        }


def model_label(name: str) -> str:
    """SQL of the label that a model's name gets."""
    return f"coalesce(CAST(:models AS jsonb) ->> {name}, '{d.OTHER}')"


def tenant_label(name: str) -> str:
    """SQL of the label that a tenant gets."""
    return f"coalesce(CAST(:tenants AS jsonb) ->> {name}, '{d.OTHER}')"


def bucket_of(seconds: str, bounds: Iterable[float]) -> str:
    """SQL of the bucket that an observation falls into, counted from 0."""
    listed = ", ".join(map(str, bounds))
    return f"width_bucket(CAST({seconds} AS float8), CAST(ARRAY[{listed}] AS float8[]))"


def _observed(total: Total, labels: str, seconds: str, rows: str) -> str:
    """One row for the bucket of each observation, one for the sum of their seconds."""
    return f"""
        SELECT '{total.name}', ARRAY[{labels}], b.bucket, b.value
        FROM fresh CROSS JOIN LATERAL (VALUES
            ({bucket_of(seconds, total.buckets)}, 1.0), ({SUM}, {seconds})
        ) b (bucket, value)
        WHERE {seconds} IS NOT NULL AND {rows}
    """  # noqa: S608  (built from constants of this package)


_ENDED = f"to_status IN ({', '.join(repr(str(status)) for status in sorted(TERMINAL))})"
_KNOWN = f"event IN ('{Event.SUBMIT}', '{Event.ADOPT}')"
_ERROR = class_sql(table_of(Generation).c.error_code).compile(
    compile_kwargs={"literal_binds": True}
)
# No upper end: all there is by now.
_RANGE = "txid >= :low AND txid < coalesce(CAST(:high AS bigint), 9223372036854775807)"

_EVENTS = text(
    f"""
    WITH fresh AS MATERIALIZED (
        SELECT e.event, e.to_status,
               {model_label("(generations.request ->> 'model')")} AS model,
               {tenant_label("generations.tenant")} AS tenant,
               coalesce({_ERROR}, '{d.NO_ERROR}') AS error,
               greatest(extract(epoch FROM submitted_at - created_at), 0) AS waited,
               greatest(extract(epoch FROM finished_at - submitted_at), 0) AS ran
        FROM generation_events e JOIN generations ON generations.id = e.generation_id
        WHERE {_RANGE} AND e.id > :passed AND e.to_status IS NOT NULL
    )
    SELECT name, labels, bucket, sum(value) AS value FROM (
        SELECT '{d.TRANSITIONS.name}' AS name, ARRAY[event] AS labels, {SUM} AS bucket,
               1.0 AS value FROM fresh
        UNION ALL
        SELECT '{d.ACCEPTED.name}', ARRAY[model, tenant], {SUM}, 1.0
        FROM fresh WHERE event = '{Event.ACCEPT}'
        UNION ALL
        SELECT '{d.SUBMITTED.name}', ARRAY[CASE event WHEN '{Event.SUBMIT}' THEN 'answered'
               ELSE 'adopted' END, model, tenant], {SUM}, 1.0
        FROM fresh WHERE {_KNOWN}
        UNION ALL
        SELECT '{d.FINISHED.name}', ARRAY[to_status, error, model, tenant], {SUM}, 1.0
        FROM fresh WHERE {_ENDED}
        UNION ALL {_observed(d.WAITING, "tenant", "waited", _KNOWN)}
        UNION ALL {_observed(d.RUNNING, "to_status, model", "ran", _ENDED)}
    ) counted GROUP BY name, labels, bucket
    """  # noqa: S608
)

_ENTRIES = text(
    f"""
    SELECT CASE kind WHEN 'charged' THEN '{d.CHARGED.name}' ELSE '{d.ESTIMATED.name}' END AS name,
           ARRAY[{model_label("model")}, {tenant_label("tenant")}] AS labels,
           {SUM} AS bucket, sum(amount) AS value
    FROM ledger_entries
    WHERE {_RANGE} AND id > :passed AND kind IN ('charged', 'estimated')
    GROUP BY 1, 2
    """  # noqa: S608
)

_SOURCES: Mapping[str, TextClause] = {"generation_events": _EVENTS, "ledger_entries": _ENTRIES}

_CURSOR = text(
    """
    SELECT coalesce(c.txid, 0) AS txid, coalesce(c.passed, 0) AS passed,
           CAST(CAST(pg_snapshot_xmin(pg_current_snapshot()) AS text) AS bigint) AS settled,
           CAST(CAST(pg_snapshot_xmax(pg_current_snapshot()) AS text) AS bigint) AS next
    FROM (SELECT) _ LEFT JOIN metric_cursors c ON c.source = :source
    """
)


@dataclass(frozen=True)
class Sample:
    """One value of a total, or of one of its buckets."""

    name: str
    labels: tuple[str, ...]
    bucket: int
    value: Decimal


def add(conn: Connection, samples: Iterable[Sample]) -> None:
    """Add to the totals; in one order everywhere, so that two processes don't lock each other."""
    rows = [
        {"name": s.name, "labels": list(s.labels), "bucket": s.bucket, "value": s.value}
        for s in sorted(samples, key=lambda s: (s.name, s.labels, s.bucket))
        if s.value
    ]
    if not rows:
        return
    added = insert(_totals).values(rows)
    conn.execute(
        added.on_conflict_do_update(
            index_elements=[_totals.c.name, _totals.c.labels, _totals.c.bucket],
            set_={"value": _totals.c.value + added.excluded.value},
        )
    )


MOST = 100_000
"""Rows of each table that one fold takes: half a second or so."""


def fold(conn: Connection, classes: Classes, *, most: int = MOST) -> bool:
    """Add to the totals what has been written since the last time. True if there is more to add.

    One process does it at a time; another leaves it to that one.
    """
    if not conn.execute(select(func.pg_try_advisory_xact_lock(_FOLD_LOCK))).scalar_one():
        return False
    left = [_fold(conn, source, classes, most) for source in _SOURCES]
    return any(left)


def _fold(conn: Connection, source: str, classes: Classes, most: int) -> bool:
    cursor = conn.execute(_CURSOR, {"source": source}).one()
    low, passed, high = cursor.txid, cursor.passed, cursor.settled
    if low > cursor.next:
        # Another server's numbers: this database was restored from a dump. What that server had
        # not counted is, and from here on this one's numbers hold.
        add(conn, _fresh(conn, source, classes, low=low, high=None, passed=passed))
        passed = conn.execute(text(f"SELECT coalesce(max(id), 0) FROM {source}")).scalar_one()  # noqa: S608
        more = False
    elif high > low:
        least = text(f"SELECT txid FROM {source} WHERE {_RANGE} ORDER BY txid OFFSET :most LIMIT 1")  # noqa: S608
        bound = {"low": low, "high": high, "most": most}
        next_ = conn.execute(least, bound).scalar_one_or_none()
        more = next_ is not None
        # A transaction is counted as a whole, however many rows it wrote.
        high = high if next_ is None else max(next_, low + 1)
        add(conn, _fresh(conn, source, classes, low=low, high=high, passed=passed))
    else:
        return False
    moved = insert(MetricCursor).values(source=source, txid=high, passed=passed)
    conn.execute(
        moved.on_conflict_do_update(
            index_elements=["source"], set_={"txid": high, "passed": passed}
        )
    )
    return more


def _fresh(
    conn: Connection, source: str, classes: Classes, *, low: int, high: int | None, passed: int
) -> list[Sample]:
    bound = {"low": low, "high": high, "passed": passed}
    rows = conn.execute(_SOURCES[source], {**classes.parameters, **bound})
    return [Sample(r.name, tuple(r.labels), r.bucket, Decimal(r.value)) for r in rows]


def read(conn: Connection, classes: Classes) -> list[Sample]:
    """All totals as of now. In a REPEATABLE READ transaction they are of one moment."""
    sums: defaultdict[tuple[str, tuple[str, ...], int], Decimal] = defaultdict(Decimal)
    t = _totals.c
    for row in conn.execute(select(t.name, t.labels, t.bucket, t.value)):
        sums[row.name, tuple(row.labels), row.bucket] += row.value
    for source in _SOURCES:
        cursor = conn.execute(_CURSOR, {"source": source}).one()
        new = _fresh(conn, source, classes, low=cursor.txid, high=None, passed=cursor.passed)
        for sample in new:
            sums[sample.name, sample.labels, sample.bucket] += sample.value
    return [Sample(*key, value) for key, value in sums.items()]
