"""Reconcile: hold the provider's whole task list against our rows, and mend what differs."""

import logging
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta

from sqlalchemy import func, select
from sqlalchemy.exc import DBAPIError

from api_client import ApiError
from models import schedule, watch
from models.lifecycle import Observation
from models.metrics import pulses
from models.tables import StrayTask
from models.watch import Sightings
from worker.reading import read_list
from worker.runtime import Runtime
from worker.stages import common

log = logging.getLogger(__name__)

_KINDS = tuple(field.name for field in fields(Sightings))

CLOCKS_OFF = timedelta(hours=1)
"""How far the provider's clock may be off ours where a task is held against what was pruned."""


@dataclass(frozen=True)
class Report:
    """What a reconcile saw and did. Task ids where something is to be looked at."""

    complete: bool
    pages: int
    remote_tasks: int
    adopted: tuple[str, ...]
    """Remote tasks whose answer had been lost: now followed."""
    corrected: tuple[str, ...]
    """Remote tasks that had ended unseen: their generations are now ended too."""
    second: tuple[str, ...]
    """Further remote tasks of a generation that has one: somebody pays twice."""
    possible: tuple[str, ...]
    """Could be ours by their parameters: an operator decides (`seedance resolve`)."""
    foreign: tuple[str, ...]
    """Not ours; never touched."""
    unseen: tuple[uuid.UUID, ...]
    """Generations believed running whose task the list does not show: each is looked at."""


def run(rt: Runtime) -> Report:
    """Read the list once, apply every page in one transaction, and look after the unseen."""
    all_sightings = Sightings()

    def on_page(seen: Sequence[Observation]) -> None:
        page = _apply(rt, seen)
        for kind in _KINDS:
            getattr(all_sightings, kind).extend(getattr(page, kind))

    reading = read_list(rt, since=None, list_lag=rt.settings.list_lag, on_page=on_page, keep=False)
    unseen: list[uuid.UUID] = []
    if reading.complete:
        before = reading.began - timedelta(seconds=rt.settings.list_lag + 1)
        with rt.engine.begin() as conn:
            unseen = watch.running_unseen(conn, reading.ids, before=before)
            watch.look_at(conn, unseen)
            schedule.wake(conn)
    with rt.engine.begin() as conn:
        # It ran: a list that drifts under every reading is told by the report, as no stand-still.
        pulses.tell(conn, "reconcile")
    report = Report(
        reading.complete,
        reading.pages,
        len(reading.ids),
        tuple(dict.fromkeys(all_sightings.adopted)),
        tuple(dict.fromkeys(all_sightings.changed)),
        tuple(dict.fromkeys(all_sightings.second)),
        tuple(dict.fromkeys(all_sightings.possible)),
        tuple(dict.fromkeys(all_sightings.foreign)),
        tuple(unseen),
    )
    level = logging.WARNING if report.second or report.possible else logging.INFO
    log.log(
        level,
        "reconciled %d remote tasks: %d adopted, %d corrected, %d second, %d possible,"
        " %d foreign, %d unseen%s",
        report.remote_tasks,
        len(report.adopted),
        len(report.corrected),
        len(report.second),
        len(report.possible),
        len(report.foreign),
        len(report.unseen),
        "" if report.complete else "; the list drifted, so the reading is not complete",
    )
    return report


def by_the_clock(rt: Runtime) -> Report | None:
    """What beat asks for. None if the provider did not show its list: the next one sees it all."""
    try:
        return run(rt)
    except ApiError as error:
        if common.report(rt, error) is None:
            log.warning("the task list can't be read: %s", error)
        return None


def _apply(rt: Runtime, seen: Sequence[Observation]) -> Sightings:
    """A page in one transaction; by halves where the database refuses what a task shows.

    One task's odd data must not keep the other ninety-nine from being seen. A fault of the
    database itself is nobody's data, and is raised.
    """
    try:
        with rt.engine.begin() as conn:
            return watch.hold_against(conn, seen, forgotten=_forgotten(rt))
    except DBAPIError as error:
        if not common.refused_as_data(error):
            raise
        if len(seen) == 1:
            shown = seen[0].task_id[:80]
            log.error("remote task %s is passed over: %s", shown, error)  # noqa: TRY400
            return Sightings()
    middle = len(seen) // 2
    halves = [_apply(rt, seen[:middle]), _apply(rt, seen[middle:])]
    return Sightings(
        **{kind: [task for half in halves for task in getattr(half, kind)] for kind in _KINDS}
    )


def _forgotten(rt: Runtime) -> datetime | None:
    """Before when remote tasks may have been of generations that are pruned; None: of none."""
    kept = rt.settings.retain_generations
    return datetime.now(UTC) - timedelta(seconds=kept) + CLOCKS_OFF if kept else None


def strays(rt: Runtime) -> dict[str, int]:
    """How many remote tasks of each kind no generation follows."""
    with rt.engine.connect() as conn:
        rows = conn.execute(select(StrayTask.kind, func.count()).group_by(StrayTask.kind))
        return {kind: count for kind, count in rows}  # noqa: C416  (mypy: a Row is no pair)
