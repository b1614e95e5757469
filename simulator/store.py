"""All tasks: found by id, ended in the order of time, charged exactly when they complete."""

import heapq
from decimal import Decimal
from typing import TYPE_CHECKING

from simulator.accounts import Account
from simulator.clock import Clock
from simulator.tasks import TERMINAL, Outcome, Task

if TYPE_CHECKING:
    from collections.abc import Callable


class TaskStore:
    """The tasks of every account.

    `advance` must come before anything is read: it books every end that is due, in order of
    time, so that balance and slots are what they would be had each task had a timer.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._tasks: dict[str, Task] = {}
        self._accounts: dict[str, Account] = {}
        self._due: list[tuple[float, int, Task]] = []
        self._pushes = 0
        self._starved: dict[str, Account] = {}
        self.ended_count = 0
        self.limit_of: Callable[[Account], int | None] = lambda account: account.max_concurrent
        self.on_end: Callable[[Task], None] = lambda _: None

    def __len__(self) -> int:
        return len(self._tasks)

    def all(self) -> list[Task]:
        """Every task, oldest number first."""
        return list(self._tasks.values())

    def find(self, task_id: str) -> Task | None:
        """The task of that id, whoever's it is."""
        return self._tasks.get(task_id)

    def has_slot(self, account: Account) -> bool:
        """Whether one more task may be at work."""
        limit = self.limit_of(account)
        return limit is None or account.at_work < limit

    def add(self, account: Account, task: Task) -> None:
        """Take a new task in; without a slot it waits in `queued` for one."""
        self._tasks[task.task_id] = task
        self._accounts[task.task_id] = account
        account.listing.add(task)
        if task.final is not None:  # injected as it ended
            self.ended_count += 1
            account.listing.ended(task)
            return
        account.pending_cost += task.cost
        if task.slot_sim is None:
            account.waiting.append(task)
            self._starved[account.api_key] = account
        else:
            account.at_work += 1
            self._schedule(task)

    def advance(self) -> None:
        """Book what has happened up to now."""
        now = self._clock.now()
        while self._due and self._due[0][0] <= now:
            due, _, task = heapq.heappop(self._due)
            if task.final is None and task.due_sim == due:
                self.end(task, task.outcome, due)
        # A limit that was raised at run time frees slots without any task having ended.
        for account in list(self._starved.values()):
            self._fill_slots(account, now)

    def end(self, task: Task, outcome: Outcome, at: float, *, tell: bool = True) -> None:
        """A task ends: its slot is free, and only a completed one is charged."""
        if task.final is not None:
            return
        account = self._accounts[task.task_id]
        task.outcome, task.final, task.ended_sim = outcome, outcome.status, at
        account.pending_cost -= task.cost
        if task.slot_sim is None:
            account.waiting.remove(task)
        else:
            account.at_work -= 1
        if outcome.status == "completed":
            task.charged = task.cost
            account.used += task.cost
        self.ended_count += 1
        account.listing.ended(task)
        if tell:
            self.on_end(task)
        self._fill_slots(account, at)

    def reschedule(self, task: Task) -> None:
        """The task's time line was changed."""
        if task.final is None and task.slot_sim is not None:
            self._schedule(task)

    def remove(self, task: Task) -> None:
        """Forget a task without a trace, as if the provider had pruned it."""
        self.end(task, Outcome("expired"), self._clock.now(), tell=False)
        self._accounts.pop(task.task_id).listing.remove(task)
        del self._tasks[task.task_id]
        self.ended_count -= 1

    def totals(self) -> dict[str, object]:
        """How many tasks there are, and what they cost: for the overview."""
        ended = dict.fromkeys(sorted(TERMINAL), 0)
        charged = Decimal(0)
        for task in self._tasks.values():
            if task.final is not None:
                ended[task.final] += 1
            charged += task.charged
        return {"tasks": len(self._tasks), "charged": charged, **ended}

    def _schedule(self, task: Task) -> None:
        self._pushes += 1
        heapq.heappush(self._due, (task.due_sim, self._pushes, task))

    def _fill_slots(self, account: Account, at: float) -> None:
        while account.waiting and self.has_slot(account):
            task = account.waiting.popleft()
            task.slot_sim = at
            account.at_work += 1
            self._schedule(task)
        if not account.waiting:
            self._starved.pop(account.api_key, None)
