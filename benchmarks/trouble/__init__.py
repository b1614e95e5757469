"""Throughput while the provider, the network or a worker fails in part: the section "In trouble".

Each condition runs this service, and plain Celery where that makes sense, against a simulator with
faults. The figures are compared with the condition `calm` of the same run.
"""
