"""This service and plain Celery, with the settings that a condition asks for."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from benchmarks.arena import Arena
from benchmarks.entrants import PROCESSES, Entrant, PlainCelery, Service, Work
from worker import stack
from worker.supervisor import ProcessSpec

SHORT_TIMES: dict[str, str] = {
    "SEEDANCE_SEND_BUDGET": "4",
    "SEEDANCE_LATE_CREATION": "8",
    "SEEDANCE_LIST_LAG": "2",
    "SEEDANCE_SETTLE_MARGIN": "1",
    "SEEDANCE_LEASE": "15",
    "SEEDANCE_HTTP_TIMEOUT": "8",
    "SEEDANCE_HTTP_CONNECT_TIMEOUT": "2",
}
"""A settle window and a lease of 15 s, so that a run is short."""

OVERRIDES: dict[str, str] = {}
"""Settings of this service for every condition of this run, for tuning."""

UNLIMITED_RATE: dict[str, str] = {
    "SEEDANCE_RATE_LIMIT": "1000/second",
    # More than there are generations: what limits is the provider, or this service.
    "SEEDANCE_MAX_IN_FLIGHT": "400",
}


@dataclass(frozen=True)
class Setup:
    """Settings of both contenders for one condition."""

    environment: Mapping[str, str] = field(default_factory=lambda: SHORT_TIMES | UNLIMITED_RATE)
    """Settings of this service."""
    threads: int = 16
    """Of each worker."""
    poll_seconds: float = 1.0
    """The shortest time between two polls of a task."""
    restart: bool = True
    """Whether the first worker is started again after its death."""


class ServiceWith(Service):
    """This service with the settings of a condition."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup

    def processes(self, here: Arena, work: Work) -> Sequence[ProcessSpec]:
        """Return the specs of two workers and beat."""
        env = {
            **here.environment(),
            "SEEDANCE_LOG_LEVEL": "warning",
            "SEEDANCE_CONCURRENCY": str(self.setup.threads),
            "SEEDANCE_POLL_MIN": str(work.poll_seconds),
            **self.setup.environment,
            **OVERRIDES,
        }
        first, *others = [stack.worker(n, env, here.folder) for n in range(1, PROCESSES + 1)]
        return [dataclasses.replace(first, restart=self.setup.restart), *others, stack.beat(env)]


class CeleryWith(PlainCelery):
    """Plain Celery with the settings of a condition."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.threads = setup.threads

    def processes(self, here: Arena, work: Work) -> Sequence[ProcessSpec]:
        """Return the specs of two workers."""
        first, *others = super().processes(here, work)
        return [dataclasses.replace(first, restart=self.setup.restart), *others]


CONTENDERS = {"service": ServiceWith, "celery": CeleryWith}


def contender(name: str, setup: Setup) -> Entrant:
    """Return the contender of this name with these settings."""
    return CONTENDERS[name](setup)
