"""What operators do to the service: pauses, retries, and the record of who did what and why."""

from models.operating.tables import OperatorAction, Pause

__all__ = ["OperatorAction", "Pause"]
