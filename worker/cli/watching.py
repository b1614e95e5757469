"""What `seedance watch` reads, and how often it may."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from sqlalchemy import Connection, Engine

from models import choosing, credit, flow, reads, waiting
from models.artifacts.reading import unstored
from models.choosing import Choice
from models.credit import Funds
from models.flow import Flow
from models.ledger import reading as ledger
from models.lifecycle import Status
from models.notices import State
from models.notices import reading as outbox
from models.reads import GenerationView, Summary
from models.wait_reasons import WaitReason
from models.waiting import Waiting
from worker.cli import output

OLDEST = 5
"""So many of those that wait longest are shown."""

ATTENTION = 5
"""So many that need an operator."""

_SELDOM = 20
"""Counting what has ended reads the whole table: it gets at most a part in so many of the time."""


@dataclass(frozen=True)
class Credits:
    """The account, in credits."""

    funds: Funds
    charged_today: Decimal
    """By the ledger, since midnight UTC."""


@dataclass(frozen=True)
class Deliveries:
    """What goes out beside the generations."""

    notices_pending: int
    notices_dead: int
    archive_failing: int
    archive_lost: int
    """In the last seven days."""


@dataclass(frozen=True)
class Snapshot:
    """What is shown of one moment."""

    summary: Summary
    flow: Flow
    waiting: Waiting
    attention: list[GenerationView]
    credits: Credits
    deliveries: Deliveries
    newest: list[GenerationView]


@dataclass
class Watcher:
    """Reads snapshots; what is dear to count, not each time."""

    engine: Engine
    _ended: Mapping[Status, int] = field(default_factory=dict)
    _again: float = float("-inf")

    def read(self, limit: int) -> Snapshot:
        """The state of this moment, with the newest `limit` generations."""
        with self.engine.connect() as conn:
            self._count(conn)
            notices, files = outbox.counts(conn), unstored(conn)
            return Snapshot(
                reads.summary(conn, ended=self._ended),
                flow.read(conn),
                waiting.now(conn, limit=OLDEST),
                choosing.newest(conn, Choice(attention=True), limit=ATTENTION),
                Credits(credit.funds(conn), ledger.charged(conn, after=_midnight())),
                Deliveries(
                    notices[State.PENDING],
                    notices[State.DEAD],
                    files.failing,
                    files.lost,
                ),
                choosing.newest(conn, Choice(), limit=limit) if limit else [],
            )

    def summary(self) -> Summary:
        """The summary alone."""
        with self.engine.connect() as conn:
            self._count(conn)
            return reads.summary(conn, ended=self._ended)

    def _count(self, conn: Connection) -> None:
        began = time.monotonic()
        if began < self._again:
            return
        self._ended = reads.ended(conn)
        took = time.monotonic() - began
        self._again = began + (took * _SELDOM if took > 0.1 else 0.0)


def _midnight() -> datetime:
    return datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)


def snapshot_json(shown: Snapshot) -> dict[str, Any]:
    """A snapshot under its documented names; names are only added."""
    summary, funds = shown.summary, shown.credits.funds
    return {
        "by_status": {str(s): summary.by_status.get(s, 0) for s in Status},
        "in_flight": summary.in_flight,
        "attention": summary.attention,
        "blocked": summary.blocked,
        "oldest_due_seconds": round(summary.oldest_due_seconds, 1),
        "breakers": summary.breakers,
        "limits": summary.limits,
        "pauses": summary.pauses,
        "flow": {
            "span_seconds": round(shown.flow.span, 1),
            "counts": {kind: shown.flow.counts.get(kind, 0) for kind in flow.KINDS},
            "last_minute": {kind: shown.flow.minute.get(kind, 0) for kind in flow.KINDS},
            "per_minute": {kind: round(shown.flow.per_minute(kind), 2) for kind in flow.KINDS},
        },
        "errors": shown.flow.errors,
        "waiting": {
            "by_reason": {
                str(reason): shown.waiting.counts.get(reason, 0) for reason in WaitReason
            },
            "oldest": [output.generation_json(view) for view in shown.waiting.oldest],
        },
        "needs_attention": [output.generation_json(view) for view in shown.attention],
        "credits": {
            "remain_credits": funds.remain,
            "asked_seconds_ago": None if funds.age is None else round(funds.age, 1),
            "under_way": funds.under_way,
            "free": funds.free,
            "charged_today": shown.credits.charged_today,
        },
        "deliveries": shown.deliveries,
        "newest": [output.generation_json(view) for view in shown.newest],
    }
