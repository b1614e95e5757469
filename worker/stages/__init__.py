"""The stages of a generation: plain functions that a test calls without Celery.

Each takes the runtime, a generation's id and the lease it was claimed under, does one step, and
writes only while the lease (or, for an answer, the attempt) is still the row's.
"""
