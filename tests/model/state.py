"""A state of the model: what the service has recorded, what its processes hold in memory, what is
on the wire, and what the provider has. Everything is a tuple, so that a state is its own key.

Times are ticks from now: negative ones have passed. Those that have passed are told apart only by
their order (`canonical`), as the rules only compare them.
"""

from typing import NamedTuple

from models.lifecycle import TERMINAL, Status

STATUSES = list(Status)
"""A status is kept as its place in here: an integer hashes fast."""
ACCEPTED, UPLOADING, SUBMITTING, UNCERTAIN, RUNNING, COMPLETED, FAILED, CANCELLED = range(8)
ENDED = frozenset(STATUSES.index(status) for status in TERMINAL)

NOBODY = -1
LONG_AGO = -1000
"""A time that nothing depends on any more."""


class Row(NamedTuple):
    """One generation. `uploading` is left out: nothing that matters here happens in it."""

    status: int = ACCEPTED
    attempt: int = 0
    wish: bool = False
    """Its cancel was asked for."""
    task: int = NOBODY
    """The remote task that it follows."""
    attention: bool = False


class Attempt(NamedTuple):
    """One recorded attempt."""

    gen: int
    number: int
    seed: int
    drawn: bool
    outcome: str | None
    started: int
    settle: int


class Task(NamedTuple):
    """One remote task, and what the service has recorded of it as a stray."""

    gen: int
    """Whose POST made it; `NOBODY`: another program's."""
    number: int
    seed: int
    created: int
    hidden: int
    """Ticks until the task list shows it."""
    ended: str = ""
    kind: str = ""
    flagged: int = NOBODY
    """The generation that the stray is recorded for."""


class Worker(NamedTuple):
    """A process within the submit stage of one attempt.

    `intended`: the intent is committed. `checked`: about to write. `waiting`: the POST is written.
    `refused`: a refusal has come. `posted`: written without an intent (where that rule is out).
    """

    gen: int
    number: int
    phase: str
    age: int = 0
    task: int = NOBODY
    """The task that the answer names, once there is one."""


class Request(NamedTuple):
    """A POST on the wire or in the provider's hands; `left`: ticks in which it may be processed."""

    gen: int
    number: int
    left: int
    seed: int


class Resolver(NamedTuple):
    """A process within the resolve stage: the case as it began, and a verdict for each reading."""

    gen: int
    number: int
    open: tuple[int, ...]
    rival: bool
    verdicts: tuple[tuple, ...] = ()


class Scan(NamedTuple):
    """An early scan of the newest pages: what it read, then its verdict on one generation."""

    seen: tuple[int, ...]
    """The tasks that it showed and that no generation followed then."""
    gen: int = NOBODY
    number: int = 0
    verdict: tuple | None = None
    """None until a generation is judged."""


class Decision(NamedTuple):
    """What an operator has made up their mind about."""

    kind: str
    gen: int
    number: int
    task: int = NOBODY


class Left(NamedTuple):
    """How many of each fault may still happen."""

    foreign: int = 0
    """Another program makes a task that looks the same."""
    partial: int = 0
    """A reading that is known to be incomplete misses a task."""
    fooled: int = 0
    """A reading that takes itself for complete misses a task."""
    cancel: int = 0
    decline: int = 0
    operator: int = 0
    pause: int = 0
    """A worker sleeps between check and write: what protocol.md names as the remaining hole."""
    late: int = 0
    """The provider processes a request after K: the other one."""


class State(NamedTuple):
    rows: tuple[Row, ...]
    left: Left
    attempts: tuple[Attempt, ...] = ()
    tasks: tuple[Task, ...] = ()
    workers: tuple[Worker, ...] = ()
    wire: tuple[Request, ...] = ()
    resolvers: tuple[Resolver, ...] = ()
    scans: tuple[Scan, ...] = ()
    decision: Decision | None = None
    excused: bool = False
    """A hole that is named openly was used: two tasks may exist, but must be flagged."""


def bare(task: Task) -> Task:
    """The task as the provider shows it, without what the service has recorded of it."""
    return Task(task.gen, task.number, task.seed, task.created, 0, task.ended)


def put(items: tuple, index: int, value: object) -> tuple:
    return (*items[:index], value, *items[index + 1 :])


def without(items: tuple, index: int) -> tuple:
    return items[:index] + items[index + 1 :]


def canonical(state: State, is_open: dict[str | None, bool]) -> State:
    """The one state that stands for all which differ only in what nothing depends on."""
    if not state.attempts:
        return state
    followed = {row.task for row in state.rows}
    for scan in state.scans:
        # A generation may still be judged by what the scan read: the times count.
        followed.difference_update(scan.seen)
    past = set()
    for a in state.attempts:
        if is_open[a.outcome]:
            if a.started < 0:
                past.add(a.started)
            if a.settle < 0:
                past.add(a.settle)
    for i, t in enumerate(state.tasks):
        if t.created < 0 and i not in followed:
            past.add(t.created)
    place = {time: i - len(past) for i, time in enumerate(sorted(past))}
    return State(
        state.rows,
        state.left,
        _sorted(tuple([_placed(a, place, is_open) for a in state.attempts])),
        tuple(
            [
                _created(t, LONG_AGO if i in followed else place.get(t.created, t.created))
                for i, t in enumerate(state.tasks)
            ]
        ),
        _sorted(state.workers),
        _sorted(state.wire),
        _sorted(state.resolvers),
        state.scans,
        state.decision,
        state.excused,
    )


def _placed(a: Attempt, place: dict[int, int], is_open: dict[str | None, bool]) -> Attempt:
    if is_open[a.outcome]:
        started, settle = place.get(a.started, a.started), place.get(a.settle, a.settle)
    else:
        started = settle = LONG_AGO
    if started == a.started and settle == a.settle:
        return a
    return Attempt(a.gen, a.number, a.seed, a.drawn, a.outcome, started, settle)


def _created(task: Task, created: int) -> Task:
    return task if task.created == created else task._replace(created=created)


def _sorted(items: tuple) -> tuple:
    return items if len(items) < 2 else tuple(sorted(items))
