"""Notices to producers: an outbox that transitions fill and workers empty.

Written in the transaction that moves a generation, so that none is lost and none is invented;
delivered at least once, in order for each generation and target.
"""

from models.notices.table import Notice, NoticeReceiver, State, Target
from models.notices.writing import numbered, wanted, write

__all__ = ["Notice", "NoticeReceiver", "State", "Target", "numbered", "wanted", "write"]
