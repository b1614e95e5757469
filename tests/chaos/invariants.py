"""The promise, checked: what must hold of both sides' records after whatever went wrong.

Each check is a function of `Records` and yields what it found broken. They trust nothing that the
service says of itself where the provider's side can be asked: a task belongs to the request
whose tag stands in its prompt.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from decimal import Decimal

from models.lifecycle import TERMINAL, TRANSITIONS, Event, Note, Status
from tests.chaos import liveness
from tests.chaos.records import Records, Row, number_of

BIRTHS = {Event.ACCEPT: Status.ACCEPTED, Event.REJECT: Status.FAILED}
TABLE_LOCKED = "table locked"
SPOILS_UPLOADS = frozenset(
    {"kill -9 of a pool process", "database restarted at once", TABLE_LOCKED}
)
"""What can part a PUT from the commit that records it, besides any death of a worker; see
`uploaded_once`."""
AROUND = 3.0
"""Seconds between a PUT and its commit on a machine that is very busy."""

SECRETS = (
    re.compile(r"X-Amz-(Signature|Credential)=[0-9A-Za-z%]", re.I),
    re.compile(r"[?&]token=[0-9A-Za-z]", re.I),
    re.compile(r"\b[Ss]ignature=[0-9a-f]{8}"),
    re.compile(r"/callbacks/[0-9a-f]{32}/\d+/[A-Za-z0-9_-]{16}"),
)


@dataclass(frozen=True)
class Broken:
    """One thing that does not hold, and of which order; -1 for none."""

    what: str
    number: int = -1


Check = Callable[[Records], Iterator[Broken]]


def every_request_is_kept(records: Records) -> Iterator[Broken]:
    """Each order has one row, and each row an order."""
    rows = Counter(row.number for row in records.rows)
    for order in records.orders:
        if rows[order.number] != 1:
            yield Broken(f"{rows[order.number]} rows for one request", order.number)
    for number in rows.keys() - {order.number for order in records.orders}:
        yield Broken("a row that nobody asked for", number)


def every_row_has_ended(records: Records) -> Iterator[Broken]:
    for row in records.rows:
        if Status(row.status) not in TERMINAL:
            why = row.attention or row.wait_reason or "without saying why"
            yield Broken(f"still {row.status}: {why}", row.number)


def one_task_per_request(records: Records) -> Iterator[Broken]:
    """At most one remote task for a request; exactly one, and that one, where it is followed."""
    made = defaultdict(list)
    for task in records.tasks:
        made[number_of(task["body"])].append(task["task_id"])
    for number, tasks in made.items():
        if len(tasks) > 1:
            yield Broken(f"{len(tasks)} remote tasks: {', '.join(tasks)}", number)
    for row in records.rows:
        wanted = [] if row.remote_task_id is None else [row.remote_task_id]
        if made.get(row.number, []) != wanted:
            yield Broken(
                f"ended {row.status} following {wanted}, the provider made"
                f" {made.get(row.number, [])}",
                row.number,
            )


def no_orphans(records: Records) -> Iterator[Broken]:
    """Each remote task has ended and is followed by one generation; none is flagged as stray."""
    followers = Counter(row.remote_task_id for row in records.rows)
    for task in records.tasks:
        number = number_of(task["body"])
        if followers[task["task_id"]] != 1:
            yield Broken(
                f"remote task {task['task_id']} is followed by {followers[task['task_id']]}", number
            )
        if task["status"] not in ("completed", "failed", "cancelled", "expired"):
            yield Broken(f"remote task {task['task_id']} is still {task['status']}", number)
    ours = {task["task_id"]: number_of(task["body"]) for task in records.tasks}
    for stray in records.strays:
        if stray["kind"] != "foreign" or stray["task_id"] in ours:
            yield Broken(
                f"remote task {stray['task_id']} is kept as {stray['kind']}",
                ours.get(stray["task_id"], -1),
            )


def ends_agree(records: Records) -> Iterator[Broken]:
    """A generation that was submitted ends as its remote task did."""
    ends = {task["task_id"]: task["status"] for task in records.tasks}
    for row in records.rows:
        if row.remote_task_id in ends and ends[row.remote_task_id] != row.status:
            yield Broken(f"{row.status}, while its task is {ends[row.remote_task_id]}", row.number)


def credits_are_equal(records: Records) -> Iterator[Broken]:
    """To the cent: of each generation, and of the account."""
    charged = {task["task_id"]: Decimal(task["charged"]) for task in records.tasks}
    for row in records.rows:
        cost = charged.get(row.remote_task_id or "", Decimal(0))
        if Status(row.status) in TERMINAL and (row.credit_cost or Decimal(0)) != cost:
            yield Broken(f"credit_cost is {row.credit_cost}, charged were {cost}", row.number)
    completed = sum(
        (row.credit_cost or Decimal(0) for row in records.rows if row.status == Status.COMPLETED),
        Decimal(0),
    )
    if completed != records.used_credits:
        yield Broken(f"completed rows cost {completed}, the account paid {records.used_credits}")


def the_ledger_balances(records: Records) -> Iterator[Broken]:
    """Each charge of the provider is booked once, and nothing stays reserved for what has ended."""
    numbers = {row.id: row.number for row in records.rows}
    booked: dict[str, Decimal] = defaultdict(Decimal)
    reserved: dict[int, Decimal] = defaultdict(Decimal)
    ended = {row.number for row in records.rows if Status(row.status) in TERMINAL}
    for entry in records.ledger:
        number = numbers.get(entry["generation_id"], -1)
        if entry["kind"] == "charged":
            booked[entry["remote_task_id"]] += entry["amount"]
        elif entry["kind"] in ("reserved", "released"):
            reserved[number] += entry["amount"] * (1 if entry["kind"] == "reserved" else -1)
    for task in records.tasks:
        if booked[task["task_id"]] != Decimal(task["charged"]):
            what = f"{booked[task['task_id']]} booked, {task['charged']} charged"
            yield Broken(what, number_of(task["body"]))
    for number, left in reserved.items():
        if number in ended and left:
            yield Broken(f"{left} are still reserved", number)


def results_are_archived_once(records: Records) -> Iterator[Broken]:
    """Each completed generation's video lies in the archive, once, as the provider has it.

    Nothing else lies there but, until it is swept, what somebody left who died after losing its
    lease.
    """
    if records.archive is None:
        return
    made = {task["task_id"]: task["video_sha256"] for task in records.tasks}
    wanted = set()
    leases = {}
    for row in records.rows:
        kinds = sorted(one["kind"] for one in row.artifacts)
        if kinds != (["video"] if row.status == Status.COMPLETED else []):
            yield Broken(f"ended {row.status} with the artifacts {kinds}", row.number)
        for one in row.artifacts:
            leases[f"{row.id}.{one['kind']}"] = one["lease"]
            if one["stored_at"] is None:
                yield Broken(f"its video is not stored: {one['error']}", row.number)
                continue
            name = "/".join(one["uri"].split("/")[-2:])
            wanted.add(name)
            hashes = {one["sha256"], records.archive.get(name), made.get(row.remote_task_id or "")}
            if len(hashes) != 1:
                yield Broken(f"its video is {name}, by hashes {hashes}", row.number)
            told = [event for event in row.events if event["event"] == Note.ARCHIVED]
            if len(told) != 1:
                yield Broken(f"told {len(told)} times that its video is stored", row.number)
    for name in records.archive.keys() - wanted:
        owner, _, lease = name.removeprefix(".incoming/").removesuffix(".part").rpartition(".")
        if not lease.isdecimal() or int(lease) >= leases.get(owner, 0):
            yield Broken(f"{name} lies in the archive and belongs to nobody")


def histories_are_allowed(records: Records) -> Iterator[Broken]:
    """Events form a path of `TRANSITIONS` from the row's birth to its status."""
    for row in records.rows:
        wrong = _wrong_step(row)
        if wrong is not None:
            yield Broken(wrong, row.number)


def _wrong_step(row: Row) -> str | None:
    at: Status | None = None
    for told in row.events:
        if told["event"] in set(Note):
            continue
        event, target = Event(told["event"]), Status(told["to_status"])
        if at is None:
            if BIRTHS.get(event) is not target or told["from_status"] is not None:
                return f"begins with {event} to {target}"
        else:
            allowed = TRANSITIONS.get(event)
            if allowed is None or at not in allowed.sources or target is not allowed.target:
                return f"{event} led from {at} to {target}"
            if told["from_status"] != at:
                return f"{event} says it left {told['from_status']}, it was {at}"
        at = target
    return None if at == row.status else f"the history ends {at}, the row is {row.status}"


def uploaded_once(records: Records) -> Iterator[Broken]:
    """The same bytes are sent once, but where a death between PUT and commit makes it unavoidable.

    `models.uploads.claim` gives the bytes to one generation under one lease; whoever finds the
    claim's end passed without a `file_path` sends them again, and cannot know better: storage takes
    no questions. So: of the same bytes one upload is recorded; each other stored one has a
    disturbance that can part a PUT from its commit (a death, `SPOILS_UPLOADS`) just then, or its
    own answer was spoilt. A repeated PUT to the same path needs a spoilt answer, too.
    """
    recorded = {
        event["detail"]["file_path"]
        for row in records.rows
        for event in row.events
        if event["event"] == Note.UPLOADED
    }
    spoilt = _spoilt_puts(records)
    by_content: dict[str, list[str]] = defaultdict(list)
    for upload in records.uploads:
        if upload["puts"] == 0:
            continue
        path = str(upload["file_path"])
        by_content[upload["sha256"]].append(path)
        if upload["puts"] > 1 and upload["puts"] - 1 > spoilt[path]:
            yield Broken(f"{path} was put {upload['puts']} times", _owner(path))
        if path not in recorded and not spoilt[path] and not _disturbed(records, path):
            yield Broken(f"{path} was stored and never recorded", _owner(path))
    for paths in by_content.values():
        kept = [path for path in paths if path in recorded]
        if len(kept) > 1:
            yield Broken(f"recorded twice: {', '.join(kept)}", _owner(kept[1]))


def double_uploads(records: Records) -> int:
    """How many PUTs stored bytes that storage had already."""
    puts: Counter[str] = Counter()
    for upload in records.uploads:
        puts[str(upload["sha256"])] += upload["puts"] if upload["sha256"] else 0
    return sum(count - 1 for count in puts.values() if count > 1)


def _owner(path: str) -> int:
    found = re.search(r"-r(\d+)\.", path)
    return int(found[1]) if found else -1


def _puts(records: Records) -> Iterator[tuple[str, float, bool]]:
    """Each PUT: its path, when it was carried out, and whether its answer said so."""
    for request in records.requests:
        if request["endpoint"] == "put":
            path = str(request["about"]).partition("/seedance-media/")[2]
            answered = request["fault"] is None and request["outcome"] == "200"
            yield path, float(request["time"]), answered


def _spoilt_puts(records: Records) -> Counter[str]:
    return Counter(path for path, _, answered in _puts(records) if not answered)


def _disturbed(records: Records, path: str) -> bool:
    times = [at for put, at, _ in _puts(records) if put == path]
    return any(
        note.at - AROUND <= at <= note.until + 0.5
        for note in records.journal.notes
        # The supervisor tells of every death, also of those at crash points.
        if note.kind in SPOILS_UPLOADS or (note.kind == "restart" and "with -9" in note.detail)
        for at in times
    )


def nothing_leaks(records: Records) -> Iterator[Broken]:
    """No secret, of whatever kind, is in a log, nor the key where it must not go."""
    if records.key_leaks:
        yield Broken(f"the key was sent to storage {records.key_leaks} times")
    tokens = {
        row.video_url.partition("token=")[2].partition("&")[0]
        for row in records.rows
        if row.video_url and "token=" in row.video_url
    }
    for name, log in records.logs.items():
        if records.api_key in log:
            yield Broken(f"the key is in {name}: {_around(log, records.api_key)}")
        for secret in SECRETS:
            if found := secret.search(log):
                yield Broken(f"a secret address is in {name}: {_around(log, found[0])}")
        if any(token in log for token in tokens):
            yield Broken(f"the token of a video is in {name}")


def _around(log: str, word: str) -> str:
    at = log.find(word)
    return log[max(0, at - 80) : at + 20].replace("\n", " ")


def nobody_died_by_itself(records: Records) -> Iterator[Broken]:
    """Processes end when they are killed or told to, not because something around them failed."""
    for note in records.journal.of("DIED"):
        yield Broken(note.detail)


def no_forgery_is_taken(records: Records) -> Iterator[Broken]:
    """A callback counts at its own attempt's address, secret and all."""
    for note in records.journal.of("FORGERY TAKEN"):
        yield Broken(note.detail)


def nothing_was_set_aside(records: Records) -> Iterator[Broken]:
    """Every message was a good one."""
    if records.rejected_messages:
        yield Broken(f"{records.rejected_messages} messages were set aside as unreadable")


def nothing_waited_in_silence(records: Records) -> Iterator[Broken]:
    """What the harness saw waiting without a word while nothing was wrong any more."""
    for note in records.journal.of("waits in silence"):
        number, _, what = note.detail.partition(" ")
        yield Broken(f"waited in silence: {what}", int(number))


def producers_are_told(records: Records) -> Iterator[Broken]:
    """Each notice was taken at least once, verified, and in order; none was invented or is left."""
    wanted = {order.number: order.notify for order in records.orders}
    heard: dict[str, list[tuple[int, str]]] = defaultdict(list)
    seen = set()
    for one in records.heard:
        if not one.verified:
            yield Broken(f"a webhook {one.id} that can't be verified")
        if one.id not in seen:  # a repetition is allowed, whenever it comes
            seen.add(one.id)
            heard[one.data["id"]].append((one.data["sequence"], one.data["status"]))
    for row in records.rows:
        moves = [told for told in row.events if told.get("to_status")]
        changes = [told["to_status"] for told in moves]
        match wanted.get(row.number):
            case "change":
                due = [move["to_status"] for move in moves if move["event"] != Event.ACCEPT]
            case "end":
                due = changes[-1:]
            case _:
                due = []
        got = heard.pop(str(row.id), [])
        if got != list(enumerate(due, start=1)):
            yield Broken(f"its producer was told {got}, became {due}", row.number)
    if heard:
        yield Broken(f"told of generations that there are not: {', '.join(heard)}")
    for notice in records.notices:
        if notice["status"] != "delivered":
            yield Broken(f"notice {notice['id']} is {notice['status']}: {notice['error']}")


def partial_faults_delay_no_healthy_work(records: Records) -> Iterator[Broken]:
    """Under partial faults, no healthy generation waits longer than 5 x its calm time plus 10 s.

    - Partial faults hit some of the submits: 5 to 50 % are refused with SERVICE_BUSY, 5 to 20 % get
      an ambiguous answer, and some requests are poisoned (each of their submits is refused). No
      strike, no throttling, no limit and no fault of other calls is active ("partial" stage).
    - Healthy is a generation that nothing in its order delays or ends (`Order.healthy`).
    - The wait is the time from its acceptance to its first submit, and, if that was refused with
      SERVICE_BUSY, from there to its second. No fault has hit it before that; a longer wait is the
      fleet's, not its own.
    - The calm time is the median wait in the same run's first stage, without faults.
    - `liveness.MULTIPLE`, `ALLOWANCE`: 5 and 10 s. Unhampered waits take less than a second; a
      circuit breaker that a few refusals keep open for the whole fleet exceeds the bound.

    It also fails if the stage shows nothing: too few calm waits, or none to judge.
    """
    found = liveness.measure(records)
    if not found.measured:
        return
    if len(found.calm) < liveness.MIN_CALM:
        yield Broken(f"{len(found.calm)} waits in the calm stage, {liveness.MIN_CALM} are needed")
        return
    if not found.judged:
        yield Broken("no healthy generation could be judged under partial faults")
    for wait in found.late:
        took = "forever" if wait.ended is None else f"{wait.seconds:.1f} s"
        yield Broken(f"waited {took} for {wait.what}: {found.summary()}", wait.number)


CHECKS: tuple[Check, ...] = (
    every_request_is_kept,
    every_row_has_ended,
    one_task_per_request,
    no_orphans,
    ends_agree,
    credits_are_equal,
    the_ledger_balances,
    results_are_archived_once,
    histories_are_allowed,
    uploaded_once,
    nothing_leaks,
    nobody_died_by_itself,
    no_forgery_is_taken,
    nothing_was_set_aside,
    nothing_waited_in_silence,
    producers_are_told,
    partial_faults_delay_no_healthy_work,
)


def broken(records: Records) -> dict[str, list[Broken]]:
    """What does not hold, by the name of its check."""
    found = {check.__name__: list(check(records)) for check in CHECKS}
    return {name: wrong for name, wrong in found.items() if wrong}
