"""The operator of a chaos run: decides what only an operator can, and notices silence.

With a seed that the producer fixed and several lost answers among equals, nothing in the task list
tells the tasks apart (docs/promise.md, "What remains"). An operator knows what was asked, and so
does this one: it looks at the prompt.
"""

import logging
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field

from sqlalchemy import Engine, Row, text

import simulator
from models.operating.actions import By
from tests.chaos.records import number_of
from tests.chaos.strikes import Journal
from worker import operator
from worker.operator import DecisionRefused
from worker.runtime import build
from worker.settings import load_settings
from worker.upkeep import reconcile

log = logging.getLogger(__name__)

LATEST = 15.0
"""Seconds that a live row may be overdue in a whole system before that counts as waiting in
silence: several leases, and a worker's start."""
BY = By("operator of the chaos run")

_OPEN = text(
    """
    SELECT id, request, status, attempt, attention, wait_reason, blocked_by, lease,
           extract(epoch FROM now() - due_at) AS overdue
    FROM generations WHERE finished_at IS NULL
    """
)


@dataclass
class Watch:
    """Looks at what has not ended, again and again, once faults are over."""

    engine: Engine
    sim: simulator.Simulator
    env: Mapping[str, str]
    journal: Journal
    _silent: dict[uuid.UUID, float] = field(default_factory=dict)

    def look(self) -> None:
        """Decide what needs a decision; take down what waits and doesn't say why."""
        with self.engine.connect() as conn:
            rows = conn.execute(_OPEN).all()
        for row in rows:
            if row.attention is not None and row.request.get("seed") is not None:
                self._decide(row)
        self._listen(rows)

    def _decide(self, row: Row[tuple[object, ...]]) -> None:
        number = number_of(row.request)
        mine = [
            task["task_id"]
            for task in self.sim.tasks(origin="submit", text=f"<{number:04d}>")
            if number_of(task["body"]) == number
        ]
        rt = build(load_settings(self.env), pool_size=1)
        try:
            if mine:
                operator.adopt(rt, row.id, mine[0], attempt=row.attempt, by=BY)
            else:
                operator.resubmit(rt.engine, row.id, attempt=row.attempt, by=BY)
            self.journal.tell("operator", f"<{number:04d}> {row.attention}")
        except DecisionRefused as error:
            log.info("<%04d>: %s", number, error)
        finally:
            rt.close()

    def _listen(self, rows: object) -> None:
        now = time.monotonic()
        silent = {}
        for row in rows:  # type: ignore[attr-defined]
            what = _silence(row)
            if what is None:
                continue
            since = self._silent.get(row.id, now)
            silent[row.id] = since
            if now - since > LATEST and since > 0:
                self.journal.tell("waits in silence", f"{number_of(row.request)} {what}")
                silent[row.id] = -1.0  # told once
            elif since < 0:
                silent[row.id] = -1.0
        self._silent = silent


def _silence(row: Row[tuple[object, ...]]) -> str | None:
    """How a row waits without a word, if it does."""
    overdue = float(row.overdue)
    if row.status == "accepted":
        if overdue < -1.0 and not row.wait_reason and row.blocked_by is None:
            return f"accepted, put off for {-overdue:.0f} s without a reason"
        return None  # in the queue, or it says why not
    if overdue > LATEST:
        return f"{row.status}, due for {overdue:.0f} s and nobody comes"
    return None


def reconcile_once(env: Mapping[str, str]) -> None:
    """The last look at the task list: whatever is there and unknown is flagged by now."""
    rt = build(load_settings(env), pool_size=1)
    try:
        reconcile.run(rt)
    finally:
        rt.close()
