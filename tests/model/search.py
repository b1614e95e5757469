"""Breadth-first through every interleaving; the first thing that breaks is the shortest story."""

import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from tests.model import promise
from tests.model.moves import DOUBTFUL, Label, Model, Move
from tests.model.scenario import Scenario, Steps
from tests.model.state import ACCEPTED, NOBODY, RUNNING, State, canonical


@dataclass(frozen=True)
class Violation:
    """What broke, and the steps that lead there: the faults first, then, if it needs none any
    more, what the service does by itself."""

    what: str
    steps: tuple[Label, ...]
    last: State
    by_itself: tuple[Label, ...] = ()


@dataclass(frozen=True)
class Result:
    """How far a search came."""

    states: int
    seconds: float
    violation: Violation | None
    complete: bool


class Search:
    def __init__(self, scenario: Scenario, steps: Steps) -> None:
        self.model = Model(scenario, steps)
        self.parents: dict[State, tuple[State, Label] | None] = {}
        self.recovered: set[State] = set()

    def run(self, *, most: int | None = None) -> Result:
        """Search everything, or until so many states were seen; end at the first violation."""
        began = time.process_time()
        start = self.model.scenario.start
        self.parents[start] = None
        queue = deque([start])
        violation = None
        complete = True
        while queue and violation is None:
            if most is not None and len(self.parents) > most:
                complete = False
                break
            violation = self._expand(queue.popleft(), queue)
        return Result(len(self.parents), time.process_time() - began, violation, complete)

    def _expand(self, s: State, queue: deque[State]) -> Violation | None:
        for label, raw in self.model.moves(s):
            what = promise.broken_by(s, label, raw)
            if what is None and raw in self.parents:
                continue
            after = canonical(self.model.pruned(raw), self.model.ask.is_open)
            if what is None and after in self.parents:
                continue
            what = what or promise.broken_in(self.model, after)
            self.parents.setdefault(after, (s, label))
            queue.append(after)
            if what is not None:
                return Violation(what, (*self._story(s), label), after)
            stuck = self._recover(after)
            if stuck is not None:
                return stuck
        return None

    def _story(self, s: State) -> tuple[Label, ...]:
        labels: list[Label] = []
        came = self.parents[s]
        while came is not None:
            s, label = came
            labels.append(label)
            came = self.parents[s]
        return tuple(reversed(labels))

    # --- once faults have ended -----------------------------------------------------------------

    def _recover(self, begun: State) -> Violation | None:
        """From here, without faults, by a fair order of steps, everything comes to rest well."""
        # Who waits for an operator is still read, slowly: once more, then it rests.
        s = begun._replace(
            rows=tuple(
                row._replace(attention=False) if row.attention else row for row in begun.rows
            ),
            decision=None,
        )
        path: list[State] = []
        labels: list[Label] = []
        seen: set[State] = set()
        while s not in self.recovered:
            if s in seen:
                return self._unwell(begun, promise.STUCK, labels, s)
            seen.add(s)
            path.append(s)
            step = next(self._fair(s), None)
            if step is None:
                wrong = promise.at_rest(self.model, s)
                if wrong is not None:
                    return self._unwell(begun, wrong, labels, s)
                break
            label, raw = step
            after = canonical(self.model.pruned(raw), self.model.ask.is_open)
            labels.append(label)
            what = promise.broken_by(s, label, after) or promise.broken_in(self.model, after)
            if what is not None:
                return self._unwell(begun, what, labels, after)
            s = after
        self.recovered.update(path)
        return None

    def _unwell(self, begun: State, what: str, labels: list[Label], last: State) -> Violation:
        return Violation(what, self._story(begun), last, tuple(labels))

    def _fair(self, s: State) -> Iterator[Move]:
        """What is done next where nothing fails."""
        model = self.model
        for w, worker in enumerate(s.workers):
            answered = worker.task != NOBODY or not any(
                r.gen == worker.gen and r.number == worker.number for r in s.wire
            )
            if worker.phase != "waiting" or answered:
                yield from _first(model.work(s, w))
        for r in range(len(s.wire)):
            yield from _first(model.process(s, r))
        if any(task.hidden > 0 for task in s.tasks):
            yield from model.tick(s)
        for t in range(len(s.tasks)):
            yield from model.watch(s, t)
        for c in range(len(s.scans)):
            yield from model.decide_early(s, c)
        for r, resolver in enumerate(s.resolvers):
            if model._enough(resolver):
                yield from model.resolve(s, r)
            else:
                yield from model.read(s, r, faults=False)
        for g, row in enumerate(s.rows):
            if row.status == ACCEPTED:
                yield from model.intend(s, g)
            elif row.status == RUNNING:
                yield from model.poll(s, g)
            elif row.status in DOUBTFUL and not row.attention:
                began = list(model.begin_resolving(s, g))
                yield from began or model.tick(s)


def _first(moves: Iterator[Move]) -> Iterator[Move]:
    for move in moves:
        yield move
        return
