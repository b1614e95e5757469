"""What a run has to say: one screen when it held, and the whole story of what broke when not."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from tests.chaos import liveness
from tests.chaos.invariants import Broken, double_uploads
from tests.chaos.plan import Plan
from tests.chaos.records import Records, Row, number_of
from tests.chaos.strikes import NOT_STRIKES

MOST_TIMELINES = 4


@dataclass
class Report:
    """The figures of one run."""

    seed: int
    n: int
    held: bool
    broken: dict[str, list[str]]
    faults: dict[str, int]
    """By `endpoint kind`, as the provider counted them."""
    limited: dict[str, int]
    """Answers that named the rate limit or the concurrency limit, by `endpoint code`."""
    strikes: dict[str, int]
    """What was done to processes, broker and database."""
    crash_points: dict[str, int]
    """Workers that died, by the point they died at."""
    submits: int
    """POSTs that the provider received."""
    tasks: int
    """Remote tasks that came of them."""
    ends: dict[str, int]
    called_back: int
    """Attempts of which a callback was heeded."""
    double_uploads: int
    operator: int
    """Decisions that only an operator could take."""
    seconds_to_rest: float | None
    """From the last fault to the last terminal row; None if they did not all end."""
    seconds: float
    waits: str
    """Waits of healthy generations under partial faults, and what is allowed."""
    traits: str = field(default="")

    @property
    def line(self) -> str:
        """In one line."""
        rest = "never" if self.seconds_to_rest is None else f"{self.seconds_to_rest:.1f} s"
        return (
            f"seed {self.seed} N={self.n}: {'held' if self.held else 'BROKEN'};"
            f" {sum(self.faults.values())} provider faults, {sum(self.strikes.values())} strikes"
            f" ({sum(self.crash_points.values())} deaths at crash points);"
            f" {self.submits} submits, {self.tasks} tasks; {_listed(self.ends)};"
            f" {self.double_uploads} double uploads; {self.operator} by operator;"
            f" at rest {rest} after the last fault; {self.seconds:.0f} s in all"
        )

    def screen(self) -> str:
        """On one screen."""
        rest = "never" if self.seconds_to_rest is None else f"{self.seconds_to_rest:.1f} s"
        lines = [
            f"chaos: seed {self.seed}, N={self.n}, {self.seconds:.0f} s: "
            + ("every promise held" if self.held else "BROKEN"),
            f"  fleet           {self.traits}",
            f"  provider faults {sum(self.faults.values())}: {_listed(self.faults)}",
            f"  limits          {sum(self.limited.values())}: {_listed(self.limited)}",
            f"  strikes         {sum(self.strikes.values())}: {_listed(self.strikes)}",
            f"  died at         {_listed(self.crash_points) or 'no crash point'}",
            f"  provider        {self.submits} submits received, {self.tasks} tasks made",
            f"  generations     {_listed(self.ends)}",
            f"  double uploads  {self.double_uploads}, each with a death between PUT and commit"
            if self.double_uploads and self.held
            else f"  double uploads  {self.double_uploads}",
            f"  called back     {self.called_back} attempts",
            f"  operator        {self.operator} decisions",
            f"  healthy waits   {self.waits}",
            f"  at rest         {rest} after the last fault",
        ]
        return "\n".join(lines)


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))


def report(
    plan: Plan,
    records: Records,
    wrong: Mapping[str, list[Broken]],
    *,
    died_at: Iterable[str],
    seconds_to_rest: float | None,
    seconds: float,
) -> Report:
    """The figures of a run that is over."""
    counts = records.journal.counts()
    return Report(
        seed=plan.seed,
        n=plan.n,
        held=not wrong,
        broken={name: [f"{b.number}: {b.what}" for b in found] for name, found in wrong.items()},
        faults={
            f"{endpoint} {kind}": count
            for endpoint, kinds in records.faults.items()
            for kind, count in kinds.items()
        },
        limited={
            f"{endpoint} {code}": count
            for endpoint, codes in records.outcomes.items()
            for code, count in codes.items()
            if code in ("RATE_LIMIT_EXCEEDED", "CONCURRENCY_LIMIT_REACHED")
        },
        strikes={kind: count for kind, count in counts.items() if kind not in NOT_STRIKES},
        crash_points=dict(Counter(died_at)),
        submits=len(records.submits),
        tasks=len(records.tasks),
        ends=dict(Counter(row.status for row in records.rows)),
        called_back=records.called_back,
        double_uploads=double_uploads(records),
        operator=counts["operator"],
        seconds_to_rest=seconds_to_rest,
        seconds=seconds,
        waits=liveness.measure(records).summary(),
        traits=plan.summary().splitlines()[0].partition("; ")[2],
    )


def explain(plan: Plan, records: Records, wrong: Mapping[str, list[Broken]]) -> str:
    """What broke, and the whole timeline of the generations that it broke for."""
    lines = [f"BROKEN with seed {plan.seed}: make chaos SEED={plan.seed} N={plan.n}"]
    lines.append(plan.summary())
    for name, found in wrong.items():
        lines += [f"{name}: <{b.number:04d}> {b.what}" for b in found[:12]]
        if len(found) > 12:
            lines.append(f"{name}: … and {len(found) - 12} more")
    numbers = dict.fromkeys(b.number for found in wrong.values() for b in found if b.number >= 0)
    for number in list(numbers)[:MOST_TIMELINES]:
        lines += ["", *timeline(records, number)]
    return "\n".join(lines)


def timeline(records: Records, number: int) -> list[str]:
    """Everything that happened to one order, ours, the provider's and the harness's, by time."""
    rows = [row for row in records.rows if row.number == number]
    told = [entry for row in rows for entry in _ours(row)]
    told += _theirs(records, number, {row.remote_task_id for row in rows})
    told += [
        (note.at, "chaos", f"{note.kind} {note.detail}")
        for note in records.journal.notes
        if note.kind not in ("waits in silence", "producer")
    ]
    order = next((o for o in records.orders if o.number == number), None)
    head = [f"--- <{number:04d}> {order}"]
    head += [f"    {row.id} {row.status}, attention {row.attention}" for row in rows]
    first = min((at for at, who, _ in told if who != "chaos"), default=0.0) - 1
    last = max((at for at, who, _ in told if who != "chaos"), default=0.0) + 1
    return head + [
        f"    {datetime.fromtimestamp(at, UTC):%H:%M:%S.%f} {who:8} {what}"
        for at, who, what in sorted(told)
        if first <= at <= last
    ]


def _ours(row: Row) -> list[tuple[float, str, str]]:
    told = [
        (e["at"].timestamp(), "row", f"{e['event']} {e['to_status'] or ''} {e['detail'] or ''}")
        for e in row.events
    ]
    for a in row.attempts:
        what = f"{a['number']}: seed {a['seed']}{' drawn' if a['seed_drawn'] else ''}"
        told.append((a["started_at"].timestamp(), "attempt", what))
        if a["decided_at"] is not None:
            end = f"{a['number']}: {a['outcome']} {a['code'] or ''} {a['remote_task_id'] or ''}"
            told.append((a["decided_at"].timestamp(), "attempt", end))
    return told


def _theirs(
    records: Records, number: int, followed: set[str | None]
) -> list[tuple[float, str, str]]:
    told = [
        (submit["time"], "provider", f"submit: {_said(submit)}")
        for submit in records.submits
        if number_of(submit["body"]) == number
    ]
    mine = {t["task_id"] for t in records.tasks if number_of(t["body"]) == number} | followed
    for task in records.tasks:
        if task["task_id"] in mine:
            made = f"task {task['task_id']} made with seed {task['seed']}"
            told.append((task["created_at"], "provider", made))
            if task["ended_at"]:
                end = f"task {task['task_id']} {task['status']}, charged {task['charged']}"
                told.append((task["ended_at"], "provider", end))
    for request in records.requests:
        about = str(request["about"])
        if request["about"] in mine or f"-r{number}." in about:
            what = f"{request['endpoint']} {about[-40:]}: {request['outcome']}"
            told.append((request["time"], "provider", f"{what} {request['fault'] or ''}"))
    return told


def _said(submit: Mapping[str, Any]) -> str:
    return f"{submit['outcome']} {submit['fault'] or ''} {submit['task_id'] or ''}"
