"""Every kind of side work there is."""

from worker.side_work import SideWork
from worker.stages import archive, deliver

KINDS: tuple[SideWork, ...] = (archive.KIND, deliver.KIND)
