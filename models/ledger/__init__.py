"""The account of every credit: entries are written with what they tell of, and never changed."""

from models.ledger.booking import charge_beside, on_accept, on_move
from models.ledger.budget_table import Budget
from models.ledger.table import Kind, LedgerEntry

__all__ = ["Budget", "Kind", "LedgerEntry", "charge_beside", "on_accept", "on_move"]
