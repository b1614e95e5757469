"""A snapshot of `seedance watch` on a terminal: what is wrong first, what is newest last."""

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from models import flow
from models.flow import Flow
from models.lifecycle import Status
from models.reads import GenerationView, Summary
from worker.cli import output
from worker.cli.listing import prompt, row_of, table_headings
from worker.cli.watching import Credits, Deliveries, Snapshot

LATE = 10.0
"""Seconds overdue from which work counts as late."""

_FEWEST = 3
"""So many of the newest are shown, however small the screen."""

_ERRORS = 6


def screen(shown: Snapshot, *, height: int | None = None) -> Group:
    """The state as a screen of so many lines; the newest generations give way."""
    parts: list[RenderableType] = [_counts(shown.summary), _facts(shown)]
    parts += [_one_line(said, "yellow") for said in obstacles(shown.summary)]
    parts += [_attention(view) for view in shown.attention]
    parts += [Text(), _flow(shown.flow)]
    parts += [*_errors(shown.flow), *_waiting(shown), _credits(shown.credits)]
    parts += _deliveries(shown.deliveries)
    newest = shown.newest
    if height is not None:
        # Tables have lines of their own: that of flow, of who waits, the heading of the newest.
        taken = len(parts) + 2 + len(shown.waiting.oldest) + 2
        newest = newest[: max(_FEWEST, height - taken)]
    if newest:
        headings, right, shrink = table_headings()
        rows = [row_of(view) for view in newest]
        parts += [Text(), output.table_of_rows(headings, rows, right=right, shrink=shrink)]
    for part in parts:
        if isinstance(part, Text):
            part.no_wrap, part.overflow = True, "ellipsis"
    return Group(*parts)


def obstacles(summary: Summary) -> list[str]:
    """Return what limits submission: pauses, breakers, flow control."""
    return [
        *(f"{pause}, for {output.age(pause.paused_at)}" for pause in summary.pauses),
        *(f"breaker {name} is open: {why}" for name, why in sorted(summary.breakers.items())),
        *(f"{limit.name}: {limit}" for limit in summary.limits),
    ]


def _counts(summary: Summary) -> Text:
    counts = Text()
    for status in Status:
        if number := summary.by_status.get(status, 0):
            counts.append(f"{status} ", style="dim")
            counts.append(f"{number}  ", style=output.STYLES[status])
    return counts or Text("no generations", style="dim")


def _facts(shown: Snapshot) -> Text:
    summary = shown.summary
    limit = summary.flow.concurrency
    of = "" if limit is None else f" of {limit.value} that the provider takes"
    facts = Text(f"in flight {summary.in_flight}{of}   ")
    late = summary.oldest_due_seconds
    said = f"oldest due {output.span_text(late)} ago" if late >= 1 else "nothing late"
    facts.append(said, style="yellow" if late > LATE else "")
    for name, number in (("attention", summary.attention), ("blocked", summary.blocked)):
        facts.append(f"   {name} {number}", style="yellow" if number else "dim")
    return facts


def _attention(view: GenerationView) -> Text:
    told = view.attention or "its files are not in the archive"
    return _one_line(f"! {str(view.id)[:8]} {told}", "yellow")


def _flow(lately: Flow) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("flow", no_wrap=True, style="dim")
    for kind in flow.KINDS:
        table.add_column(kind, justify="right", no_wrap=True)
    table.add_row("last minute", *(_number(lately.minute.get(kind, 0)) for kind in flow.KINDS))
    span = f"a minute, of {output.span_text(max(60.0, lately.span))}"
    table.add_row(span, *(_number(lately.per_minute(kind)) for kind in flow.KINDS))
    return table


def _number(value: float) -> Text:
    shown = str(value) if isinstance(value, int) else f"{value:.1f}"
    return Text(shown, style="" if value else "dim")


def _errors(lately: Flow) -> list[RenderableType]:
    if not lately.errors:
        return []
    named = [f"{code} {count}" for code, count in list(lately.errors.items())[:_ERRORS]]
    left = len(lately.errors) - len(named)
    more = [f"and {left} others"] if left else []
    return [Text("errors ", style="dim").append(", ".join((*named, *more)), style="red")]


def _waiting(shown: Snapshot) -> list[RenderableType]:
    waits = {kind: number for kind, number in shown.waiting.counts.items() if number}
    if not waits:
        return []
    said = ", ".join(f"{kind} {number}" for kind, number in sorted(waits.items()))
    oldest: list[list[str | Text]] = []
    for view in shown.waiting.oldest:
        why = Text(view.waits_for or "", style="yellow")
        why.append(f"  {prompt(view.request)}", style="dim")
        oldest.append([str(view.id)[:8], view.tenant, output.age(view.created_at), why])
    headings = ["THE OLDEST", "TENANT", "AGE", "WAITS FOR"]
    table = output.table_of_rows(headings, oldest, right=["AGE"], shrink="WAITS FOR")
    return [Text("waiting ", style="dim").append(said), table]


def _credits(credits_: Credits) -> Text:
    funds, text = credits_.funds, Text("credits ", style="dim")
    if funds.free is None or funds.age is None:
        text.append("balance not known yet")
    else:
        text.append(
            f"{output.credits_text(funds.free)} free", style="" if funds.free > 0 else "yellow"
        )
        text.append(
            f", {output.credits_text(funds.under_way)} set aside,"
            f" {output.credits_text(funds.remain)} on the account"
            f" {output.span_text(funds.age)} ago"
        )
    return text.append(f"; {output.credits_text(credits_.charged_today)} charged today (UTC)")


def _deliveries(out: Deliveries) -> list[RenderableType]:
    told = [
        ("notices pending", out.notices_pending, ""),
        ("notices given up", out.notices_dead, "yellow"),
        ("not archived yet, after failures", out.archive_failing, "yellow"),
        ("lost to the archive in 7d", out.archive_lost, "red"),
    ]
    some = [(name, number, style) for name, number, style in told if number]
    if not some:
        return []
    text = Text("deliveries ", style="dim")
    for place, (name, number, style) in enumerate(some):
        text.append(f"{', ' if place else ''}{number} {name}", style=style)
    return [text]


def _one_line(said: str, style: str) -> Text:
    return Text(" ".join(said.split()), style=style)
