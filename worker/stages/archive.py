"""Archive: fetch one result of a completed generation, and store it whole, once, for good.

Nothing here generates again: what can't be fetched or stored is tried until the provider lets go
of it, and an operator is asked long before.
"""

import logging
import time

from sqlalchemy import Connection, Engine
from structlog.contextvars import bind_contextvars

from api_client import ApiError
from models.artifacts import Kind, storing
from models.artifacts.storing import Failed, Key, Stored, Work
from models.metrics.definitions import STORED
from models.schedule import backoff
from worker import tracing
from worker.archive import StorageError, Store, media
from worker.archive.fetching import AddressRefusedError, DownloadError, Fetched, fetch
from worker.archive.media import NotMediaError
from worker.archive.store import named
from worker.crash_points import reached
from worker.limiter import NoTokenError
from worker.runtime import Runtime
from worker.settings import Settings
from worker.side_work import SideClaim, SideWork
from worker.stages import common

log = logging.getLogger(__name__)

BACKOFF_BASE = 5.0
BACKOFF_CAP = 1800.0
"""Seconds, at most, between two tries: over three hundred before the provider lets go."""

ELSEWHERE = 2.0
"""Seconds until it is due again when it came to a worker without an archive."""

_STORAGE = "storage: "
"""How errors begin that are the archive's own."""


class LeaseLostError(Exception):
    """Somebody else works on it now: stop at once."""


class NoAddressError(Exception):
    """The provider shows no address for it."""


def run(rt: Runtime, claim: SideClaim) -> None:
    """Fetch and store one claimed artifact, named as in `Key`."""
    key, lease = Key.parse(claim.id), claim.lease
    bind_contextvars(generation=str(key.generation_id))
    if rt.archive is None:
        with rt.engine.begin() as conn:
            storing.put_off(conn, key, lease, ELSEWHERE)
        return
    with rt.engine.begin() as conn:
        work = storing.begin(conn, key, lease)
        tracing.works_on(conn, [key.generation_id])
    if work is None:
        return
    try:
        stored = _store(rt, rt.archive, work)
    except LeaseLostError:
        log.info("%s: lease %d was lost while it was fetched", key, lease)
    except NoTokenError:
        with rt.engine.begin() as conn:
            storing.put_off(conn, key, lease, 1.0)
    except StorageError as error:
        _failed(rt, work, f"{_STORAGE}{error}")
    except OSError as error:  # reading back what was written
        _failed(rt, work, f"{_STORAGE}{named(error)}")
    except ApiError as error:
        common.report(rt, error)
        _failed(rt, work, f"provider: {error}")
    except (DownloadError, NotMediaError, NoAddressError) as error:
        _failed(rt, work, f"download: {error}")
    else:
        reached("archive.before_record")
        common.surely(
            rt.engine,
            lambda conn: storing.stored(conn, key, lease, stored),
            within=rt.settings.lease,
        )
        rt.tally.count(STORED, str(key.kind), "stored")
        log.info("%s is stored: %s (%d bytes)", key, stored.uri, stored.bytes)


class _Renewal:
    """Renews the lease now and then; raises LeaseLostError when it can't."""

    def __init__(self, engine: Engine, work: Work, seconds: float) -> None:
        self._engine, self._work, self._seconds = engine, work, seconds
        self._next = time.monotonic() + seconds / 4

    def __call__(self) -> None:
        if time.monotonic() < self._next:
            return
        with self._engine.begin() as conn:
            if not storing.put_off(conn, self._work.key, self._work.lease, self._seconds):
                raise LeaseLostError
        self._next = time.monotonic() + self._seconds / 4


def _store(rt: Runtime, store: Store, work: Work) -> Stored:
    if work.error is not None and work.error.startswith(_STORAGE):
        # Not the whole download for nothing, again and again, while the archive is out of order.
        store.probe()
    url, fresh = work.url, False
    if url is None:
        url, fresh = _renewed(rt, work), True
    try:
        return _fetch(rt, store, work, url)
    except AddressRefusedError:
        if fresh:
            raise
    return _fetch(rt, store, work, _renewed(rt, work))


def _renewed(rt: Runtime, work: Work) -> str:
    """A fresh address, which the task's GET gives; kept with the generation."""
    if work.remote_task_id is None:
        raise NoAddressError("its generation is no longer kept")
    task = rt.client.get(work.remote_task_id, retry=False)
    seen = common.observation(task)
    url = seen.video_url if work.key.kind is Kind.VIDEO else seen.last_frame_url
    if task.task_id != work.remote_task_id or not url:
        raise NoAddressError(f"the provider shows no address for it, status {task.status}")
    with rt.engine.begin() as conn:
        storing.renewed(conn, seen)
    return url


def _fetch(rt: Runtime, store: Store, work: Work, url: str) -> Stored:
    keep = _Renewal(rt.engine, work, rt.settings.lease)
    with store.part(str(work.key), work.lease) as part:
        fetched: Fetched = fetch(url, part.write, rt.settings, on_read=keep)
        type_ = media.content_type(
            work.key.kind, fetched.content_type, fetched.head, part.file, fetched.size
        )
        reached("archive.after_download")
        # By its content: the same bytes are stored once, and a repetition finds its own.
        name = f"{fetched.sha256[:2]}/{fetched.sha256}{media.extension(type_)}"
        uri = part.keep(name, size=fetched.size, alive=keep)
    return Stored(uri, fetched.size, fetched.sha256, type_)


def _failed(rt: Runtime, work: Work, error: str) -> None:
    seconds = backoff(work.tries - 1, base=BACKOFF_BASE, cap=BACKOFF_CAP)
    with rt.engine.begin() as conn:
        outcome = storing.failed(conn, work.key, work.lease, error, seconds=seconds)
    if outcome is not Failed.STALE:
        told = "lost" if outcome is Failed.LOST else "again"
        rt.tally.count(STORED, str(work.key.kind), told)
    match outcome:
        case Failed.AGAIN:
            log.warning("%s can't be stored, again in %.0f s: %s", work.key, seconds, error)
        case Failed.ALARM:
            log.error("%s needs attention, it can't be stored since a day: %s", work.key, error)
        case Failed.LOST:
            log.error("%s is lost, the provider no longer keeps it: %s", work.key, error)
        case Failed.STALE:
            log.info("%s: lease %d was lost: %s", work.key, work.lease, error)


def _wanted(settings: Settings) -> bool:
    return bool(settings.archive_url)


def _claim(conn: Connection, limit: int, lease_seconds: float) -> list[SideClaim]:
    claimed = storing.claim(conn, limit, lease_seconds)
    return [SideClaim(str(key), lease) for key, lease in claimed]


def _put_off(conn: Connection, claim: SideClaim, seconds: float) -> None:
    storing.put_off(conn, Key.parse(claim.id), claim.lease, seconds)


KIND = SideWork("seedance.archive", _wanted, _claim, _put_off, run)
