"""Figures of the whole service: totals that only grow, and the present state. Read for Prometheus.

Totals follow from what the transitions write anyway, the history and the ledger: nothing is added
to their statements, old workers count as well, and what retention deletes stays counted.
"""

from models.metrics.tables import MetricCursor, MetricTotal, Pulse

__all__ = ["MetricCursor", "MetricTotal", "Pulse"]
