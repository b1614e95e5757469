"""What is measured, one kind a module; each gives figures of one contender.

A figure that could not be had is missing, and `note` says why.
"""

from typing import Any

Figures = dict[str, Any]
"""By name, in the units that the name ends in."""
