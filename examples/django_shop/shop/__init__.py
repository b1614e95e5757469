"""A shop whose orders become videos."""
