"""Every kind of side work there is."""

from worker.side_work import SideWork
from worker.stages import deliver

KINDS: tuple[SideWork, ...] = (deliver.KIND,)
