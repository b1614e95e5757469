"""Upkeep, by beat: reconcile, balance, pruning. Nothing here is needed for progress."""
