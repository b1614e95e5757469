"""Upload: each reference once, by content; then straight on to submitting."""

import logging
import time
import uuid
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, update

from api_client import ApiError, Disposition, InvalidRequest, media_type
from models import transitions, uploads
from models.base import table_of
from models.lifecycle import Note, Status
from models.schedule import backoff
from models.tables import Generation
from models.uploads import Content, SomebodyElse, Uploaded
from models.wait_reasons import Wait, WaitReason, retry
from worker import sources
from worker.crash_points import reached
from worker.limiter import NoTokenError
from worker.requests import is_source
from worker.runtime import Runtime
from worker.sources import Reference, SourceRefusedError, SourceUnavailableError
from worker.stages import common, submit

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger(__name__)

g = table_of(Generation).c

WAIT_FOR_OTHER = 1.5
"""Seconds until looking again whether somebody else has uploaded the same bytes."""

MAX_FAILURES = 8
"""So many failures in a row, with growing pauses (about 20 minutes), end a generation whose
reference can't be read."""


_MAX_ERROR = 500
"""Characters of an error that a wait keeps."""


class LeaseLostError(Exception):
    """The row belongs to another worker now, or was cancelled: stop at once."""


class RepeatedMessageError(Exception):
    """The same message is being worked on: leave it to that."""


class BusyError(Exception):
    """Another generation is uploading the same bytes."""


def run(rt: Runtime, generation_id: uuid.UUID, lease: int) -> None:
    """Upload what the request refers to, then submit, under the same lease."""
    row = common.begin(rt, generation_id, lease)
    if row is None or row.status != Status.UPLOADING:
        return
    keep = _Renewal(rt, generation_id, lease)
    try:
        content = [_resolved(rt, row, item, keep) for item in row.request["content"]]
        keep()
    except LeaseLostError:
        log.info("generation %s: lease %d was lost while uploading", generation_id, lease)
        return
    except RepeatedMessageError:
        return
    except BusyError:
        with rt.engine.begin() as conn:
            transitions.reschedule(conn, generation_id, lease, seconds=WAIT_FOR_OTHER)
        return
    except (SourceRefusedError, InvalidRequest) as error:
        _reject(rt, row, "INVALID_REFERENCE", str(error))
        return
    except (SourceUnavailableError, NoTokenError) as error:
        _put_back(rt, row, str(error))
        return
    except ApiError as error:
        _refused(rt, row, error)
        return
    paths = [item[item["type"]] for item in content]
    with rt.engine.begin() as conn:
        conn.execute(
            update(Generation)
            .where(g.id == generation_id, g.lease == lease, g.status == Status.UPLOADING)
            .values(content=content, content_until=uploads.valid_until(conn, paths))
        )
        row = common.load(conn, generation_id, lease)
    if row is not None:
        submit.submit(rt, row)


class _Renewal:
    """Renews the lease now and then; raises LeaseLostError when it can't."""

    def __init__(self, rt: Runtime, generation_id: uuid.UUID, lease: int) -> None:
        self._rt, self._id, self._lease = rt, generation_id, lease
        self._next = time.monotonic()
        self.also: Callable[[Connection], None] | None = None

    def __call__(self, *_: Any) -> None:
        if time.monotonic() < self._next:
            return
        seconds = self._rt.settings.lease
        if not common.renew(self._rt.engine, self._id, self._lease, seconds):
            raise LeaseLostError
        if self.also is not None:
            with self._rt.engine.begin() as conn:
                self.also(conn)
        self._next = time.monotonic() + seconds / 4


def _resolved(rt: Runtime, row: common.Row, item: dict[str, str], keep: _Renewal) -> dict[str, str]:
    kind = item["type"]
    if not is_source(kind, item[kind]):
        return item
    with sources.opened(item[kind], rt.settings, on_read=keep) as reference:
        content_type = media_type(reference.head, reference.filename)
        if not content_type.startswith(kind.removesuffix("_url")):
            raise SourceRefusedError(
                f"{reference.filename} is {content_type}, which an item of type {kind} can't be"
            )
        return {"type": kind, kind: _upload(rt, row, reference, content_type, keep)}


def _upload(
    rt: Runtime, row: common.Row, reference: Reference, content_type: str, keep: _Renewal
) -> str:
    bytes_ = Content(reference.sha256, content_type, row.id, row.lease)
    seconds = rt.settings.lease
    with rt.engine.begin() as conn:
        found = uploads.claim(conn, bytes_, size=reference.size, lease_seconds=seconds)
    match found:
        case Uploaded(file_path):
            return file_path
        case SomebodyElse(same_message=True):
            raise RepeatedMessageError
        case SomebodyElse():
            raise BusyError
    keep.also = lambda conn: uploads.renew(conn, bytes_, seconds=seconds)
    reached("upload.before_put")
    try:
        uploaded = rt.client.upload(
            reference.file,
            filename=reference.filename,
            content_type=content_type,
            progress=keep,
        )
    except BaseException:
        with rt.engine.begin() as conn:
            uploads.failed(conn, bytes_)
        raise
    finally:
        keep.also = None
    reached("upload.after_put")
    if uploaded.sha256 != reference.sha256:
        with rt.engine.begin() as conn:
            uploads.failed(conn, bytes_)
        raise SourceUnavailableError(f"{reference.filename} changed while it was read")

    def record(conn: Connection) -> None:
        uploads.done(
            conn,
            bytes_,
            file_path=uploaded.file_path,
            valid_seconds=rt.settings.upload_valid,
        )
        transitions.note(
            conn,
            row.id,
            Note.UPLOADED,
            detail={
                "file_path": uploaded.file_path,
                "sha256": uploaded.sha256,
                "bytes": uploaded.size,
                "content_type": content_type,
            },
        )

    # Storage takes no questions: what is not recorded would have to be sent again.
    common.surely(rt.engine, record, within=seconds)
    return uploaded.file_path


def _refused(rt: Runtime, row: common.Row, error: ApiError) -> None:
    match error.disposition:
        case Disposition.PERMANENT:
            _reject(rt, row, error.code or f"HTTP_{error.http_status}", error.message)
        case Disposition.HOLD:
            wait = common.report(rt, error) or retry(error.code)
            with rt.engine.begin() as conn:
                transitions.put_back(conn, row.id, row.lease, wait=wait, seconds=5.0)
        case Disposition.RETRY | Disposition.AMBIGUOUS:
            # An outage of the provider fails nothing, however long; it is shown after a while.
            common.report(rt, error)
            shown = f"its references can't be uploaded: {error}"
            _again_later(
                rt,
                row,
                str(error),
                attention=shown if row.failures + 1 >= MAX_FAILURES else None,
            )


def _reject(rt: Runtime, row: common.Row, code: str, message: str) -> None:
    log.info("generation %s is rejected: %s: %s", row.id, code, message)
    with rt.engine.begin() as conn:
        transitions.reject(conn, row.id, row.lease, code=code, message=message)


def _put_back(rt: Runtime, row: common.Row, why: str) -> None:
    if row.failures + 1 >= MAX_FAILURES:
        _reject(rt, row, "REFERENCE_UNAVAILABLE", why)
        return
    _again_later(rt, row, why)


def _again_later(rt: Runtime, row: common.Row, why: str, *, attention: str | None = None) -> None:
    wait = Wait(WaitReason.REFERENCE, {"error": why[:_MAX_ERROR]})
    log.warning("generation %s waits for its reference: %s", row.id, why)
    seconds = backoff(row.failures, base=common.BACKOFF_BASE, cap=common.BACKOFF_CAP)
    with rt.engine.begin() as conn:
        transitions.put_back(
            conn,
            row.id,
            row.lease,
            wait=wait,
            seconds=seconds,
            attention=attention,
            failed=True,
        )
