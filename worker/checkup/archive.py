"""The archive: set up, and can be written."""

from worker.archive import StorageError, open_store
from worker.checkup.finding import Findings, ok, warn, wrong
from worker.settings import Settings

_MEND = "name a folder or bucket in SEEDANCE_ARCHIVE_URL that exists and that workers may write"


def archive(settings: Settings) -> Findings:
    """Write a few bytes, read them back, remove them, as from this machine."""
    # Shorter than a worker's: somebody waits for the answer.
    store = open_store(
        settings.archive_url,
        connect_timeout=min(settings.http_connect_timeout, 3.0),
        read_timeout=min(settings.http_timeout, 5.0),
    )
    if store is None:
        said = "SEEDANCE_ARCHIVE_URL is not set here: the provider keeps results for seven days"
        return Findings((ok("archive", said),))
    where = settings.archive_url
    try:
        removed = store.probe()
    except StorageError as error:
        return Findings((wrong("archive", f"{where} can't be written: {error}", _MEND),))
    if not removed:
        found = f"{where} can be written, but nothing there removed"
        return Findings((warn("archive", found, "let workers remove what lies in .incoming/"),))
    return Findings((ok("archive", f"{where} can be written"),))
