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

import psycopg
from sqlalchemy import Connection

from models import credit, gates, schedule, submission, transitions
from models.credit import Purse, Senior
from models.database import alone, direct_dsn
from models.gates import GateName
from models.metrics import pulses
from models.observing import turns
from models.schedule import Claim, Stage, Waits
from worker.crash_points import reached
from worker.runtime import Runtime
from worker.side_work import SideClaim, SideWork

log = logging.getLogger(__name__)

RELAX_EVERY = 5.0
"""Seconds between two looks whether a limit or a gate may be relaxed."""

FIRST_BALANCE = 5.0
"""Seconds that work waits, at most, for the first answer to what the account holds."""

TELL_EVERY = 2.0
"""Seconds between two looks at who waits for credits."""

FORGET_GATES = 600.0
"""Seconds after which an open gate forgets how often it was closed."""

DEADLY_PAUSE = 3600.0
"""Seconds, at most, between two tries of what workers die of and what can't be failed."""

FULL_PAUSE = 0.05
"""Seconds until it is looked again whether messages were taken and there is room for more."""

_ADMISSIONS = 4
"""How often in a tick more is let in, where what was let in leaves room by sharing messages."""

RESOLVE_BATCH = 50
"""Generations in doubt that share one pair of readings of the task list."""


@dataclass(frozen=True)
class Broker:
    """What the dispatcher needs of Celery."""

    publish: Callable[[Stage, Sequence[Claim]], None]
    """Publish one message for the claims: one for a step, several for RESOLVE and SUBMIT."""
    probe: Callable[[], None]
    """Publish a request to probe the gates."""
    depth: Callable[[], int]
    """How many stage messages wait to be taken."""
    observe: Callable[[int], None]
    """Publish a request to read the task list, under this lease of the observer's."""
    publish_side: Callable[[SideWork, SideClaim], None]
    """Publish one message for side work."""
    side_depth: Callable[[], int]
    """How many messages of side work wait to be taken."""


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
        self._patience = FULL_PAUSE
        self._crowded = False
        self._purse: Purse | None = None
        self._senior: Senior | None = None
        self._short = False
        self._told = self._asked = self._pulsed = -math.inf
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
                with _listening(self._rt) as wait:
                    self._loop(wait)
            except Exception as error:  # noqa: BLE001  (the schedule must outlive everything)
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

    def _loop(self, wait: Callable[[float], None]) -> None:
        while not self._stop.is_set():
            self._beat()
            busy = self.tick()
            self._tell_pulse()
            self._failures = 0
            if self._stop.is_set():
                return
            if busy:
                # Twice as long each time that nothing was taken: work may be slow.
                self._stop.wait(self._patience)
                self._patience = min(self._rt.settings.tick, self._patience * 2)
            else:
                self._patience = FULL_PAUSE
                wait(self._pause())

    def _tell_pulse(self) -> None:
        """For `/metrics`: this dispatcher has just got through a tick."""
        if time.monotonic() - self._pulsed < pulses.TELL_EVERY:
            return
        self._pulsed = time.monotonic()
        with self._rt.engine.begin() as conn:
            pulses.tell(conn, pulses.DISPATCHER, self._name)

    def _pause(self) -> float:
        """Until the next row is due, but at most a tick: another process may bring it forward."""
        tick = self._rt.settings.tick
        with alone(self._rt.engine) as conn:
            due = schedule.next_due_in(conn, within=tick, by_list=self._by_list)
        return tick if due is None else min(tick, max(0.02, due))

    def tick(self) -> bool:
        """Hand out what is due, then admit. True if more may wait, for which there was no room."""
        self._side()
        depth = self._broker.depth()
        room = 2 * self._slots - depth
        self._probe()
        self._observe()
        if room <= 0:
            return True
        settings = self._rt.settings
        with alone(self._rt.engine) as conn:
            due = schedule.claim_due(
                conn, room, lease_seconds=settings.lease, by_list=self._by_list
            )
        claims = self._without_poison(due)
        # What is let in is not to wait for threads that have enough to submit for now.
        submits = self._rt.pace.room() - depth
        self._crowded = False
        try:
            for admitted in self._admit(min(room - self._messages(claims), submits)):
                claims += admitted
        finally:
            # Whatever goes wrong there: what is due and claimed would wait for its lease's end.
            if claims:
                self._patience = FULL_PAUSE
                reached("dispatch.after_claim")
            batches = self._batches(claims, room)
            self._hand_out(batches)
        self._look_after_credits()
        return self._crowded or len(batches) >= min(room, submits)

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

    def _admit(self, room: float) -> Iterator[list[Claim]]:
        """Let in what makes about so many messages; each transaction's by itself."""
        if room <= 0:
            return
        self._relax()
        with alone(self._rt.engine) as conn:
            waits = schedule.waits(conn)
        if not waits.accepted:
            return
        if waits.undecided:
            with self._rt.engine.begin() as conn:
                submission.look_again(conn)
        admitted: list[Claim] = []
        wanted = math.ceil(room)
        for _ in range(_ADMISSIONS):
            more = self._let_in(wanted, waits)
            yield more
            admitted += more
            used = self._messages(admitted)
            if len(more) < wanted or used >= room:
                break
            # What comes next is taken to be of the same kinds.
            wanted = math.ceil((room - used) * len(admitted) / used)

    def _let_in(self, most: int, waits: Waits) -> list[Claim]:
        limit = self._rt.settings.max_in_flight
        with self._rt.engine.begin() as conn:
            # With a gate closed for everything nobody is let in, and deadlines pass all the same.
            admitted = schedule.admit(
                conn,
                most,
                max_in_flight=min(limit, waits.limit or limit),
                lease_seconds=self._rt.settings.lease,
                ceiling=gates.sending(conn).ceiling if waits.held else None,
                open_purse=self._open_purse,
            )
        self._crowded = self._crowded or admitted is None
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
        """Now and then: raise a learned limit, and open the backoff gate for good."""
        if time.monotonic() - self._relaxed < RELAX_EVERY:
            return
        self._relaxed = time.monotonic()
        with self._rt.engine.begin() as conn:
            schedule.relax(conn, self._rt.settings.max_in_flight)
            opened = gates.forget(conn, after=FORGET_GATES)
            reopening = gates.reopening(conn)
            if reopening is not None and reopening.done and gates.open_(conn, GateName.BACKOFF):
                opened.append(GateName.BACKOFF)
        for name in opened:
            log.warning("gate %s is open again", name)

    def _probe(self) -> None:
        """Once in a tick: have closed gates probed whose time has come."""
        if time.monotonic() - self._probed < self._rt.settings.tick:
            return
        self._probed = time.monotonic()
        with self._rt.engine.begin() as conn:
            closed = gates.take_probe(conn, every=self._rt.settings.probe_every)
        if closed:
            log.info("probing the gates %s", ", ".join(closed))
            self._broker.probe()

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
                schedule.release(conn, [claim], seconds=self._seldom(claim))
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
                left = [claim for rest in batches[done:] for claim in rest]
                with self._rt.engine.begin() as conn:
                    schedule.release(conn, left, seconds=2.0)
                raise

    def _messages(self, claims: Sequence[Claim]) -> float:
        """How many messages these need where they share them with more of their kind."""
        return sum(1 / self._together(claim) for claim in claims)

    def _together(self, claim: Claim) -> int:
        """How many of its kind may be in one message with it."""
        # What workers seem to die of goes by itself: those beside it would die as often.
        if claim.tries >= 2:
            return 1
        return {Stage.RESOLVE: RESOLVE_BATCH, Stage.SUBMIT: self._rt.pace.most}.get(claim.stage, 1)

    def _batches(self, claims: Sequence[Claim], room: int) -> list[list[Claim]]:
        """A message each, but for those that are cheaper together."""
        alone: list[list[Claim]] = []
        together: dict[Stage, list[Claim]] = {Stage.RESOLVE: [], Stage.SUBMIT: []}
        for claim in claims:
            if self._together(claim) > 1:
                together[claim.stage].append(claim)
            else:
                alone.append([claim])
        # Over all threads and all the room, where that is quicker; then several to each.
        pace, submits = self._rt.pace, together[Stage.SUBMIT]
        spread = math.ceil(len(submits) / max(1, min(self._slots, room)))
        return [
            *alone,
            *_in_parts(together[Stage.RESOLVE], RESOLVE_BATCH),
            *_in_parts(submits, max(pace.least, min(pace.most, spread))),
        ]


def _in_parts(claims: Sequence[Claim], size: int) -> list[list[Claim]]:
    return [list(claims[i : i + size]) for i in range(0, len(claims), size)]


@contextlib.contextmanager
def _listening(rt: Runtime) -> Iterator[Callable[[float], None]]:
    """A function that waits up to so many seconds, less if something is enqueued."""
    with psycopg.connect(
        direct_dsn(rt.settings.database_url),
        autocommit=True,
        connect_timeout=5,
        application_name="seedance-dispatcher",
    ) as conn:
        conn.execute(f"LISTEN {schedule.CHANNEL}")

        def wait(seconds: float) -> None:
            for _ in conn.notifies(timeout=seconds, stop_after=1):
                pass

        yield wait
