"""Every metric that is kept as a total: its name, what it says, its labels, its buckets.

Labels have few values each: a model is one that we know, or `other`; a tenant is one that was
given a class, or `other`; an error is one of `models.error_classes`.
"""

from dataclasses import dataclass
from types import MappingProxyType

OTHER = "other"
"""Models that we don't know, and tenants without a class of their own."""

NO_ERROR = "none"
"""The label of what ended without an error."""

_SHORT = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_LONG = (1.0, 5.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1_800.0, 3_600.0, 14_400.0, 86_400.0)

AGES = (5.0, 15.0, 30.0, 60.0, 120.0, 300.0, 900.0, 3_600.0)
"""Upper bounds, in seconds, of how long ago running tasks were seen."""


@dataclass(frozen=True)
class Total:
    """A counter, or with `buckets` (upper bounds, in seconds) a histogram."""

    name: str
    help: str
    labels: tuple[str, ...]
    buckets: tuple[float, ...] = ()


TRANSITIONS = Total(
    "seedance_transitions", "Transitions of generations, by event (docs/lifecycle.md).", ("event",)
)
ACCEPTED = Total("seedance_generations_accepted", "Requests stored.", ("model", "tenant"))
SUBMITTED = Total(
    "seedance_generations_submitted",
    "Generations whose remote task is known; how: answered, or adopted after a lost answer.",
    ("how", "model", "tenant"),
)
FINISHED = Total(
    "seedance_generations_finished",
    "Generations that ended, by outcome and class of error (none where there was none).",
    ("outcome", "error", "model", "tenant"),
)
WAITING = Total(
    "seedance_generation_waiting_seconds",
    "Time from acceptance until the remote task was known.",
    ("tenant",),
    _LONG,
)
RUNNING = Total(
    "seedance_generation_running_seconds",
    "Time from then until the end was seen.",
    ("outcome", "model"),
    _LONG,
)
CHARGED = Total("seedance_credits_charged", "Credits charged, by the ledger.", ("model", "tenant"))
ESTIMATED = Total(
    "seedance_credits_estimated", "Credits estimated at acceptance.", ("model", "tenant")
)
REQUESTS = Total(
    "seedance_provider_requests",
    "Requests to the provider, each try counted.",
    ("endpoint", "outcome"),
)
REQUEST_SECONDS = Total(
    "seedance_provider_request_seconds",
    "How long requests to the provider took, connecting included.",
    ("endpoint",),
    _SHORT,
)
NOTICES = Total(
    "seedance_notice_tries",
    "Tries to deliver a notice; outcome: taken, again or dead.",
    ("target", "outcome"),
)

STORED = Total(
    "seedance_archive_tries",
    "Tries to store a result; outcome: stored, again or lost.",
    ("kind", "outcome"),
)

TOTALS = MappingProxyType(
    {
        total.name: total
        for total in (
            TRANSITIONS,
            ACCEPTED,
            SUBMITTED,
            FINISHED,
            WAITING,
            RUNNING,
            CHARGED,
            ESTIMATED,
            REQUESTS,
            REQUEST_SECONDS,
            NOTICES,
            STORED,
        )
    }
)

SUM = -1
"""The bucket that has a counter's value, and a histogram's sum of seconds."""
