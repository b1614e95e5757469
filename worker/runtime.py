"""The composition root: the one place that builds what a process works with."""

import atexit
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from sqlalchemy import Engine

from api_client import ClientConfig, RequestSeen, SeedanceClient
from models.artifacts import WANTED
from models.database import make_engine
from models.observing.usual import UsualTimes
from worker import tracing
from worker.archive import Store, open_store
from worker.flow import FlowMonitor
from worker.limiter import Limiter
from worker.metrics.reporter import Reporter
from worker.metrics.tally import Tally
from worker.settings import Settings, load_settings
from worker.side_slots import SideSlots


@dataclass
class Membership:
    """The id under which this worker is registered (`models.workers`), while it is.

    A process without a dispatcher has none; a claim that it begins is released with the others.
    """

    id: int | None = None


@dataclass(frozen=True)
class Runtime:
    """Settings and connections of one process; stages get it passed."""

    settings: Settings
    engine: Engine
    client: SeedanceClient
    limiter: Limiter
    archive: Store | None
    """Where results are stored, if anywhere."""
    usual: UsualTimes
    """How long tasks usually take, as this process knows it."""
    flow: FlowMonitor
    """How fast the provider's account takes requests, as this process knows it."""
    membership: Membership
    """Which worker this process is."""
    side_slots: SideSlots
    """How many threads may be at work beside the generations (`worker.side_work`)."""
    tally: Tally
    """What this process counts for `/metrics`."""

    def close(self) -> None:
        """Let go of every connection."""
        self.client.close()
        self.engine.dispose()


TRUSTED = 0.5
"""Seconds after its last use in which a connection is taken to be alive still: what one message
does in a row needs one check, not one for each of its transactions.
"""


def build(settings: Settings, *, pool_size: int | None = None, trusted: float = TRUSTED) -> Runtime:
    """Build everything from settings. Opens no connection yet.

    `pool_size`: database connections, by default one for each thread of a worker. `trusted`: as
    `make_engine` has it.
    """
    engine = make_engine(
        settings.database_url,
        pool_size=pool_size or settings.concurrency,
        options={WANTED: bool(settings.archive_url)},
        trusted=trusted,
    )
    flow = FlowMonitor(engine)
    limiter = Limiter(settings.rate_limit, settings.shared_rate_url, flow=flow.now)
    tally = Tally()
    client = SeedanceClient(
        ClientConfig(
            api_key=settings.api_key.get_secret_value(),
            base_url=settings.api_base_url,
            connect_timeout=settings.http_connect_timeout,
            read_timeout=settings.http_timeout,
            total_timeout=settings.http_timeout,
        ),
        throttle=limiter.wait,
        observer=_observer(tally),
    )
    return Runtime(
        settings,
        engine,
        client,
        limiter,
        open_store(
            settings.archive_url,
            connect_timeout=settings.http_connect_timeout,
            read_timeout=settings.http_timeout,
        ),
        UsualTimes(),
        flow,
        Membership(),
        # Deliveries are wanted always, the archive where there is one.
        SideSlots(max(1, settings.concurrency // 2), kinds=2 if settings.archive_url else 1),
        tally,
    )


def _observer(tally: Tally) -> Callable[[RequestSeen], None]:
    if not tracing.active():
        return tally.request

    def observe(seen: RequestSeen) -> None:
        tally.request(seen)
        tracing.request(seen)

    return observe


_built: dict[int, Runtime] = {}


def runtime() -> Runtime:
    """This process's runtime, built when first asked for. A forked child builds its own."""
    here = os.getpid()
    if here not in _built:
        _built.clear()
        _built[here] = rt = build(load_settings())
        if rt.settings.metrics_every:
            reporter = Reporter(rt.engine, rt.tally, every=rt.settings.metrics_every)
            reporter.start()
            atexit.register(reporter.stop)
    return _built[here]


def for_dispatcher(settings: Settings) -> Runtime:
    """The runtime of a dispatcher beside this process's tasks.

    It has connections of its own: one that died since the last turn costs a turn, the loop begins
    anew. What tasks have learned of the provider, and the slots that they leave free, it shares.
    """
    tasks = runtime()
    return replace(
        build(settings, pool_size=2, trusted=5.0),
        flow=tasks.flow,
        membership=tasks.membership,
        side_slots=tasks.side_slots,
    )


def use(given: Runtime) -> None:
    """Make `given` this process's runtime (tests, the demo)."""
    _built.clear()
    _built[os.getpid()] = given


def waking_clock() -> float:
    """Seconds on a clock that also counts the machine's sleep, where the system has one.

    The age of an intent is measured on it: a laptop or a paused virtual machine that wakes up
    must see that its intent is old.
    """
    boottime = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if boottime is None else time.clock_gettime(boottime)
