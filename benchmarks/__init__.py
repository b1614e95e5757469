"""Measures, side by side with what a user would use instead. Start at `run.py`."""
