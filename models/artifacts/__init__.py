"""Results in a storage of one's own: what is to be fetched, what was stored, what was lost."""

from models.artifacts.table import Artifact, Kind
from models.artifacts.wanting import WANTED, on_move, wanted

__all__ = ["WANTED", "Artifact", "Kind", "on_move", "wanted"]
