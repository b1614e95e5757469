"""What must hold in every state, on every step, and where everything has come to rest."""

from tests.model.moves import DOUBTFUL, Label, Model
from tests.model.state import ACCEPTED, ENDED, NOBODY, UNCERTAIN, State, Task

TWICE = "paid twice: two remote tasks of one generation"
SWAPPED = "swapped: a generation follows a task that is not its own"
SHARED = "swapped: two generations follow one task"
LOST = "lost: a generation ended without the task that was made of it"
REVIVED = "a generation that had ended moved"
TOGETHER = "two generations that can be mistaken for each other are in doubt together"
KNOWINGLY = "sent again though its own task was on record"
SENT_ANYWAY = "sent for a generation that has ended or follows a task"
ALONE = "a task is recorded as a second one beside no first"
STUCK = "stuck: waits for ever without saying why"
SILENT = "silent: a task of ours is neither followed nor recorded as one of ours"


def broken_by(before: State, label: Label, s: State) -> str | None:
    """What a step breaks, whatever state it leads to."""
    if before.rows is not s.rows:
        for old, new in zip(before.rows, s.rows, strict=True):
            if old.status in ENDED and new != old:
                return REVIVED
    if label[0] == "intend" and any(t.kind and t.gen == label[1] for t in _unfollowed(before)):
        return KNOWINGLY
    if label[0] == "post":
        row = before.rows[label[1]]
        if row.status in ENDED or row.task != NOBODY:
            return SENT_ANYWAY
    return None


def broken_in(model: Model, s: State) -> str | None:
    """What a state breaks."""
    followed = [row.task for row in s.rows if row.task != NOBODY]
    if len(followed) != len(set(followed)):
        return SHARED
    if any(row.task != NOBODY and s.tasks[row.task].gen != g for g, row in enumerate(s.rows)):
        return SWAPPED
    for g, row in enumerate(s.rows):
        own = [task for task in s.tasks if task.gen == g]
        if len(own) > 1 and not s.excused:
            return TWICE
        if row.task != NOBODY:
            continue
        if row.status in ENDED:
            if own and not s.excused and not _given_up(s, g):
                return LOST
        elif any((t.kind, t.flagged, t.number) == ("second", g, row.attempt) for t in s.tasks):
            return ALONE
    if model.scenario.fixed_seed and sum(row.status in DOUBTFUL for row in s.rows) > 1:
        return TOGETHER
    return None


def at_rest(model: Model, s: State) -> str | None:
    """What is wrong with a state in which nothing more happens once faults have ended."""
    for row in s.rows:
        if row.status in ENDED or row.attention:
            continue
        used_up = row.attempt >= model.scenario.attempts
        if row.status == ACCEPTED and (used_up or _holder_waits(s)):
            continue
        return STUCK
    for task in _unfollowed(s):
        if task.gen != NOBODY and task.kind not in ("possible", "second"):
            # An operator may have disowned what can't be told apart.
            return SILENT
    return None


def _unfollowed(s: State) -> list[Task]:
    followed = {row.task for row in s.rows}
    return [task for i, task in enumerate(s.tasks) if i not in followed]


def _given_up(s: State, g: int) -> bool:
    return any(a.gen == g and a.outcome == "given_up" for a in s.attempts)


def _holder_waits(s: State) -> bool:
    return any(row.status == UNCERTAIN and row.attention for row in s.rows)
