"""Reading some pages of the task list at a time, where each takes the provider long to answer."""

import contextvars
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

from api_client import TaskPage

MOST = 8
"""Pages under way at a time: each has a thread of its own."""

SLOW = 0.05
"""Seconds of latency under which threads would cost more than they hide."""


def width(latency: float, applying: float, per_second: float) -> int:
    """How many pages to have under way: so many that the next is there when one is applied, but
    no more than the request rate lets through in the meantime.

    `latency`: seconds that an answer takes; `applying`: that its page takes afterwards.
    """
    if latency < SLOW:
        return 1
    useful = 1 + latency / max(applying, 0.001)
    return max(1, min(MOST, math.ceil(min(useful, latency * per_second))))


Pages = Callable[[Iterable[int], Callable[[], int]], Iterator[TaskPage]]
"""Reads pages by their numbers, and yields them in that order."""


@contextmanager
def reader(read: Callable[[int], TaskPage]) -> Iterator[Pages]:
    """A function that has several pages read at a time.

    It asks before each how many are to be under way: 0 ends it. What was read and is not wanted any
    more is dropped; the first that fails raises, in its turn.
    """
    pool: ThreadPoolExecutor | None = None

    def pages(numbers: Iterable[int], ahead: Callable[[], int]) -> Iterator[TaskPage]:
        nonlocal pool
        left, under_way = iter(numbers), deque[Future[TaskPage]]()
        while (wanted := ahead()) > 0:
            if wanted == 1 and not under_way:
                number = next(left, None)
                if number is None:
                    return
                yield read(number)
                continue
            pool = pool or ThreadPoolExecutor(MOST, thread_name_prefix="reading-ahead")
            while len(under_way) < wanted and (number := next(left, None)) is not None:
                # Its lines and spans are of the same task.
                context = contextvars.copy_context()
                under_way.append(pool.submit(context.run, read, number))
            if not under_way:
                return
            yield under_way.popleft().result()

    try:
        yield pages
    finally:
        if pool is not None:
            # Those under way end by themselves, within the time of a request.
            pool.shutdown(wait=False, cancel_futures=True)
