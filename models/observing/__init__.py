"""Following many at once: whose turn it is to read the task list, and when a first look pays.

`table`: the observer and the usual times. `choice`: the list or GETs, by their cost; pure.
`turns`: the observer's state and the schedule of what it follows. `usual`: how long tasks take.
"""

from models.observing.table import Observer, UsualTime

__all__ = ["Observer", "UsualTime"]
