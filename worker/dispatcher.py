"""The dispatcher: hands due generations to Celery, and lets waiting ones into free slots.

It runs in every worker, so no single process is needed for progress. Several are safe: rows are
claimed with SKIP LOCKED, and one of them admits at a time. It knows Celery only as `publish`.
"""

import contextlib
import logging
import math
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import psycopg
from sqlalchemy import Connection

from models import credit, schedule, submission, transitions, workers
from models.credit import Purse, Senior
from models.database import alone, direct_dsn, pooled
from models.flow_control import breakers, evidence
from models.observing import turns
from models.schedule import Claim, Stage
from worker.crash_points import reached
from worker.runtime import Runtime
from worker.side_work import SideClaim, SideWork

log = logging.getLogger(__name__)

RELAX_EVERY = 1.0
"""Seconds between two checks whether a limit may be raised or forgotten."""

FIRST_BALANCE = 5.0
"""Seconds that work waits, at most, for the first answer to what the account holds."""

TELL_EVERY = 2.0
"""Seconds between two looks at who waits for credits."""

FORGET_TRIPS = 600.0
"""Seconds after which a closed breaker forgets how often it opened."""

DEADLY_PAUSE = 3600.0
"""Seconds, at most, between two tries of what workers die of and what can't be failed."""

FULL_PAUSE = 0.05
"""Seconds until it is looked again whether messages were taken and there is room for more."""

SUBMITS_OF_MESSAGE = 4
"""Submits that share a message at most: a message costs as much as a submit's statements."""

RESOLVE_BATCH = 50
"""Generations in doubt that share one pair of readings of the task list."""


@dataclass(frozen=True)
class Broker:
    """What the dispatcher needs of Celery."""

    publish: Callable[[Stage, Sequence[Claim]], None]
    """Publish one message for the claims: one for a step, several for RESOLVE and SUBMIT."""
    probe: Callable[[], None]
    """Publish a request to probe the breakers."""
    depth: Callable[[], int]
    """How many stage messages wait to be taken."""
    observe: Callable[[int], None]
    """Publish a request to read the task list, under this lease of the observer's."""
    publish_side: Callable[[SideWork, SideClaim], None]
    """Publish one message for side work."""
    side_depth: Callable[[], int]
    """How many messages of side work wait to be taken."""


class TakenForDeadError(Exception):
    """Another worker has released this one's claims."""


class Dispatcher:
    """One loop in one thread."""

    def __init__(
        self,
        rt: Runtime,
        broker: Broker,
        *,
        slots: int,
        side_work: Sequence[SideWork] = (),
        beat: Callable[[], None] = lambda: None,
    ) -> None:
        """`beat` is called whenever the loop comes round, or finds that it can't."""
        self._rt = rt
        self._side_work = [kind for kind in side_work if kind.wanted(rt.settings)]
        self._side_looked = float("-inf")
        self._broker = broker
        self._slots = slots
        self._stop = threading.Event()
        self._failures = 0
        self._relaxed = 0.0
        self._observed = self._probed = float("-inf")
        self._by_list = False
        self._crowded = False
        self._purse: Purse | None = None
        self._senior: Senior | None = None
        self._short = False
        self._told = self._asked = self._shown = self._released = -math.inf
        self._name = f"{socket.gethostname()}:{os.getpid()}"
        self._unknown_since: float | None = None
        self._beat = beat

    def stop(self) -> None:
        """Ask the loop to end; it does within a tick."""
        self._stop.set()

    def run(self) -> None:
        """Work until stopped. Nothing that goes wrong ends it."""
        while not self._stop.is_set():
            try:
                with _session(self._rt, self._name) as session:
                    self._loop(session)
            except Exception as error:  # noqa: BLE001  (the schedule must outlive everything)
                self._rest(error)

    def _rest(self, error: Exception) -> None:
        """Log what went wrong, and pause for longer each time."""
        self._failures += 1
        pause = schedule.backoff(self._failures, base=0.5, cap=10.0)
        log.warning(
            "the dispatcher starts again in %.1f s: %s: %s",
            pause,
            type(error).__name__,
            str(error).split("\n")[0][:200],
        )
        self._beat()
        self._stop.wait(pause)

    def _loop(self, session: "_Session") -> None:
        while not self._stop.is_set():
            self._beat()
            try:
                busy = self.tick()
                self._show_heartbeat()
            except TakenForDeadError:
                raise
            except Exception as error:  # noqa: BLE001  (a broker that is away, say)
                # With the session the worker would give up its registration, and its claims.
                session.check()
                self._rest(error)
                continue
            self._failures = 0
            if self._stop.is_set():
                break
            if busy:
                self._stop.wait(FULL_PAUSE)
            else:
                session.wait(self._pause())
        if self._rt.membership.id is not None:
            with self._rt.engine.begin() as conn:
                workers.deregister(conn, self._rt.membership.id)

    def _show_heartbeat(self) -> None:
        """This worker has just got through a tick."""
        worker_id = self._rt.membership.id
        if worker_id is None or time.monotonic() - self._shown < workers.HEARTBEAT_EVERY:
            return
        self._shown = time.monotonic()
        with self._rt.engine.begin() as conn:
            alive = workers.heartbeat(conn, worker_id)
        if not alive:
            raise TakenForDeadError("another worker took this one for dead: it registers anew")

    def _pause(self) -> float:
        """Until the next row is due, but at most a tick: another process may bring it forward."""
        tick = self._rt.settings.tick
        with alone(self._rt.engine) as conn:
            due = schedule.next_due_in(conn, within=tick, by_list=self._by_list)
        return tick if due is None else min(tick, max(0.02, due))

    def tick(self) -> bool:
        """Hand out what is due, then admit. True if more may wait, for which there was no room."""
        self._release_dead()
        self._side()
        depth = self._broker.depth()
        self._probe()
        self._observe()
        if depth > self._slots:
            # Every thread has its next message. Refilled in portions: each refill has its price.
            return True
        room = 2 * self._slots - depth
        settings = self._rt.settings
        with alone(self._rt.engine) as conn:
            due = schedule.claim_due(
                conn, room, lease_seconds=settings.lease, by_list=self._by_list
            )
        claims = self._without_poison(due)
        self._crowded = False
        try:
            left = room - len(self._batches(claims))
            if left > 0:
                admitted = self._admit(left)
                claims += admitted
                if len(admitted) == left and all(c.stage is Stage.SUBMIT for c in admitted):
                    # More wait than there are messages for: submits share theirs.
                    claims += self._admit(left * (SUBMITS_OF_MESSAGE - 1))
        finally:
            # Whatever goes wrong there: what is due and claimed would wait for its lease's end.
            if claims:
                reached("dispatch.after_claim")
            batches = self._batches(claims)
            self._hand_out(batches)
        self._look_after_credits()
        return self._crowded or len(batches) >= room

    def _observe(self) -> None:
        """Once in a tick: have the task list read, where that costs less than a GET for each."""
        settings = self._rt.settings
        if time.monotonic() - self._observed < settings.tick:
            return
        self._observed = time.monotonic()
        with self._rt.engine.begin() as conn:
            turn = turns.take(
                conn,
                least=settings.observe_from,
                every=settings.poll_min,
                lease_seconds=settings.lease,
            )
        self._by_list = turn.engaged
        if turn.lease is None:
            return
        try:
            self._broker.observe(turn.lease)
        except Exception:
            with self._rt.engine.begin() as conn:
                turns.give_back(conn, turn.lease, seconds=2.0)
            raise

    def _side(self) -> None:
        """Hand out side work, once in a tick: few of it at a time, and never instead of a stage.

        The kinds take turns at being first: a backlog of one must not keep the others waiting.
        """
        if not self._side_work or time.monotonic() - self._side_looked < self._rt.settings.tick:
            return
        self._side_looked = time.monotonic()
        waiting = self._broker.side_depth()
        self._side_work.append(self._side_work.pop(0))
        for kind in self._side_work:
            # More would only be put off: what is slow would be claimed again before what is not.
            room = self._rt.side_slots.free(kind.task) - waiting
            if room <= 0:
                continue
            with self._rt.engine.begin() as conn:
                claims = kind.claim(conn, room, self._rt.settings.lease)
            waiting += len(claims)
            for done, claim in enumerate(claims):
                try:
                    self._broker.publish_side(kind, claim)
                except Exception:
                    with self._rt.engine.begin() as conn:
                        for left in claims[done:]:
                            kind.put_off(conn, left, 2.0)
                    raise

    def _admit(self, room: int) -> list[Claim]:
        """Admit up to `room` waiting generations."""
        self._relax()
        with alone(self._rt.engine) as conn:
            waits = schedule.waits(conn)
        if not waits.accepted:
            return []
        if waits.undecided:
            with self._rt.engine.begin() as conn:
                submission.look_again(conn)
        with self._rt.engine.begin() as conn:
            # Also while a breaker is open for all: deadlines pass all the same.
            admitted = schedule.admit(
                conn,
                room,
                max_in_flight=self._rt.settings.max_in_flight,
                lease_seconds=self._rt.settings.lease,
                ceiling=breakers.read(conn).ceiling if waits.breaker else None,
                open_purse=self._open_purse,
            )
        # Another worker admits, or the next answers will allow more: soon again.
        self._crowded = admitted is None or self._rt.flow.now().ramp_age is not None
        return admitted or []

    def _open_purse(self, conn: Connection) -> Purse:
        """What may be spent now. Until the provider has told the balance once, nothing, for some
        seconds at most: a provider that doesn't tell it must not stop everything.
        """
        if not self._rt.settings.check_balance:
            return Purse(None)
        self._purse = Purse(credit.funds(conn), self._senior)
        if self._purse.unknown:
            self._unknown_since = self._unknown_since or time.monotonic()
            if time.monotonic() - self._unknown_since < FIRST_BALANCE:
                self._purse.left = Decimal(0)
        return self._purse

    def _look_after_credits(self) -> None:
        """Where credits are short: who waits says so, and the balance is read again, sparingly."""
        purse, self._purse = self._purse, None
        if purse is not None and (purse.refused or purse.unknown):
            self._short = True
        if not self._short or time.monotonic() - self._told < TELL_EVERY:
            return
        self._told = time.monotonic()
        with self._rt.engine.begin() as conn:
            told = credit.tell(conn)
        self._senior, self._short = told.senior, told.anybody
        every = self._rt.settings.probe_every
        stale = told.age is None or told.age > every
        if stale and time.monotonic() - self._asked > every:
            self._asked = time.monotonic()
            self._broker.probe()

    def _relax(self) -> None:
        """Now and then: raise or forget limits that have served their time."""
        if time.monotonic() - self._relaxed < RELAX_EVERY:
            return
        self._relaxed = time.monotonic()
        with self._rt.engine.begin() as conn:
            evidence.relax(
                conn,
                max_in_flight=self._rt.settings.max_in_flight,
                max_rate=self._rt.limiter.configured,
            )
            breakers.forget_trips(conn, after=FORGET_TRIPS)

    def _probe(self) -> None:
        """Once in a tick: have open breakers probed whose time has come."""
        if time.monotonic() - self._probed < self._rt.settings.tick:
            return
        self._probed = time.monotonic()
        with self._rt.engine.begin() as conn:
            opened = breakers.take_probe(conn, every=self._rt.settings.probe_every)
        if opened:
            log.info("probing the breakers %s", ", ".join(opened))
            self._broker.probe()

    def _release_dead(self) -> None:
        """Once in a tick: release what workers had claimed that are dead by now."""
        if time.monotonic() - self._released < self._rt.settings.tick:
            return
        self._released = time.monotonic()
        with self._rt.engine.begin() as conn:
            dead = workers.release_dead(conn, self._rt.membership.id)
        for one in dead:
            log.warning(
                "worker %s is dead: %d claims released, %d generations uncertain",
                one.name,
                one.released,
                one.uncertain,
            )

    def _without_poison(self, claims: Sequence[Claim]) -> list[Claim]:
        """Set apart what was handed out again and again and never came back."""
        good = []
        for claim in claims:
            if claim.tries < self._rt.settings.max_tries:
                good.append(claim)
                continue
            of = {"generation": str(claim.id), "stage": str(claim.stage)}
            with self._rt.engine.begin() as conn:
                if claim.stage in (Stage.UPLOAD, Stage.SUBMIT):
                    transitions.poison(conn, claim.id, claim.lease)
                    log.error("generation %s failed: workers died of it", claim.id, extra=of)
                    continue
                why = f"begun {claim.tries} times without coming back: workers die of it"
                if transitions.need_attention(conn, claim.id, why):
                    log.error("generation %s needs attention: %s", claim.id, why, extra=of)
                # Still tried, more and more seldom: should this one die too, so be it.
                schedule.release(conn, [claim.held], seconds=self._seldom(claim))
            good.append(claim)
        return good

    def _seldom(self, claim: Claim) -> float:
        """Seconds until it is handed out again if it does not come back: up to an hour."""
        settings = self._rt.settings
        doubled = settings.lease * 2.0 ** min(claim.tries - settings.max_tries, 16)
        return max(settings.lease, min(DEADLY_PAUSE, doubled))

    def _hand_out(self, batches: Sequence[Sequence[Claim]]) -> None:
        for done, batch in enumerate(batches):
            try:
                self._broker.publish(batch[0].stage, batch)
            except Exception:
                left = [claim.held for rest in batches[done:] for claim in rest]
                with self._rt.engine.begin() as conn:
                    schedule.release(conn, left, seconds=2.0)
                raise

    def _batches(self, claims: Sequence[Claim]) -> list[list[Claim]]:
        """Return the claims of each message: one, but for those that share a list scan, and for
        submits where there are more than threads.
        """
        single: list[list[Claim]] = []
        shared: dict[Stage, list[Claim]] = {Stage.RESOLVE: [], Stage.SUBMIT: []}
        for claim in claims:
            # A generation that workers seem to crash on has a message of its own, so that no other
            # is delivered again with it.
            if claim.stage in shared and claim.tries < 2:
                shared[claim.stage].append(claim)
            else:
                single.append([claim])
        submits = shared[Stage.SUBMIT]
        size = min(SUBMITS_OF_MESSAGE, math.ceil(len(submits) / self._slots))
        return [
            *single,
            *_in_parts(shared[Stage.RESOLVE], RESOLVE_BATCH),
            *_in_parts(submits, max(1, size)),
        ]


def _in_parts(claims: Sequence[Claim], size: int) -> list[list[Claim]]:
    return [list(claims[i : i + size]) for i in range(0, len(claims), size)]


class _Session:
    """The database session that registers this worker and is notified of new work."""

    def __init__(self, conn: "psycopg.Connection[Any]") -> None:
        self._conn = conn

    def wait(self, seconds: float) -> None:
        """Wait that long, or less if something is enqueued."""
        for _ in self._conn.notifies(timeout=seconds, stop_after=1):
            pass

    def check(self) -> None:
        """Raise psycopg.Error if the session has ended."""
        self._conn.execute("SELECT 1")


@contextlib.contextmanager
def _session(rt: Runtime, name: str) -> Iterator[_Session]:
    """Register this worker, in a session that lives as long as it works."""
    url = rt.settings.database_url
    with psycopg.connect(
        direct_dsn(url),
        autocommit=True,
        connect_timeout=5,
        application_name="seedance-dispatcher",
        **_CLIENT_KEEPALIVES,
    ) as conn:
        for setting in _SERVER_KEEPALIVES:
            conn.execute(setting)
        conn.execute(f"LISTEN {schedule.CHANNEL}")
        rt.membership.id = workers.register(conn, name, locked=not pooled(url))
        try:
            yield _Session(conn)
        finally:
            rt.membership.id = None


_CLIENT_KEEPALIVES: dict[str, Any] = {
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
}
"""Detect a lost server within about ten seconds."""

_SERVER_KEEPALIVES = (
    "SET tcp_keepalives_idle = 5",
    "SET tcp_keepalives_interval = 2",
    "SET tcp_keepalives_count = 3",
)
"""Detect a lost worker host on the server's side, which releases the worker's lock."""
