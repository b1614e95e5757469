"""Every step that the service, the provider and their surroundings can take from a state.

The service's steps mirror `worker.stages`, `models.submission`, `models.watch` and
`models.transitions`: one move is one transaction or one call. What is decided in them comes from
`tests.model.deciding`, which asks the real functions.
"""

from collections.abc import Iterator
from itertools import combinations

from models.decisions import Claimed, Obstacle, Sighting
from models.lifecycle import IN_DOUBT, Event
from tests.model.deciding import ABSENT, UNDECIDED, Deciders
from tests.model.scenario import Scenario, Steps
from tests.model.state import (
    ACCEPTED,
    CANCELLED,
    ENDED,
    NOBODY,
    RUNNING,
    STATUSES,
    SUBMITTING,
    UNCERTAIN,
    UPLOADING,
    Attempt,
    Decision,
    Request,
    Resolver,
    Row,
    Scan,
    State,
    Task,
    Worker,
    bare,
    put,
    without,
)

Label = tuple
"""The name of a step and what it is about; `tests.model.story` puts it in words."""
Move = tuple[Label, State]

DOUBTFUL = frozenset(STATUSES.index(status) for status in IN_DOUBT)
FIXED_SEED = 7
UNTOUCHED = Row()
MAY_BE_UNCERTAIN = frozenset(range(len(STATUSES))) - ENDED - {RUNNING}
"""Statuses from which a generation can be uncertain now or later."""


class Model:
    """The moves of one scenario."""

    def __init__(self, scenario: Scenario, steps: Steps) -> None:
        self.scenario = scenario
        self.steps = steps
        self.ask = Deciders(seeds_shown=scenario.seeds_shown, key_exclusive=scenario.key_exclusive)

    def moves(self, s: State) -> Iterator[Move]:
        """All that can happen next, faults included."""
        for g in range(len(s.rows)):
            yield from self.intend(s, g)
            yield from self.begin_resolving(s, g)
            yield from self.poll(s, g)
            yield from self.cancel(s, g)
            yield from self.decide(s, g)
            yield from self.presume_dead(s, g)
        for w in range(len(s.workers)):
            yield from self.work(s, w)
            yield ("crash", *s.workers[w][:3]), s._replace(workers=without(s.workers, w))
        for r in range(len(s.wire)):
            yield from self.process(s, r)
            yield from self.turn_away(s, r)
        for r in range(len(s.resolvers)):
            yield from self.resolve(s, r)
            lost = s.resolvers[r]
            yield ("resolver dies", lost.gen), s._replace(resolvers=without(s.resolvers, r))
        for t in range(len(s.tasks)):
            yield from self.watch(s, t)
        yield from self.scan(s)
        for c in range(len(s.scans)):
            yield from self.judge_early(s, c)
            yield from self.decide_early(s, c)
        yield from self.carry_out(s)
        yield from self.foreign(s)
        yield from self.tick(s)

    def pruned(self, s: State) -> State:
        """Drop the processes that can change nothing any more: such states are the same."""
        workers = [worker for worker in s.workers if self._may_write(s, worker)]
        resolvers = [r for r in s.resolvers if s.rows[r.gen].status in MAY_BE_UNCERTAIN]
        scans = [scan for scan in s.scans if self._may_decide(s, scan)]
        if (
            len(workers) == len(s.workers)
            and len(resolvers) == len(s.resolvers)
            and len(scans) == len(s.scans)
        ):
            return s
        return s._replace(workers=tuple(workers), resolvers=tuple(resolvers), scans=tuple(scans))

    def _may_write(self, s: State, worker: Worker) -> bool:
        """Whether the worker can still write a row or a POST."""
        g, number, phase, _, task = worker
        row = s.rows[g]
        if phase not in ("waiting", "refused") or not self.steps.silence_is_doubt:
            return True
        if task != NOBODY:
            return row.task != task
        return (row.status == SUBMITTING and row.attempt == number) or (
            phase == "waiting" and any(r.gen == g and r.number == number for r in s.wire)
        )

    # --- the submit stage -----------------------------------------------------------------------

    def intend(self, s: State, g: int) -> Iterator[Move]:
        row = s.rows[g]
        if row.status != ACCEPTED or row.attempt >= self.scenario.attempts:
            return
        if row == UNTOUCHED and UNTOUCHED in s.rows[:g]:
            # Untouched generations are interchangeable: searching one of them is enough.
            return
        if not self.steps.intent_before_post:
            number = row.attempt + 1
            if not any(w.gen == g and w.number == number for w in s.workers):
                yield (
                    ("post first", g, number),
                    s._replace(
                        workers=(*s.workers, Worker(g, number, "posted")),
                        wire=(*s.wire, self._request(g, number)),
                    ),
                )
            return
        mine = [a for a in s.attempts if a.gen == g]
        own = any(
            self.ask.may_be_own(task, attempt)
            for task, followed in self._with_follower(s)
            if task.kind and not followed
            for attempt in mine
        )
        match self.ask.obstacle_to_intent(row.wish, own, self._holder(s, g)):
            case None:
                number = row.attempt + 1
                yield (
                    ("intend", g, number),
                    self._intended(s, g)._replace(
                        workers=(*s.workers, Worker(g, number, "intended"))
                    ),
                )
            case Obstacle.OWN_TASK if not row.attention:
                yield ("held", g), self._row(s, g, attention=True)
            case Obstacle.CANCELLED:
                yield ("cancelled", g), self._row(s, g, status=CANCELLED)

    def _intended(self, s: State, g: int) -> State:
        number = s.rows[g].attempt + 1
        attempt = Attempt(
            g,
            number,
            self._seed(g, number),
            not self.scenario.fixed_seed,
            None,
            0,
            self.scenario.settle,
        )
        s = self._row(s, g, status=SUBMITTING, attempt=number, attention=False)
        return s._replace(attempts=(*s.attempts, attempt))

    def _seed(self, g: int, number: int) -> int:
        if self.scenario.fixed_seed:
            return FIXED_SEED
        return 100 + 10 * g + number if self.steps.fresh_seeds else 100

    def _request(self, g: int, number: int) -> Request:
        return Request(g, number, self.scenario.late_creation, self._seed(g, number))

    def _holder(self, s: State, g: int) -> int:
        """Another row in doubt with the same fingerprint: drawn seeds never have one."""
        if not (self.scenario.fixed_seed and self.steps.fingerprint_lock):
            return NOBODY
        return next(
            (i for i, row in enumerate(s.rows) if i != g and row.status in DOUBTFUL), NOBODY
        )

    def work(self, s: State, w: int) -> Iterator[Move]:
        worker = s.workers[w]
        g, number = worker.gen, worker.number
        row = s.rows[g]
        gone = s._replace(workers=without(s.workers, w))
        match worker.phase:
            case "intended":
                if self.ask.obstacle_to_sending(
                    row.status,
                    row.attempt,
                    row.wish,
                    number,
                    worker.age,
                    self.scenario.send_budget,
                ):
                    yield ("not sent", g, number), self._not_sent(gone, g, number)
                    return
                yield ("post", g, number), self._posted(s, w)
                if s.left.pause:
                    yield (
                        ("pause", g, number),
                        s._replace(
                            workers=put(s.workers, w, worker._replace(phase="checked")),
                            left=s.left._replace(pause=s.left.pause - 1),
                            excused=True,
                        ),
                    )
            case "checked":
                yield ("wake and post", g, number), self._posted(s, w)
            case "posted":
                if row.status == ACCEPTED and row.attempt == number - 1:
                    yield (
                        ("intend after the post", g, number),
                        self._intended(s, g)._replace(
                            workers=put(s.workers, w, worker._replace(phase="waiting"))
                        ),
                    )
            case "waiting":
                if worker.task != NOBODY:
                    yield (
                        ("answer", g, number, worker.task),
                        self._answered(gone, g, number, worker.task),
                    )
                yield ("no answer", g, number), self._unanswered(gone, g, number)
            case "refused":
                yield ("refused", g, number), self._declined(gone, g, number)

    def _posted(self, s: State, w: int) -> State:
        worker = s.workers[w]
        return s._replace(
            workers=put(s.workers, w, worker._replace(phase="waiting", age=0)),
            wire=(*s.wire, self._request(worker.gen, worker.number)),
        )

    def _answered(self, s: State, g: int, number: int, task: int) -> State:
        row = s.rows[g]
        has_lease = row.status == SUBMITTING and row.attempt == number
        if self.ask.may(Event.SUBMIT, row.status, row.attempt, number, has_lease):
            s = self._close(s, g, number, "submitted")
            return self._follow(s, g, task, Event.SUBMIT)
        if any(other.task == task for other in s.rows):
            return s
        return self._stray(s, task, "second", g)

    def _unanswered(self, s: State, g: int, number: int) -> State:
        if not self.steps.silence_is_doubt:
            return self._not_sent(s, g, number)
        return self._doubted(s, g, number)

    def _doubted(self, s: State, g: int, number: int) -> State:
        row = s.rows[g]
        has_lease = row.status == SUBMITTING and row.attempt == number
        if not self.ask.may(Event.DOUBT, row.status, row.attempt, number, has_lease):
            return s
        s = self._close(s, g, number, "unknown")
        return self._row(s, g, status=self.ask.target(Event.DOUBT))

    def _not_sent(self, s: State, g: int, number: int) -> State:
        row = s.rows[g]
        s = self._taken_back(s, g, number, Event.NOT_SENT)
        if self.ask.closed_as_not_sent(s.rows[g].status, row.attempt, number):
            s = self._close(s, g, number, "not_sent")
        return s

    def _declined(self, s: State, g: int, number: int) -> State:
        moved = self._taken_back(s, g, number, Event.DECLINE)
        return s if moved is s else self._close(moved, g, number, "refused")

    def _taken_back(self, s: State, g: int, number: int, event: Event) -> State:
        row = s.rows[g]
        has_lease = row.status == SUBMITTING and row.attempt == number
        if not self.ask.may(event, row.status, row.attempt, number, has_lease):
            return s
        towards = self.ask.taken_back(event, row.wish)
        return self._row(s, g, status=self.ask.target(towards))

    def presume_dead(self, s: State, g: int) -> Iterator[Move]:
        """Another process finds that the database session of the attempt's worker has ended.

        The worker itself may be alive, in any phase, and continue.
        """
        row = s.rows[g]
        if row.status == SUBMITTING:
            yield ("presumed dead", g, row.attempt), self._doubted(s, g, row.attempt)

    # --- the provider ---------------------------------------------------------------------------

    def process(self, s: State, r: int) -> Iterator[Move]:
        """The POST makes a task, seen in the list at once or after the lag."""
        request = s.wire[r]
        for hidden in {0, self.scenario.list_lag}:
            task = Task(request.gen, request.number, request.seed, 0, hidden)
            index = len(s.tasks)
            workers = tuple(
                w._replace(task=index)
                if (w.gen, w.number, w.phase) == (request.gen, request.number, "waiting")
                else w
                for w in s.workers
            )
            yield (
                ("task made", request.gen, request.number, index, hidden),
                s._replace(
                    tasks=(*s.tasks, task),
                    wire=without(s.wire, r),
                    workers=workers,
                    excused=s.excused or request.left < 0,
                ),
            )

    def turn_away(self, s: State, r: int) -> Iterator[Move]:
        """The POST is lost, or refused with the provider's own code."""
        request = s.wire[r]
        gone = s._replace(wire=without(s.wire, r))
        yield ("post lost", request.gen, request.number), gone
        if s.left.decline:
            yield (
                ("decline", request.gen, request.number),
                gone._replace(
                    left=s.left._replace(decline=s.left.decline - 1),
                    workers=tuple(
                        w._replace(phase="refused")
                        if (w.gen, w.number, w.phase) == (request.gen, request.number, "waiting")
                        else w
                        for w in s.workers
                    ),
                ),
            )

    def foreign(self, s: State) -> Iterator[Move]:
        if s.left.foreign and s.attempts:
            task = Task(NOBODY, 0, s.attempts[0].seed, 0, 0)
            yield (
                ("foreign task", len(s.tasks)),
                s._replace(
                    tasks=(*s.tasks, task), left=s.left._replace(foreign=s.left.foreign - 1)
                ),
            )

    def poll(self, s: State, g: int) -> Iterator[Move]:
        """The remote task ends and is seen to."""
        row = s.rows[g]
        if row.status != RUNNING:
            return
        for end in ("completed", "cancelled") if row.wish else ("completed",):
            task = s.tasks[row.task]._replace(ended=end)
            ended = self._row(s, g, status=self.ask.ends(end), attention=False)
            yield ("ends", g, row.task, end), ended._replace(tasks=put(s.tasks, row.task, task))

    # --- time -----------------------------------------------------------------------------------

    def tick(self, s: State) -> Iterator[Move]:
        """Time passes, where anything depends on it."""
        due = any(
            a.settle > 0 and s.rows[a.gen].status in DOUBTFUL and self.ask.is_open[a.outcome]
            for a in s.attempts
        )
        young = any(
            w.phase in ("intended", "checked") and w.age <= self.scenario.send_budget
            for w in s.workers
        )
        hidden = any(task.hidden > 0 for task in s.tasks)
        if not (due or young or hidden or s.wire):
            return
        wire, late = [], s.left.late
        for request in s.wire:
            if request.left > 0:
                wire.append(request._replace(left=request.left - 1))
            elif request.left < 0:
                wire.append(request)
            elif late:
                late -= 1
                wire.append(request._replace(left=-1))
        if wire == list(s.wire) and not (due or young or hidden):
            return
        most = self.scenario.send_budget + 1
        yield (
            ("tick",),
            s._replace(
                left=s.left._replace(late=late),
                attempts=tuple(
                    [
                        Attempt(
                            a.gen,
                            a.number,
                            a.seed,
                            a.drawn,
                            a.outcome,
                            a.started - 1,
                            a.settle - 1,
                        )
                        for a in s.attempts
                    ]
                ),
                tasks=tuple(
                    t._replace(created=t.created - 1, hidden=max(0, t.hidden - 1)) for t in s.tasks
                ),
                workers=tuple(
                    w._replace(age=min(most, w.age + 1))
                    if w.phase in ("intended", "checked")
                    else w
                    for w in s.workers
                ),
                wire=tuple(wire),
            ),
        )

    # --- the resolve stage ----------------------------------------------------------------------

    def begin_resolving(self, s: State, g: int) -> Iterator[Move]:
        row = s.rows[g]
        if row.status not in DOUBTFUL or any(
            r.gen == g and r.number == row.attempt for r in s.resolvers
        ):
            return
        number = row.attempt
        if row.status == SUBMITTING:
            # It is claimed when its lease, which the intent took, has ended: at `settle_at`.
            latest = next(a for a in s.attempts if a.gen == g and a.number == number)
            if latest.settle > 0:
                return
            s = self._unanswered(s, g, number)
            if s.rows[g].status != UNCERTAIN:
                yield ("silence", g, number), s
                return
        mine = self._open(s, g)
        if not self.ask.settled(mine):
            if s.rows[g] != row:
                yield ("silence", g, number), s
            return
        resolver = Resolver(g, number, tuple(a.number for a in mine), self._rival(s, g))
        yield ("resolve", g, number), s._replace(resolvers=(*s.resolvers, resolver))

    def _rival(self, s: State, g: int) -> bool:
        """Whether another generation has an open attempt that looks the same."""
        number = s.rows[g].attempt
        fingerprints = {a.seed for a in s.attempts if a.gen == g and a.number == number}
        return any(
            a.gen != g and a.seed in fingerprints and self.ask.is_open[a.outcome]
            for a in s.attempts
        )

    def _open(self, s: State, g: int) -> tuple[Attempt, ...]:
        return tuple(a for a in s.attempts if a.gen == g and self.ask.is_open[a.outcome])

    def resolve(self, s: State, r: int) -> Iterator[Move]:
        """The next reading; or the decision, once there are enough."""
        resolver = s.resolvers[r]
        if not self._enough(resolver):
            yield from self.read(s, r)
            return
        verdict = resolver.verdicts[0]
        if len(resolver.verdicts) == 2:
            verdict = self.ask.together(*resolver.verdicts)
        g = resolver.gen
        taken = frozenset(row.task for row in s.rows if row.task != NOBODY)
        verdict = self.ask.still(verdict, taken)
        s = s._replace(resolvers=without(s.resolvers, r))
        row = s.rows[g]
        match verdict:
            case ("adopt", task, number, _, others):
                if self.steps.one_follower and task in taken:
                    yield ("too late to adopt", g, task), s
                elif row.status in DOUBTFUL and self.ask.may(
                    Event.ADOPT, row.status, row.attempt, row.attempt, False
                ):
                    yield ("adopt", g, task, number), self._adopted(s, g, task, number, others)
                else:
                    yield ("moved on", g), s
            case ("absent",):
                yield (
                    ("absent", g, resolver.number),
                    self._absent(s, g, resolver.number, most=self.scenario.attempts),
                )
            case _:
                # Fenced by the lease, which any move of the row takes away.
                mine = row.status == UNCERTAIN and row.attempt == resolver.number
                yield ("undecided", g), self._row(s, g, attention=True) if mine else s

    def _enough(self, resolver: Resolver) -> bool:
        verdicts = resolver.verdicts
        return len(verdicts) == 2 or (
            len(verdicts) == 1 and (not self.steps.two_readings or self.ask.proven(verdicts[0]))
        )

    def read(self, s: State, r: int, *, faults: bool = True) -> Iterator[Move]:
        """One reading of the list: in whole, known to be partial, or fooled by drift."""
        resolver = s.resolvers[r]
        mine = tuple(a for a in s.attempts if a.gen == resolver.gen and a.number in resolver.open)
        unknown = tuple(
            (i, task)
            for i, (task, followed) in enumerate(self._with_follower(s))
            if task.hidden <= 0 and not followed
        )

        def after(verdict: tuple, **left: int) -> State:
            told = resolver._replace(verdicts=(*resolver.verdicts, verdict))
            return s._replace(resolvers=put(s.resolvers, r, told), left=s.left._replace(**left))

        g = resolver.gen
        yield ("read", g), after(self._judged(mine, resolver.rival, unknown))
        if not faults:
            return
        for i, (index, _) in enumerate(unknown):
            rest = without(unknown, i)
            if s.left.partial:
                verdict = self._judged(mine, resolver.rival, rest, complete=False)
                yield ("partial", g, index), after(verdict, partial=s.left.partial - 1)
            if s.left.fooled:
                verdict = self._judged(mine, resolver.rival, rest)
                yield ("fooled", g, index), after(verdict, fooled=s.left.fooled - 1)

    def _judged(
        self,
        mine: tuple[Attempt, ...],
        rival: bool,
        unknown: tuple[tuple[int, Task], ...],
        *,
        complete: bool = True,
    ) -> tuple:
        shown = tuple([(i, bare(task)) for i, task in unknown])
        return self.ask.judged(mine, rival, shown, complete)

    def _adopted(
        self, s: State, g: int, task: int, number: int, others: tuple[tuple[int, int], ...]
    ) -> State:
        s = self._close(s, g, number, "adopted")
        s = self._follow(s, g, task, Event.ADOPT)
        for other, _ in others:
            s = self._stray(s, other, "second", g)
        return s

    def _absent(self, s: State, g: int, number: int, *, most: int) -> State:
        row = s.rows[g]
        if not self.ask.may(Event.ABSENT, row.status, row.attempt, number, False):
            return s
        before = sum(
            a.gen == g and a.outcome == "absent" and a.number != number for a in s.attempts
        )
        event = self.ask.after_absence(row.wish, before, most)
        s = self._close(s, g, number, "absent")
        return self._row(s, g, status=self.ask.target(event), attention=False)

    # --- early scans ----------------------------------------------------------------------------

    def scan(self, s: State) -> Iterator[Move]:
        """An early scan begins: it reads the newest pages, and may miss any task.

        One scan serves all generations of the account. A second one at the same time would decide
        nothing that the first one can't, as a scan changes nothing until it adopts.
        """
        if s.scans or not any(row.status == UNCERTAIN for row in s.rows):
            return
        unknown = [
            i
            for i, (task, followed) in enumerate(self._with_follower(s))
            if task.hidden <= 0 and not followed
        ]
        for size in range(len(unknown) + 1):
            for seen in combinations(unknown, size):
                scan = Scan(seen)
                if self._may_decide(s, scan):
                    yield ("early scan", seen), s._replace(scans=(scan,))

    def judge_early(self, s: State, c: int) -> Iterator[Move]:
        """The scan is held against an uncertain generation, which may be younger than the scan."""
        scan = s.scans[c]
        if scan.verdict is not None:
            return
        seen = tuple((i, s.tasks[i]) for i in scan.seen)
        for g, row in enumerate(s.rows):
            if row.status != UNCERTAIN:
                continue
            verdict = self._judged(self._open(s, g), self._rival(s, g), seen)
            decided = self.ask.early(verdict)
            if decided is not None:
                judged = Scan((), g, row.attempt, decided)
                yield ("early verdict", g, row.attempt), s._replace(scans=put(s.scans, c, judged))

    def decide_early(self, s: State, c: int) -> Iterator[Move]:
        """The verdict of an early scan is carried out: "unknown" is judged again, and the row must
        be uncertain under the attempt that was judged."""
        _, g, number, verdict = s.scans[c]
        if verdict is None:
            return
        s = s._replace(scans=without(s.scans, c))
        row = s.rows[g]
        taken = frozenset(row.task for row in s.rows if row.task != NOBODY)
        match self.ask.still(verdict, taken):
            case ("adopt", task, attempt, _, others):
                if self.steps.one_follower and task in taken:
                    yield ("too late to adopt", g, task), s
                elif row.status == UNCERTAIN and self.ask.may(
                    Event.ADOPT, row.status, row.attempt, number, False
                ):
                    s = self._adopted(s, g, task, attempt, others)
                    yield ("early adoption", g, task, attempt), s
                else:
                    yield ("moved on", g), s
            case ("absent",):
                # Only where the rule is taken out that forbids it.
                s = self._absent(s, g, number, most=self.scenario.attempts)
                yield ("early absence", g, number), s
            case _:
                yield ("moved on", g), s

    def _may_decide(self, s: State, scan: Scan) -> bool:
        """Whether the scan can still make a difference, by the real rules."""
        if scan.verdict is not None:
            row = s.rows[scan.gen]
            return row.status == UNCERTAIN and row.attempt == scan.number
        if self.ask.early(ABSENT) is not None:
            return True
        taken = frozenset(row.task for row in s.rows if row.task != NOBODY)
        return any(
            self.ask.still(("adopt", i, 1, True, ()), taken) != UNDECIDED and self._adoptable(s, i)
            for i in scan.seen
        )

    def _adoptable(self, s: State, i: int) -> bool:
        """Whether an early scan could find the task to be a generation's, now or later."""
        task = bare(s.tasks[i])._replace(created=0)
        waiting = {g for g, row in enumerate(s.rows) if row.status in MAY_BE_UNCERTAIN}
        attempts = [
            Attempt(a.gen, 1, a.seed, a.drawn, None, 0, 0)
            for a in s.attempts
            if a.gen in waiting and self.ask.is_open[a.outcome]
        ]
        if self.scenario.fixed_seed and waiting:
            attempts = [Attempt(0, 1, FIXED_SEED, False, None, 0, 0)]
        return any(
            self.ask.early(self.ask.judged((a,), False, ((i, task),), True)) is not None
            for a in attempts
        )

    # --- watching -------------------------------------------------------------------------------

    def watch(self, s: State, t: int) -> Iterator[Move]:
        """A pass over the list meets this task."""
        task = s.tasks[t]
        if task.hidden > 0 or not self.steps.watching or any(row.task == t for row in s.rows):
            return
        shown = bare(task)
        found = tuple((a, s.rows[a.gen].task != NOBODY) for a in s.attempts)
        kind, g, number = self.ask.sighting(shown, found)
        match kind:
            case Sighting.FOREIGN:
                told = self._stray(s, t, "foreign", NOBODY)
            case Sighting.POSSIBLE:
                told = self._stray(s, t, "possible", g)
            case Sighting.MARKED:
                row = s.rows[g]
                match self.ask.claimed(row.status, row.task, t):
                    case Claimed.ADOPT:
                        if not self.ask.may(
                            Event.ADOPT, row.status, row.attempt, row.attempt, False
                        ):
                            return
                        told = self._close(s, g, number, "adopted")
                        told = self._follow(told, g, t, Event.ADOPT)
                    case Claimed.SECOND:
                        told = self._stray(s, t, "second", g)
                    case Claimed.WAIT:
                        return
        if told != s:
            yield ("watch", t, str(kind)), told

    # --- people ---------------------------------------------------------------------------------

    def cancel(self, s: State, g: int) -> Iterator[Move]:
        row = s.rows[g]
        if not s.left.cancel or row.wish or row.status in ENDED:
            return
        s = s._replace(left=s.left._replace(cancel=s.left.cancel - 1))
        if row.status in (ACCEPTED, UPLOADING) or (
            row.status in DOUBTFUL and not self.steps.cancel_waits
        ):
            yield ("cancel", g), self._row(s, g, status=CANCELLED, attention=False)
        else:
            yield ("cancel", g), self._row(s, g, wish=True)

    def decide(self, s: State, g: int) -> Iterator[Move]:
        """An operator looks, and makes up their mind; they know a task of their own by its prompt.

        Whoever looks at a settled attempt may act on it any time later; before that, at once.
        """
        row = s.rows[g]
        if not s.left.operator or s.decision is not None or row.attempt == 0:
            return
        if not (row.status == UNCERTAIN or (row.status == ACCEPTED and row.attention)):
            return
        left = s.left._replace(operator=s.left.operator - 1)
        own = [
            i
            for i, (task, followed) in enumerate(self._with_follower(s))
            if task.gen == g and task.hidden <= 0 and not followed
        ]
        decisions = [Decision("adopt", g, row.attempt, i) for i in own] or [
            Decision("resubmit", g, row.attempt)
        ]
        for decision in [*decisions, Decision("fail", g, row.attempt)]:
            if decision.kind not in self.scenario.decisions:
                continue
            label = ("operator", decision.kind, g, row.attempt)
            made_up = s._replace(left=left, decision=decision)
            if all(a.settle <= 0 for a in s.attempts if a.gen == g):
                yield label, made_up
            else:
                for carried_out, after in self.carry_out(made_up):
                    yield ("at once", *carried_out), after

    def carry_out(self, s: State) -> Iterator[Move]:
        if s.decision is None:
            return
        kind, g, number, task = s.decision
        s = s._replace(decision=None)
        row = s.rows[g]
        mine = self._open(s, g)
        refused = self.ask.refusal(kind, row.status, row.attempt, self.ask.settled(mine), number)
        if refused is not None:
            yield ("decision refused", kind, g, number), s
            return
        match kind:
            case "adopt":
                matching = [a.number for a in mine if a.seed == s.tasks[task].seed]
                if not matching or any(other.task == task for other in s.rows):
                    yield ("decision refused", kind, g, number), s
                    return
                s = self._close(s, g, matching[-1], "adopted")
                s = self._follow(s, g, task, Event.ADOPT)
            case "resubmit":
                s = self._resubmitted(s, g, mine)
            case _:
                if not self.ask.may(Event.GIVE_UP, row.status, row.attempt, number, False):
                    return
                s = self._close(s, g, number, "given_up")
                s = self._row(s, g, status=self.ask.target(Event.GIVE_UP), attention=False)
        yield ("decision", kind, g, number), s

    def _resubmitted(self, s: State, g: int, mine: tuple[Attempt, ...]) -> State:
        row = s.rows[g]
        seeds = {a.seed for a in mine}
        disowned = [
            i
            for i, (t, followed) in enumerate(self._with_follower(s))
            if not followed
            and t.kind
            and ((self._shows(t) in seeds and t.kind != "second") or t.flagged == g)
        ]
        if row.status == UNCERTAIN:
            s = self._absent(s, g, row.attempt, most=row.attempt + 1)
        elif disowned:
            s = self._row(s, g, attention=False)
        for i in disowned:
            foreign = s.tasks[i]._replace(kind="foreign", flagged=NOBODY)
            s = s._replace(tasks=put(s.tasks, i, foreign))
        if disowned:
            for attempt in mine:
                s = self._close(s, g, attempt.number, "refused")
        return s

    def _shows(self, task: Task) -> int | None:
        return task.seed if self.scenario.seeds_shown else None

    # --- writing --------------------------------------------------------------------------------

    def _row(self, s: State, g: int, **values: object) -> State:
        return s._replace(rows=put(s.rows, g, s.rows[g]._replace(**values)))

    def _follow(self, s: State, g: int, task: int, event: Event) -> State:
        bare = s.tasks[task]._replace(kind="", flagged=NOBODY)
        s = s._replace(tasks=put(s.tasks, task, bare))
        return self._row(s, g, status=self.ask.target(event), task=task, attention=False)

    def _close(self, s: State, g: int, number: int, outcome: str) -> State:
        """A definite outcome is never overwritten."""
        for i, a in enumerate(s.attempts):
            if (a.gen, a.number) == (g, number) and self.ask.is_open[a.outcome]:
                return s._replace(attempts=put(s.attempts, i, a._replace(outcome=outcome)))
        return s

    def _stray(self, s: State, task: int, kind: str, flagged: int) -> State:
        """What is known of it already stays."""
        before = s.tasks[task]
        outranked = self.ask.outranked(kind, before.kind)
        if outranked:
            kind = before.kind
        if outranked or flagged == NOBODY:
            flagged = before.flagged
        return s._replace(tasks=put(s.tasks, task, before._replace(kind=kind, flagged=flagged)))

    def _with_follower(self, s: State) -> Iterator[tuple[Task, bool]]:
        followed = {row.task for row in s.rows}
        for i, task in enumerate(s.tasks):
            yield task, i in followed
