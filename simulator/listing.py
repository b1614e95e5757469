"""The task list of one account: pages in any order, without sorting it at each call."""

import random
from bisect import bisect_left, insort
from collections.abc import Callable, Sequence

from simulator.tasks import TERMINAL, Task


def _position(task: Task) -> tuple[float, int]:
    return task.position


def _insert(tasks: list[Task], task: Task) -> None:
    if not tasks or tasks[-1].position <= task.position:
        tasks.append(task)
    else:
        insort(tasks, task, key=_position)


def _discard(tasks: list[Task], task: Task) -> None:
    at = bisect_left(tasks, task.position, key=_position)
    if at < len(tasks) and tasks[at] is task:
        del tasks[at]


class Listing:
    """Visible tasks in order of creation, and those that the list doesn't show yet."""

    def __init__(self) -> None:
        self._shown: list[Task] = []
        self._hidden: list[Task] = []
        self._ended: dict[str, list[Task]] = {status: [] for status in TERMINAL}
        self._active: dict[str, Task] = {}

    def add(self, task: Task) -> None:
        """A new task; it shows once its lag has passed."""
        self._active[task.task_id] = task
        self._hidden.append(task)

    def ended(self, task: Task) -> None:
        """The task reached its final status."""
        self._active.pop(task.task_id, None)
        if task.final is not None:
            _insert(self._ended[task.final], task)

    def remove(self, task: Task) -> None:
        """The task is gone, as if the provider had pruned it."""
        self._active.pop(task.task_id, None)
        _discard(self._shown, task)
        for tasks in self._ended.values():
            _discard(tasks, task)
        self._hidden = [other for other in self._hidden if other is not task]

    def page(
        self,
        *,
        order: str,
        status: str | None,
        page: int,
        size: int,
        visible: Callable[[Task], bool],
        status_of: Callable[[Task], str],
        updated: Callable[[Task], float],
        rng: random.Random,
    ) -> tuple[list[Task], int]:
        """One page and the total. The default order costs one slice, however long the list."""
        self._reveal(visible)
        tasks: Sequence[Task] = self._shown
        if status in TERMINAL:
            tasks = self._ended[status]
            if self._hidden:
                tasks = [task for task in tasks if visible(task)]
        elif status is not None:
            tasks = sorted(
                (t for t in self._active.values() if status_of(t) == status and visible(t)),
                key=_position,
            )
        total, start = len(tasks), (page - 1) * size
        if order == "created_desc":
            stop = total - start
            return list(tasks[max(0, stop - size) : max(0, stop)])[::-1], total
        if order == "random":
            tasks = rng.sample(tasks, total)
        elif order.startswith("updated"):
            tasks = sorted(tasks, key=updated, reverse=order == "updated_desc")
        return list(tasks[start : start + size]), total

    def _reveal(self, visible: Callable[[Task], bool]) -> None:
        if not self._hidden:
            return
        still = []
        for task in self._hidden:
            if visible(task):
                _insert(self._shown, task)
            else:
                still.append(task)
        self._hidden = still
