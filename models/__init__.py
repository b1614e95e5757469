"""Tables and lifecycle of generations."""
