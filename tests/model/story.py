"""A violation as a story that can be read aloud."""

from tests.model.moves import Label
from tests.model.scenario import Scenario
from tests.model.search import Violation
from tests.model.state import NOBODY, STATUSES, State

WORDS = {
    "intend": "{0}: the intent of attempt {1} is committed",
    "post first": "{0}: attempt {1} is posted, its intent not committed",
    "intend after the post": "{0}: the intent of attempt {1} is committed after its POST",
    "post": "{0}: attempt {1} is posted",
    "pause": "{0}: the worker of attempt {1} has checked, and falls asleep before it writes",
    "wake and post": "{0}: the worker of attempt {1} wakes and writes its POST",
    "not sent": "{0}: attempt {1} is found not to be sent any more",
    "answer": "{0}: the answer to attempt {1} arrives, it names {2}",
    "no answer": "{0}: the worker of attempt {1} gets no answer",
    "refused": "{0}: the refusal of attempt {1} arrives",
    "crash": "{0}: the worker of attempt {1} dies ({2})",
    "task made": "the provider makes {2} of {0}, attempt {1}; shown after {3} ticks",
    "post lost": "the POST of {0}, attempt {1}, is lost on its way",
    "decline": "the provider refuses {0}, attempt {1}, for now",
    "foreign task": "another program makes {0}, which looks the same",
    "ends": "{0}: {1} is {2}",
    "tick": "a tick passes",
    "held": "{0}: a recorded task may be its own, an operator is asked",
    "cancelled": "{0}: ends cancelled, as was asked for",
    "silence": "{0}: the lease of attempt {1} has ended without an answer",
    "resolve": "{0}: attempt {1} is being resolved",
    "resolver dies": "{0}: the resolving process dies",
    "read": "{0}: the task list is read in whole",
    "partial": "{0}: a reading, known to be partial, misses {1}",
    "fooled": "{0}: a reading takes itself for complete and misses {1}",
    "adopt": "{0}: adopts {1} for attempt {2}",
    "too late to adopt": "{0}: {1} is followed by another already",
    "moved on": "{0}: has moved on meanwhile",
    "absent": "{0}: no task is found of attempt {1}",
    "undecided": "{0}: undecided, an operator is asked",
    "early scan": "an early scan reads the newest pages, they show {0}",
    "early verdict": "{0}: attempt {1} is judged by the early scan",
    "early adoption": "{0}: adopts {1} for attempt {2}, which the early scan found",
    "early absence": "{0}: the early scan is taken as proof that attempt {1} made no task",
    "presumed dead": "{0}: the worker of attempt {1} is presumed dead, it becomes uncertain",
    "watch": "the watch meets {0}: {1}",
    "cancel": "{0}: its cancel is asked for",
    "operator": "an operator looks at {1}, attempt {2}, and means to {0}",
    "decision": "the operator's decision to {0} {1}, attempt {2}, is carried out",
    "decision refused": "the operator's decision to {0} {1}, attempt {2}, is refused",
}
_TASKS = {
    "answer": (2,),
    "task made": (2,),
    "foreign task": (0,),
    "ends": (1,),
    "partial": (1,),
    "fooled": (1,),
    "adopt": (1,),
    "too late to adopt": (1,),
    "early scan": (0,),
    "early adoption": (1,),
    "watch": (0,),
}
_GENERATION_SECOND = ("operator", "decision", "decision refused")


def told(label: Label) -> str:
    """One step in words."""
    name, *about = label
    if name == "at once":
        return f"an operator decides at once: {told(tuple(about))}"
    words = [_tasks(value) if i in _TASKS.get(name, ()) else value for i, value in enumerate(about)]
    if about and 0 not in _TASKS.get(name, ()):
        place = 1 if name in _GENERATION_SECOND else 0
        words[place] = f"generation {chr(ord('A') + about[place])}"
    return WORDS[name].format(*words)


def _tasks(about: int | tuple[int, ...]) -> str:
    indices = about if isinstance(about, tuple) else (about,)
    return " and ".join(f"task {chr(ord('P') + i)}" for i in indices) or "no task"


def story(scenario: Scenario, violation: Violation) -> str:
    """What broke, how it came to that, and where everything stands then."""
    lines = [f"{violation.what}  [{scenario.name}]"]
    lines += [f"  {i}. {told(label)}" for i, label in enumerate(violation.steps, 1)]
    if violation.by_itself:
        lines.append("  and then, without any further fault:")
        first = len(violation.steps) + 1
        lines += [f"  {i}. {told(label)}" for i, label in enumerate(violation.by_itself, first)]
    return "\n".join([*lines, *_stand(violation.last)])


def _stand(s: State) -> list[str]:
    lines = []
    for g, row in enumerate(s.rows):
        task = "no task" if row.task == NOBODY else f"task {chr(ord('P') + row.task)}"
        lines.append(
            f"  generation {chr(ord('A') + g)}: {STATUSES[row.status]}, attempt {row.attempt},"
            f" follows {task}{', attention' if row.attention else ''}"
        )
    for i, made in enumerate(s.tasks):
        of = (
            "another program"
            if made.gen == NOBODY
            else f"generation {chr(ord('A') + made.gen)}, attempt {made.number}"
        )
        lines.append(f"  task {chr(ord('P') + i)}: of {of}; on record as {made.kind or 'nothing'}")
    return lines
