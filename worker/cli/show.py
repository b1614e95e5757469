"""`seedance show`: everything that is known of one generation."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text
from sqlalchemy import Connection, func, select

from api_client.redaction import redact, redact_all
from models import reads, waiting
from models.artifacts import reading as artifact_reading
from models.artifacts.reading import ArtifactView
from models.base import table_of
from models.ledger.reading import EntryView, entries
from models.notices import reading
from models.notices.reading import NoticeView
from models.operating import actions
from models.operating.actions import ActionView
from models.reads import AttemptView, EventView, GenerationView, StrayView
from models.tables import Generation, Upload
from models.wait_reasons import WaitReason, sentence
from worker.cli import artifacts, output
from worker.cli.context import database
from worker.cli.history import detail_text
from worker.cli.lookup import find
from worker.cli.notices import notice_json
from worker.requests import UPLOADABLE

u = table_of(Upload).c
g = table_of(Generation).c

_MOST_NOTICES = 200


@dataclass(frozen=True)
class ReferenceView:
    """A medium of the request, and what was uploaded for it."""

    type: str
    source: str
    file_path: str | None
    sha256: str | None
    size: int | None
    valid_until: datetime | None


@dataclass(frozen=True)
class Shown:
    """One generation with all that belongs to it."""

    view: GenerationView
    references: list[ReferenceView]
    attempts: list[AttemptView]
    events: list[EventView]
    strays: list[StrayView]
    notices: list[NoticeView]
    ledger: list[EntryView]
    actions: list[ActionView]
    artifacts: list[ArtifactView]
    now: datetime
    """By the database's clock."""


@click.command()
@click.argument("name", metavar="ID")
@click.option("--url", "urls", is_flag=True, help="Print the video's signed address as well.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show(*, name: str, urls: bool, as_json: bool) -> None:
    """Show a generation: fields, references, attempts, results, history, credits, who did what.

    ID is the generation's id, the first 8 or more characters of it, or the id of its remote
    task. Signed addresses are keys while they live: they are shown only with --url.

    \b
    Examples:
      seedance show 0b0e7f1a-6d5e-4e0f-9d53-0c1b2a3d4e5f
      seedance show task_abc123 --json | jq .events
    """
    with database() as engine, engine.connect() as conn:
        shown = load(conn, find(conn, name))
    if as_json:
        output.print_json(
            {
                **output.generation_json(shown.view, urls=urls),
                "references": shown.references if urls else redact_all(_plain(shown.references)),
                "attempts": shown.attempts,
                "events": shown.events,
                "strays": shown.strays,
                "notices": [notice_json(notice) for notice in shown.notices],
                "ledger": shown.ledger,
                "actions": shown.actions,
                "artifacts": shown.artifacts,
            }
        )
        return
    _print(output.console(), shown, urls=urls)


def load(conn: Connection, view: GenerationView) -> Shown:
    """Read all that belongs to a generation."""
    return Shown(
        view if view.ended else waiting.current(conn, view, position=True),
        _references(conn, view),
        reads.attempts(conn, view.id),
        reads.events(conn, view.id),
        reads.strays(conn, generation_id=view.id),
        # In the order in which they are told.
        reading.listing(conn, generation_id=view.id, limit=_MOST_NOTICES)[::-1],
        entries(conn, view.id),
        actions.of_generation(conn, view.id, retry_of=view.retry_of),
        artifact_reading.of(conn, view.id),
        conn.execute(select(func.now())).scalar_one(),
    )


def _references(conn: Connection, view: GenerationView) -> list[ReferenceView]:
    uploaded = conn.execute(select(g.content).where(g.id == view.id)).scalar_one()
    asked = view.request.get("content") or []
    sent = uploaded or asked
    paths = [item.get(item.get("type")) for item in sent if isinstance(item, dict)]
    found = {
        row.file_path: row
        for row in conn.execute(
            select(u.file_path, u.sha256, u.size, u.valid_until).where(u.file_path.in_(paths))
        )
    }
    references = []
    for item, path in zip(asked, paths, strict=False):
        kind = item.get("type")
        if kind in UPLOADABLE or kind == "audio_url":
            row = found.get(path)
            references.append(
                ReferenceView(
                    kind,
                    str(item.get(kind)),
                    path if uploaded else None,
                    row.sha256 if row else None,
                    row.size if row else None,
                    row.valid_until if row else None,
                )
            )
    return references


def _plain(references: list[ReferenceView]) -> list[dict[str, Any]]:
    return [dict(vars(reference)) for reference in references]


def _print(to: Console, shown: Shown, *, urls: bool) -> None:
    fields = Table(box=None, show_header=False, pad_edge=False)
    fields.add_column(style="dim", no_wrap=True)
    fields.add_column(overflow="fold")
    for label, value in _fields(shown.view, urls=urls):
        fields.add_row(label, value)
    to.print(fields)
    for reference in shown.references:
        source = reference.source if urls else redact(reference.source)
        to.print(f"\n[bold]reference[/] {reference.type}", end=" ")
        to.print(source, markup=False)
        if reference.file_path:
            size = f"{reference.size:,} bytes, " if reference.size else ""
            to.print(f"  uploaded: {size}{reference.file_path}", markup=False)
    if shown.attempts:
        to.print("\n[bold]attempts[/]")
    for attempt in shown.attempts:
        drawn = "drawn" if attempt.seed_drawn else "fixed by the producer"
        result = attempt.outcome or "open"
        if attempt.outcome in (None, "unknown"):
            result += f", settles at {output.time_text(attempt.settle_at)}"
        task = f", remote task {attempt.remote_task_id}" if attempt.remote_task_id else ""
        code = f" ({attempt.code})" if attempt.code else ""
        line = f"  {attempt.number}  {output.time_text(attempt.started_at)}  {result}{code}{task}"
        to.print(f"{line}, seed {attempt.seed} {drawn}", markup=False)
    if shown.artifacts:
        to.print("\n[bold]results[/]")
    for line in artifacts.lines(shown.artifacts, shown.now):
        to.print(f"  {line}", markup=False)
    to.print("\n[bold]history[/]")
    to.print(timeline(shown.events, shown.view.created_at))
    if shown.notices:
        to.print("\n[bold]notices[/]")
    for notice in shown.notices:
        why = f" ({notice.error})" if notice.error else ""
        at = output.time_text(notice.settled_at or notice.due_at)
        line = f"  {notice.type}  {notice.status}, {at}, to {redact(notice.to or '')}{why}"
        to.print(line, markup=False)
    if shown.ledger:
        to.print("\n[bold]credits[/]")
        to.print(_ledger(shown.ledger, shown.view.created_at))
    if shown.actions:
        to.print("\n[bold]operators[/]")
    for action in shown.actions:
        line = f"  {output.time_text(action.at)}  {action.action} by {action.actor}"
        why = f": {action.reason}" if action.reason else ""
        detail = f" ({detail_text(action)})" if action.detail else ""
        to.print(f"{line}{why}{detail}", markup=False)
    if shown.strays:
        to.print("\n[bold yellow]remote tasks that no generation follows[/]")
    for stray in shown.strays:
        cost = output.credits_text(stray.credit_cost)
        line = f"  {stray.task_id}  {stray.kind}, {stray.status}, {cost} credits"
        to.print(f"{line}, attempt {stray.attempt}", markup=False)


def _ledger(booked: list[EntryView], since: datetime) -> Table:
    """What was booked, with the seconds since the generation was accepted."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(justify="right", style="dim", no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(style="dim", overflow="fold")
    for entry in booked:
        seconds = max(0.0, (entry.at - since).total_seconds())
        amount = output.credits_text(entry.amount) + (" (assumed)" if entry.assumed else "")
        about = " ".join(filter(None, (entry.event, entry.remote_task_id)))
        table.add_row(f"  +{seconds:.1f}s", entry.kind, amount, Text(about))
    return table


def timeline(events: list[EventView], since: datetime) -> Table:
    """A history, with the seconds since the generation was accepted."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(justify="right", style="dim", no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold", style="dim")
    for event in events:
        seconds = (event.at - since).total_seconds()
        detail = ", ".join(f"{key} {value}" for key, value in _readable(event.detail).items())
        to_status = output.status_text(event.to_status or "")
        table.add_row(f"  +{max(0.0, seconds):.1f}s", event.event, to_status, Text(redact(detail)))
    return table


def _readable(detail: dict[str, Any] | None) -> dict[str, Any]:
    """Return an event's detail with the sentence of its wait in place of code and figures."""
    rest = dict(detail or {})
    reason, figures = rest.pop("wait_reason", None), rest.pop("wait_detail", None)
    return rest if reason is None else {"waits for": sentence(WaitReason(reason), figures), **rest}


def _credits_of(view: GenerationView) -> str:
    """What it costs: nothing is charged before the end, whatever the provider named."""
    estimated = f"{output.credits_text(view.estimated_cost)} estimated"
    if view.ended:
        return f"{output.credits_text(view.credit_cost)} charged, {estimated}"
    if view.credit_cost is None:
        return estimated
    return f"{output.credits_text(view.credit_cost)} named by the provider, {estimated}"


def _fields(view: GenerationView, *, urls: bool) -> list[tuple[str, Any]]:
    request = view.request if urls else redact_all(view.request)
    parameters = ", ".join(
        f"{key} {value}"
        for key, value in request.items()
        if key != "content" and value not in (None, False)
    )
    texts = [item["text"] for item in request.get("content") or [] if "text" in item]
    video = view.video_url if urls else "there is one: add --url for its signed address"
    rows: list[tuple[str, Any]] = [
        ("generation", str(view.id)),
        ("status", output.status_text(view.status)),
        ("attention", view.attention),
        ("waits for", view.waits_for),
        ("blocked by", view.blocked_by),
        ("retry of", view.retry_of),
        ("retried as", view.retried_as),
        ("error", " ".join(filter(None, (view.error_code, view.error_message)))),
        ("remote task", view.remote_task_id),
        ("remote status", view.remote_status),
        ("prompt", " ".join(texts)),
        ("request", parameters),
        ("tenant", view.tenant),
        ("priority", view.priority or None),
        ("idempotency key", view.idempotency_key),
        ("metadata", view.metadata),
        ("credits", _credits_of(view)),
        ("cancel asked", view.cancel_requested_at),
        ("accepted", view.created_at),
        ("submitted", view.submitted_at),
        ("last seen", view.observed_at),
        ("ended", view.finished_at),
        ("deadline", view.deadline_at),
        ("next due", view.due_at),
        ("video", video if view.video_url else None),
        ("last frame", view.last_frame_url if urls else None),
    ]
    return [(label, _cell(value)) for label, value in rows if value not in (None, "")]


def _cell(value: Any) -> Any:
    if isinstance(value, datetime):
        return output.time_text(value)
    # Text, not markup: a prompt may have brackets.
    return value if isinstance(value, Text) else Text(str(value))
