"""Reading a task list whose pages drift (section "Task List").

The order is undocumented, and while pages are read tasks are added, change their status and so
leave a filtered list, or disappear: what moves down is seen twice, what moves up is missed. So
duplicates are dropped, and unless a pass is known to be complete the list is read again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from api_client.answers import Task, TaskPage

MAX_PASSES: Final = 3
"""How often the list is read at most. Faster drift than that may still hide a task."""

STALE_PAGES: Final = 3
"""So many pages in a row without anything new in this pass mean that a server repeats itself."""


def iterate(read: Callable[[int], TaskPage], page_size: int) -> Iterator[Task]:
    """Each task once, as it was when first seen.

    A pass is complete if all its pages named the same total and as many different tasks were seen
    in it. It ends after a complete pass, after `MAX_PASSES`, and, where the provider names no
    total, after a further pass that brings nothing new.
    """
    seen: set[str] = set()
    for number in range(MAX_PASSES):
        known = len(seen)
        this_pass: set[str] = set()
        totals: set[int | None] = set()
        items = 0
        for page in _pages(read, page_size, this_pass):
            totals.add(page.total)
            items += len(page.unreadable)
            for task in page.data:
                this_pass.add(task.task_id)
                if task.task_id not in seen:
                    seen.add(task.task_id)
                    yield task
        if totals == {len(this_pass) + items} or (number and None in totals and len(seen) == known):
            return


def _pages(
    read: Callable[[int], TaskPage], page_size: int, this_pass: set[str]
) -> Iterator[TaskPage]:
    """Pages of one pass, up to the end of the list. The caller fills `this_pass`."""
    number = items = stale = 0
    while stale < STALE_PAGES:
        number += 1
        page = read(number)
        known = len(this_pass)
        yield page
        count = len(page.data) + len(page.unreadable)
        items += count
        # A server may give fewer than asked for, so a short page alone ends nothing.
        if not count or (count < page_size if page.total is None else items >= page.total):
            return
        stale = 0 if len(this_pass) > known or page.unreadable else stale + 1
