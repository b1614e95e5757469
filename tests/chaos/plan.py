"""What a chaos run does, drawn from one seed: the same seed and size give the same plan, always.

Pure: no clock, no I/O. Times are seconds since the start of the run.
"""

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, Literal, get_args

from simulator.config import ConcurrencyMode
from simulator.directives import parse
from worker.crash_points import CrashPoint

Pool = Literal["threads", "prefork"]

LONGEST_ANSWER = 1.5
"""SEEDANCE_HTTP_TIMEOUT of the run, in seconds."""

TIMES: dict[str, str] = {
    # B, K, L: K is longer than every delay that is ordered here (2 s), with room for a busy
    # machine; L is longer than the ordered lag of the list. Else the promise would not apply.
    "SEEDANCE_SEND_BUDGET": "2",
    "SEEDANCE_LATE_CREATION": "5",
    "SEEDANCE_LIST_LAG": "1",
    "SEEDANCE_SETTLE_MARGIN": "1",
    "SEEDANCE_LEASE": "4",
    "SEEDANCE_HTTP_TIMEOUT": str(LONGEST_ANSWER),
    "SEEDANCE_HTTP_CONNECT_TIMEOUT": "1",
    "SEEDANCE_POLL_MIN": "0.5",
    "SEEDANCE_POLL_MAX": "2",
    # Followed by the task list as soon as it pays at all, and by GETs in between.
    "SEEDANCE_OBSERVE_FROM": "3",
    "SEEDANCE_TICK": "0.3",
    "SEEDANCE_PROBE_EVERY": "1",
    "SEEDANCE_RECONCILE_EVERY": "4",
    "SEEDANCE_BALANCE_EVERY": "5",
    "SEEDANCE_RATE_LIMIT": "200/second",
    "SEEDANCE_MAX_IN_FLIGHT": "60",
    # Ends by mere repetition are no part of a random run: tests of their own show them.
    "SEEDANCE_MAX_ATTEMPTS": "50",
    "SEEDANCE_MAX_TRIES": "50",
    # Nobody else uses the run's key, so that equal fixed seeds can be decided.
    "SEEDANCE_KEY_EXCLUSIVE": "true",
}
LATE = 2.0
"""Seconds of a delay beyond the client's timeout, and well under K."""
LAG = 0.8
"""Seconds of lag of the list, under L."""

CALM = 5.0
"""Seconds of the first stage of a run: no faults. Its generations give the calm time that
`tests.chaos.liveness` compares with."""
CALM_ORDERS = 20
PARTIAL = 18.0
"""Seconds of the second stage: partial faults only. Longer than the time in which orders arrive
(`ARRIVALS`) plus the longest wait that `tests.chaos.liveness` allows, so that a delay is seen."""
PARTIAL_ORDERS = 20
"""Minimum number of orders in the second stage, besides the poisoned ones."""
ARRIVALS = 5.0
"""Seconds in which the orders of the second stage arrive."""
OPENING = CALM + PARTIAL
"""Seconds before the first strike and the first fault that hits the whole account."""
POISONED_SHARE = 0.02
"""Share of orders that the provider answers SERVICE_BUSY until the faults end."""

Stage = Literal["calm", "partial", "all"]
"""No faults; partial faults only; every fault and strike of the plan."""


@dataclass(frozen=True)
class Order:
    """One request of a producer. Its prompt says its number, by which its tasks are told."""

    number: int
    at: float
    request: dict[str, Any]
    tenant: str
    priority: int
    deadline: float | None = None
    """Seconds after it was enqueued."""
    cancel_after: float | None = None
    by_celery: bool = False
    """Sent through the broker as `seedance.generate`; else stored as a row."""
    notify: Literal["end", "change"] | None = None
    """When its producer's web server is told."""
    poisoned: bool = False
    """Whether the provider answers each of its submits with SERVICE_BUSY until the faults end."""

    @property
    def healthy(self) -> bool:
        """Whether nothing in the order itself delays, refuses or ends its generation.

        No poison, deadline, cancellation or upload, no fixed seed (a generation may queue behind an
        equal one), and no wish for a fault in the prompt.
        """
        words = parse(item.get("text", "") for item in self.request["content"]).words
        ends_early = self.deadline is not None or self.cancel_after is not None
        waits = self.seed is not None or bool(self.references)
        return not (self.poisoned or ends_early or waits) and words.keys() <= {"seconds"}

    @property
    def tag(self) -> str:
        """The word in the prompt that no other request has."""
        return tag(self.number)

    @property
    def seed(self) -> int | None:
        """The producer's own seed."""
        return self.request.get("seed")

    @property
    def references(self) -> list[str]:
        """File names of its references."""
        items = [item.get("image_url", "") for item in self.request["content"]]
        return [item.removeprefix("path:") for item in items if item.startswith("path:")]


def tag(number: int) -> str:
    return f"<{number:04d}>"


@dataclass(frozen=True)
class Act:
    """Something that goes wrong, or ceases to. `kind` names a method of `strikes.Strikes`."""

    at: float
    kind: str
    args: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """A whole run."""

    seed: int
    n: int
    """Generations that were asked for. The orders of the first two stages come on top."""
    orders: tuple[Order, ...]
    acts: tuple[Act, ...]
    faults_end: float
    pools: tuple[Pool, ...]
    """One worker each."""
    beats: int
    clock_shift: float
    """Seconds that the first worker's clock is ahead."""
    serializable: bool
    """Whether the second worker's transactions are SERIALIZABLE."""
    debug: bool
    """Whether the workers log at DEBUG."""
    callbacks: bool
    """Whether the provider is asked to call back, at a gateway."""
    provider: dict[str, Any]
    """Settings of the simulator for the whole run."""

    def summary(self) -> str:
        """In a few lines."""
        kinds = Counter(act.kind for act in self.acts)
        counts = ", ".join(f"{kind} {count}" for kind, count in sorted(kinds.items()))
        return (
            f"seed {self.seed}, {len(self.orders)} generations in {self.faults_end:.0f} s;"
            f" workers {'+'.join(self.pools)}, {self.beats} beats,"
            f" clock of worker 0 {self.clock_shift:+.0f} s,"
            f" worker 1 {'serializable' if self.serializable else 'read committed'},"
            f" logs at {'DEBUG' if self.debug else 'INFO'},"
            f" {'with' if self.callbacks else 'without'} callbacks; provider {self.provider}\n"
            f"  {self._stages()}\n"
            f"  {counts}"
        )

    def _stages(self) -> str:
        calm = sum(order.at < CALM for order in self.orders)
        partial = sum(CALM <= order.at < OPENING for order in self.orders)
        poisoned = [order for order in self.orders if order.poisoned]
        at_once = sum(order.at < OPENING for order in poisoned)
        faults = [
            f"{act.args['probability']:.0%} of submits {act.args.get('code', act.args['kind'])}"
            for act in self.acts
            if act.kind == "provider_fault" and act.at < OPENING and "match" not in act.args
        ]
        return (
            f"{CALM:g} s without faults, {calm} generations; until {OPENING:g} s partial faults"
            f" only, {partial} generations: {', '.join(faults)}, {at_once} poisoned requests;"
            f" then everything, {len(poisoned) - at_once} more poisoned requests"
        )


FLEETS: tuple[tuple[Pool, ...], ...] = (
    ("threads", "threads", "threads"),
    ("threads", "threads", "prefork"),
)


def draw(seed: int, n: int, *, seconds: float | None = None) -> Plan:
    """Return the plan of a seed for `n` generations, and those of the first two stages.

    `seconds` is the length of the third stage, the one with every fault and strike.
    """
    rng = random.Random(seed)
    length = seconds or min(90.0, 20.0 + n * 0.22)
    skew = rng.choice([0.0, 0.0, 95.0, -140.0])
    callbacks = seed % 5 != 4
    orders, acts = _orders(rng, n, length * 0.75), _acts(rng, length)
    # Each later addition has its own dice, so that a seed keeps its other orders and acts.
    if callbacks:
        acts += _callback_acts(random.Random(f"callbacks {seed}"), length)
    dice = random.Random(f"partial {seed}")
    acts += _partial_spells(dice, length)
    orders = _poisoned(dice, tuple(replace(o, at=round(o.at + OPENING, 2)) for o in orders))
    orders += _opening_orders(dice, n)
    acts = _opening_acts(dice, seed) + tuple(_shifted(act, OPENING) for act in acts)
    acts += _poison_acts(orders, OPENING + length)
    return Plan(
        seed,
        n,
        orders,
        tuple(sorted(acts, key=lambda act: act.at)),
        OPENING + length,
        # The traits take turns, so that few seeds show them all.
        pools=FLEETS[seed % 2],
        beats=(1, 0, 2, 1)[seed % 4],
        clock_shift=rng.choice([0.0, 240.0, -240.0]) if seed % 3 else 300.0,
        serializable=seed % 2 == 0,
        debug=seed % 3 == 1,
        callbacks=callbacks,
        provider={
            "list_items": rng.choice(["object", "string", "mixed"]),
            "seed_echo": rng.choice(["used", "used", "string"]),
            "error_style": rng.choice(["mapped", "mapped", "ok200"]),
            "truncate_stamps": rng.random() < 0.5,
            "date_skew": skew,
            "stamp_skew": skew,
            "cancel_mode": rng.choice(["works", "late", "completes"]),
        },
    )


# --- what is asked for -------------------------------------------------------------------------


SUBMIT_WISHES = (
    "lost",
    "drop_before",
    f"delay_before:{LATE:g}",
    f"delay_after:{LATE:g}",
    "null_result",
    "no_task_id",
    "cut_json",
    "garbage",
    "unknown_status",
)
"""What befalls the first submit of some requests, whenever that comes. Nothing that closes a gate
for all: that belongs to spells, which end."""
GET_WISHES = ("not_found*2", "backwards*2", "unknown_status", "cut_json", "null_result", "lost")
"""What befalls the first looks at some tasks."""


def _orders(rng: random.Random, n: int, spread: float) -> tuple[Order, ...]:
    shared = max(2, n // 12)
    groups = max(1, n // 25)
    return tuple(_order(rng, number, spread, shared, groups) for number in range(n))


def _order(rng: random.Random, number: int, spread: float, shared: int, groups: int) -> Order:
    wishes = {"seconds": str(rng.randint(60, 400))}
    if rng.random() < 0.35:
        wishes["submit"] = rng.choice(SUBMIT_WISHES)
    if rng.random() < 0.2:
        wishes["get"] = rng.choice(GET_WISHES)
    kind = rng.choices(
        ["plain", "reference", "equal", "refused", "fails", "broker", "deadline"],
        [34, 24, 10, 7, 9, 10, 6],
    )[0]
    request: dict[str, Any] = {
        "model": rng.choice(["seedance-2.0", "seedance-2.0-fast"]),
        "resolution": rng.choice(["480p", "480p", "720p", "1080p"]),
        "duration": rng.randint(4, 9),
    }
    content: list[dict[str, str]] = []
    if kind == "reference":
        for _ in range(rng.randint(1, 2)):
            # The same bytes under a name of its own, so that storage shows whose upload it was.
            name = f"b{rng.randrange(shared)}-r{number}.jpg"
            if all(item["image_url"] != f"path:{name}" for item in content):
                content.append({"type": "image_url", "image_url": f"path:{name}"})
    elif kind == "equal":
        # Equal in all that the task list shows: only the prompt differs.
        request = {
            "model": "seedance-2.0-fast",
            "resolution": "480p",
            "duration": 4,
            "seed": 1_000 + rng.randrange(groups),
        }
    elif kind == "refused":
        wishes["refuse"] = rng.choice(["CONTENT_MODERATION_FAILED", "COPYRIGHT_VIOLATION"])
    elif kind == "fails":
        wishes["fail"] = rng.choice(["VIDEO_DOWNLOAD_FAILED", "TASK_SUBMIT_FAILED"])
    said = ", ".join(f"{name}={value}" for name, value in wishes.items())
    content.append({"type": "text", "text": f"chaos {tag(number)} [sim: {said}]"})
    request["content"] = content
    cancelled = kind in ("plain", "reference", "equal") and rng.random() < 0.18
    return Order(
        number,
        at=round(rng.uniform(0, spread), 2),
        request=request,
        tenant=rng.choice(["default", "acme", "acme", "studio"]),
        priority=rng.choice([0, 0, 0, 5, -3]),
        deadline=round(rng.uniform(0.2, 6.0), 2) if kind == "deadline" else None,
        cancel_after=round(rng.uniform(0.0, 8.0), 2) if cancelled else None,
        by_celery=kind == "broker",
        # By its number, so that seeds keep the plans that they had.
        notify=(None, "change", "end", "change")[number % 4],
    )


def _poisoned(dice: random.Random, orders: tuple[Order, ...]) -> tuple[Order, ...]:
    """Poison some of the healthy orders of the third stage."""
    healthy = [order.number for order in orders if order.healthy]
    count = min(len(healthy), max(1, round(POISONED_SHARE * len(orders))))
    chosen = set(dice.sample(healthy, count))
    return tuple(replace(order, poisoned=order.number in chosen) for order in orders)


def _opening_orders(dice: random.Random, n: int) -> tuple[Order, ...]:
    """Draw the orders of the first two stages. All are healthy but the poisoned ones."""
    times = [(dice.uniform(0.0, CALM / 2), False) for _ in range(CALM_ORDERS)]
    partial = max(PARTIAL_ORDERS, n // 4)
    poisoned = max(2, round(POISONED_SHARE * partial))
    # Poisoned requests come first, so that they are refused while the others arrive.
    times += [(CALM + dice.uniform(0.0, 0.5), True) for _ in range(poisoned)]
    times += [(CALM + dice.uniform(0.2, ARRIVALS), False) for _ in range(partial)]
    return tuple(
        Order(
            number,
            at=round(at, 2),
            request={
                "model": dice.choice(["seedance-2.0", "seedance-2.0-fast"]),
                "resolution": dice.choice(["480p", "720p"]),
                "duration": dice.randint(4, 9),
                "content": [
                    {
                        "type": "text",
                        "text": f"chaos {tag(number)} [sim: seconds={dice.randint(60, 400)}]",
                    }
                ],
            },
            tenant=dice.choice(["default", "acme", "acme", "studio"]),
            priority=0,
            by_celery=dice.random() < 0.2,
            notify=(None, "change", "end", "change")[number % 4],
            poisoned=poison,
        )
        for number, (at, poison) in enumerate(times, start=n)
    )


# --- what goes wrong ---------------------------------------------------------------------------

Fault = tuple[str, str, dict[str, Any]]
"""Endpoint, kind, parameters, as the simulator takes them."""

AFTER_SUBMIT: tuple[Fault, ...] = (
    ("submit", "lost", {}),
    ("submit", "delay_before", {"seconds": LATE}),
    ("submit", "delay_after", {"seconds": LATE}),
    ("submit", "error_after", {"code": "INTERNAL_ERROR"}),
    ("submit", "error_after", {"code": "TASK_SUBMIT_FAILED"}),
    ("submit", "error_after", {"code": "CREDIT_DEDUCT_FAILED"}),
    ("submit", "bare_after", {"status": 502}),
    ("submit", "null_result", {}),
    ("submit", "no_task_id", {}),
    ("submit", "cut_json", {}),
    ("submit", "cut_json", {"connection": True}),
    ("submit", "garbage", {}),
    ("submit", "concurrency", {"mode": "created"}),
)
"""The provider made the task, and its answer doesn't say so."""

OTHER: tuple[Fault, ...] = (
    ("submit", "drop_before", {}),
    ("submit", "error", {"code": "INTERNAL_ERROR"}),
    ("submit", "error", {"code": "TASK_SUBMIT_FAILED"}),
    ("submit", "bare", {"status": 502}),
    ("submit", "concurrency", {"mode": "created_with_id"}),
    ("submit", "concurrency", {"mode": "refused"}),
    ("submit", "unknown_status", {}),
    ("submit", "unknown_fields", {}),
    ("submit", "int_code", {}),
    ("submit", "rate_limited", {"retry_after": "1"}),
    ("submit", "service_busy", {}),
    ("*", "service_busy", {"retry_after": "1"}),
    ("*", "bare", {"status": 502}),
    ("get", "not_found", {"younger_than": 2.5}),
    ("get", "backwards", {}),
    ("get", "unknown_status", {}),
    ("get", "lost", {}),
    ("get", "cut_json", {}),
    ("get", "null_result", {}),
    ("get", "delay_after", {"seconds": LATE}),
    ("list", "lost", {}),
    ("list", "empty_list", {}),
    ("list", "backwards", {}),
    ("list", "unknown_status", {}),
    ("list", "cut_json", {"connection": True}),
    ("presign", "error", {"code": "FILE_UPLOAD_FAILED"}),
    ("presign", "lost", {}),
    ("put", "lost", {}),
    ("put", "error", {"code": "SlowDown", "status": 503}),
    ("put", "delay_before", {"seconds": 0.7}),
    ("cancel", "lost", {}),
    ("cancel", "error", {"code": "INTERNAL_ERROR"}),
    ("balance", "lost", {}),
    ("cdn", "drop_before", {}),
    ("cdn", "cut_json", {}),
    ("cdn", "error", {"code": "AccessDenied", "status": 403}),
    ("cdn", "bare", {"status": 503}),
    ("cdn", "delay_after", {"seconds": LATE}),
)

CALLBACKS: tuple[Fault, ...] = (
    ("callback", "drop_before", {}),
    ("callback", "duplicate", {}),
    ("callback", "delay_before", {"seconds": LATE}),
)
"""Lost, doubled, late."""
CALLBACK_STRIKES = ("gateway_dies", "callbacks_forged", "callbacks_again")

HABITS: tuple[dict[str, Any], ...] = (
    {"list_order": "random"},
    {"list_order": "updated_desc"},
    {"list_order": "created_asc"},
    {"list_lag": LAG},
    {"drift_insert": 0.5, "drift_delete": 0.3, "drift_update": 0.5},
    {"get_lag": 1.0},
)
"""Ways of the provider for a while."""

STRIKES: dict[str, int] = {
    "kill_worker": 7,
    "kill_all_workers": 2,
    "kill_child": 1,
    "stop_worker": 3,
    "pause_worker": 2,
    "broker_dies": 2,
    "broker_loses_all": 1,
    "flush_broker": 1,
    "broker_freezes": 2,
    "messages_twice": 3,
    "old_messages": 2,
    "database_dies": 2,
    "cut_connections": 2,
    "statements_time_out": 2,
    "commits_fail": 2,
    "key_refused": 1,
    "credits_run_out": 1,
    "receiver_dies": 2,
    "receiver_fails": 2,
}
"""How often each is drawn; all of them once where there is time."""


def _acts(rng: random.Random, length: float) -> tuple[Act, ...]:
    acts = [
        *_spells_of(rng, length, _submit_faults(rng)),
        *_spells_of(rng, length, _other_faults(rng)),
        *_habits(rng, length),
        *_strikes(rng, length),
        *_crash_points(rng, length),
    ]
    return tuple(sorted(acts, key=lambda act: act.at))


def _spell(rng: random.Random, length: float, lasting: tuple[float, float]) -> tuple[float, float]:
    start = rng.uniform(0.5, max(1.0, length - lasting[0] - 1))
    return round(start, 2), round(min(length - 0.5, start + rng.uniform(*lasting)), 2)


def _spells_of(rng: random.Random, length: float, faults: list[Act]) -> list[Act]:
    acts = []
    for fault in faults:
        start, end = _spell(rng, length, (3.0, 8.0))
        name = f"{fault.args['endpoint']} {fault.args['kind']} at {start}"
        acts.append(Act(start, "provider_fault", {**fault.args, "name": name}))
        acts.append(Act(end, "provider_mends", {"name": name}))
    return acts


def _fault(fault: Fault, probability: float) -> Act:
    endpoint, kind, params = fault
    args = {"endpoint": endpoint, "kind": kind, "probability": probability, **params}
    return Act(0.0, "provider_fault", args)


def _submit_faults(rng: random.Random) -> list[Act]:
    return [_fault(fault, rng.choice([0.3, 0.6])) for fault in AFTER_SUBMIT]


def _other_faults(rng: random.Random) -> list[Act]:
    # Faults of every call open breakers, behind which nothing else could happen.
    return [_fault(f, 0.15 if f[0] == "*" else rng.choice([0.2, 0.5])) for f in OTHER]


def _habits(rng: random.Random, length: float) -> list[Act]:
    acts = []
    for habit in HABITS:
        # Short: readings that fail for long rightly ask for an operator.
        start, end = _spell(rng, length, (3.0, 7.0))
        acts.append(Act(start, "provider_habit", {"settings": habit}))
        acts.append(Act(end, "provider_habit_ends", {"names": sorted(habit)}))
    return acts


def _callback_acts(rng: random.Random, length: float) -> tuple[Act, ...]:
    acts = _spells_of(rng, length, [_fault(fault, 0.5) for fault in CALLBACKS])
    for kind in CALLBACK_STRIKES * max(2, int(length / 20)):
        at = round(rng.uniform(3.0, max(4.0, length - 1)), 2)
        acts.append(Act(at, kind, {} if kind == "gateway_dies" else {"dice": rng.randrange(10**6)}))
    return tuple(acts)


REFUSED_SHARES = (0.05, 0.1, 0.25, 0.5)
"""Shares of submits that are answered SERVICE_BUSY: definite refusals."""
AMBIGUOUS: tuple[Fault, ...] = (
    ("submit", "error", {"code": "TASK_SUBMIT_FAILED"}),
    ("submit", "bare", {"status": 500}),
)
AMBIGUOUS_SHARES = (0.05, 0.1, 0.2)
RATES = (15.0, 30.0, 8.0)
"""Requests per second that the provider allows the account for a while."""
RATE_BURST = 2
"""Requests that it then allows at once: with more, a run of this size would hardly be throttled."""
CONCURRENCY_MODES: tuple[ConcurrencyMode, ...] = ("created_with_id", "created", "refused")
CONCURRENCY_LIMITS = (3, 10, 5)
"""Tasks at a time that the provider allows, one after the other; then there is no limit."""


def _shifted(act: Act, seconds: float) -> Act:
    return replace(act, at=round(act.at + seconds, 2))


def _busy(share: float) -> Act:
    return _fault(("submit", "service_busy", {}), share)


def _opening_acts(dice: random.Random, seed: int) -> tuple[Act, ...]:
    """The first two stages: no faults, then partial faults only."""
    faults = [
        # The shares take turns, so that four seeds show them all.
        _busy(REFUSED_SHARES[seed % len(REFUSED_SHARES)]),
        _fault(dice.choice(AMBIGUOUS), dice.choice(AMBIGUOUS_SHARES)),
    ]
    acts = [
        Act(0.0, "stage", {"name": "calm"}),
        Act(CALM, "stage", {"name": "partial"}),
        Act(OPENING, "stage", {"name": "all"}),
    ]
    for fault in faults:
        name = f"{fault.args['endpoint']} {fault.args['kind']} in the second stage"
        acts.append(Act(CALM, "provider_fault", {**fault.args, "name": name}))
        acts.append(Act(OPENING, "provider_mends", {"name": name}))
    return tuple(acts)


def _poison_acts(orders: tuple[Order, ...], faults_end: float) -> tuple[Act, ...]:
    """A fault for each poisoned order, from before its first submit until the faults end."""
    acts = []
    for order in orders:
        if order.poisoned:
            name = f"poisoned {order.tag}"
            fault = {"endpoint": "submit", "kind": "service_busy", "match": order.tag}
            # Before any other fault: the simulator applies the first one that matches.
            acts.append(Act(CALM - 0.1, "provider_fault", {**fault, "name": name}))
            acts.append(Act(faults_end - 0.5, "provider_mends", {"name": name}))
    return tuple(acts)


def _partial_spells(dice: random.Random, length: float) -> tuple[Act, ...]:
    """Partial faults, throttling and concurrency limits of the third stage."""
    faults = [_busy(share) for share in REFUSED_SHARES]
    faults += [_fault(fault, dice.choice(AMBIGUOUS_SHARES)) for fault in AMBIGUOUS]
    acts = _spells_of(dice, length, faults)
    acts += _throttling(dice, length) + _concurrency_limits(dice, length)
    return tuple(acts)


def _throttling(dice: random.Random, length: float) -> list[Act]:
    """Each rate limit once, in its own third of the stage; with and without Retry-After."""
    rates, answers = list(RATES), ["1", None, dice.choice(["1", None])]
    dice.shuffle(rates)
    dice.shuffle(answers)
    third, acts = (length - 1) / 3, []
    for place, (rate, retry_after) in enumerate(zip(rates, answers, strict=True)):
        start = 0.5 + (place + dice.uniform(0.0, 0.1)) * third
        end = start + dice.uniform(0.5, 0.85) * min(third, 15.0)
        settings = {"rate_limit": rate, "rate_burst": RATE_BURST, "retry_after": retry_after}
        acts.append(Act(round(start, 2), "provider_habit", {"settings": settings}))
        acts.append(Act(round(end, 2), "provider_habit_ends", {"names": sorted(settings)}))
    return acts


def _concurrency_limits(dice: random.Random, length: float) -> list[Act]:
    """A series of limits in each mode, in its own third of the stage."""
    modes = list(CONCURRENCY_MODES)
    dice.shuffle(modes)
    third, acts = (length - 1) / 3, []
    for place, mode in enumerate(modes):
        at = 0.5 + (place + dice.uniform(0.0, 0.1)) * third
        for limit in CONCURRENCY_LIMITS:
            settings = {"max_concurrent": limit, "concurrency_mode": mode}
            acts.append(Act(round(at, 2), "provider_habit", {"settings": settings}))
            at += dice.uniform(0.15, 0.29) * min(third, 20.0)
        names = ["concurrency_mode", "max_concurrent"]
        acts.append(Act(round(at, 2), "provider_habit_ends", {"names": names}))
    return acts


def _strikes(rng: random.Random, length: float) -> list[Act]:
    kinds = list(STRIKES)
    rng.shuffle(kinds)
    wanted = max(6, int(length / 3.0))
    kinds += rng.choices(list(STRIKES), list(STRIKES.values()), k=max(0, wanted - len(kinds)))
    acts = []
    for place, kind in enumerate(kinds[:wanted]):
        at = round(1.0 + (place + rng.random()) * (length - 3) / wanted, 2)
        acts.append(Act(at, kind, _details[kind](rng) if kind in _details else {}))
    return acts


_details: dict[str, Callable[[random.Random], dict[str, Any]]] = {
    "kill_worker": lambda rng: {"which": rng.randrange(3)},
    "kill_child": lambda rng: {"which": rng.randrange(100)},
    "stop_worker": lambda rng: {"which": rng.randrange(3)},
    # Shorter than what is left of the settle time: longer, between check and write, is the one
    # thing that the promise leaves out.
    "pause_worker": lambda rng: {"which": rng.randrange(3), "seconds": rng.uniform(0.5, 1.5)},
    "broker_freezes": lambda rng: {"seconds": rng.uniform(2.0, 7.0)},
    "messages_twice": lambda rng: {"seconds": rng.uniform(4.0, 10.0)},
    "statements_time_out": lambda rng: {"seconds": rng.uniform(2.0, 5.0), "share": 0.2},
    "commits_fail": lambda rng: {"seconds": rng.uniform(2.0, 5.0), "share": 0.2},
    "key_refused": lambda rng: {"seconds": rng.uniform(1.5, 4.0)},
    "credits_run_out": lambda rng: {"seconds": rng.uniform(1.5, 4.0)},
    "receiver_dies": lambda rng: {"seconds": rng.uniform(2.0, 6.0)},
    "receiver_fails": lambda rng: {
        "seconds": rng.uniform(2.0, 6.0),
        "status": rng.choice([404, 429, 500, 503]),
    },
}


def _crash_points(rng: random.Random, length: float) -> list[Act]:
    points: list[str] = list(get_args(CrashPoint))
    rng.shuffle(points)
    wanted = min(len(points), max(3, int(length / 4)))
    return [
        Act(
            round(1.0 + (place + rng.random()) * (length - 6) / wanted, 2),
            "crash_at",
            {"point": point, "which": rng.randrange(3)},
        )
        for place, point in enumerate(points[:wanted])
    ]


def deadline_of(order: Order) -> timedelta | None:
    return None if order.deadline is None else timedelta(seconds=order.deadline)
