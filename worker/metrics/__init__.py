"""Figures for Prometheus: counted in each process, gathered in the database, told at `/metrics`."""
