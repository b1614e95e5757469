"""What upkeep does for the archive: asks for results that were passed by, and tidies up.

Results are passed by while no archive is configured, or by workers that don't know of it.
"""

import logging

from models.artifacts import storing
from worker.archive import StorageError
from worker.runtime import Runtime

log = logging.getLogger(__name__)

BATCH = 500
"""Completed generations that one transaction looks at."""
LEFT_BEHIND = 86_400.0
"""Seconds after which what was on its way into the archive is left over."""


def run(rt: Runtime) -> int:
    """Ask for what has been passed by; returns how many files. Nothing without an archive."""
    if rt.archive is None:
        return 0
    asked = 0
    with rt.engine.begin() as conn:
        place: storing.Place | None = storing.behind(conn)
    while place is not None:
        with rt.engine.begin() as conn:
            count, place = storing.catch_up(conn, place, most=BATCH)
        asked += count
    if asked:
        log.info("%d results of completed generations are to be stored as well", asked)
    try:
        swept = rt.archive.sweep(LEFT_BEHIND)
    except StorageError as error:
        log.warning("the archive can't be tidied up: %s", error)
    else:
        if swept:
            log.info("%d files that never got whole were removed from the archive", swept)
    return asked
