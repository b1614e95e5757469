"""What an observation of the remote task's end writes: for one generation or for many."""

import uuid
from collections.abc import Sequence
from functools import cache
from typing import Any

from sqlalchemy import (
    Connection,
    Numeric,
    Text,
    Uuid,
    any_,
    bindparam,
    cast,
    column,
    func,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from models import artifacts
from models.lifecycle import UNSPECIFIED, Event, Observation
from models.transitions.core import Moved, Prepared, carry_out, g, prepare

SHOWN = (
    func.jsonb_to_recordset(bindparam("shown", type_=JSONB))
    .table_valued(
        column("id", Uuid),
        column("status", Text),
        column("credit_cost", Numeric),
        column("error_code", Text),
        column("error_message", Text),
        column("video_url", Text),
        column("last_frame_url", Text),
        name="shown",
    )
    .render_derived(with_types=True)
)
"""Observations as rows of a statement, by the generation's `id`; one parameter for all."""


def finish(
    conn: Connection, event: Event, seen: Sequence[tuple[uuid.UUID, Observation]]
) -> list[Moved]:
    """`running →` the end that the remote task of each generation shows, in one statement."""
    given = {"ids": [generation_id for generation_id, _ in seen], "shown": as_shown(seen)}
    return carry_out(conn, _finish(event, artifacts.wanted(conn, event)), given)


@cache
def _finish(event: Event, stores: bool) -> Prepared:
    s = SHOWN.c
    charged = event is Event.COMPLETE
    return prepare(
        event,
        g.id == any_(bindparam("ids", type_=ARRAY(Uuid))),
        values={
            "lease": g.lease + 1,
            "remote_status": s.status,
            "observed_at": func.now(),
            "credit_cost": func.coalesce(s.credit_cost, g.credit_cost) if charged else 0,
            "video_url": s.video_url,
            "last_frame_url": s.last_frame_url,
            "error_code": func.coalesce(func.nullif(s.error_code, ""), UNSPECIFIED)
            if event is Event.FAIL
            else func.nullif(s.error_code, ""),
            "error_message": s.error_message,
        },
        detail=func.jsonb_build_object(
            "remote_status", s.status, "credit_cost", cast(s.credit_cost, Text)
        ),
        each=SHOWN,
        stores=stores,
    )


def as_shown(seen: Sequence[tuple[uuid.UUID, Observation]]) -> list[dict[str, Any]]:
    """Observations as the parameter of `SHOWN`."""
    return [
        {
            "id": str(generation_id),
            "status": task.status,
            # As text: a number of JSON would pass through a float.
            "credit_cost": None if task.credit_cost is None else str(task.credit_cost),
            "error_code": task.error_code,
            "error_message": task.error_message,
            "video_url": task.video_url,
            "last_frame_url": task.last_frame_url,
        }
        for generation_id, task in seen
    ]
