"""Turns figures into what Prometheus reads. Here are the names of all that is not a total."""

import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from itertools import product
from typing import get_args

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeHistogramMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from api_client import Outcome
from api_client.verdicts import Endpoint
from models.error_classes import ErrorClass
from models.flow_control.state import FlowState
from models.lifecycle import Event, Status
from models.metrics import definitions as d
from models.metrics.definitions import AGES, NO_ERROR, SUM, TOTALS, Total
from models.metrics.present import Present
from models.metrics.totals import Sample


def package_version() -> str:
    """The version that runs here."""
    try:
        return version("seedance-worker")
    except PackageNotFoundError:
        return "unknown"


class _Figures(Collector):
    """One reading, handed over as if it were collected."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        yield from self._families


def exposition(
    totals: Sequence[Sample],
    present: Present,
    *,
    expected_within: Mapping[str, float],
    seconds: float,
) -> bytes:
    """The text that a scrape gets; `seconds` is what the reading took.

    `expected_within` has the seconds in which each part of upkeep should succeed again.
    """
    registry = CollectorRegistry(auto_describe=False)
    families = [
        *_totals(totals),
        *_present(present),
        _expected_success(expected_within),
        *_self(seconds),
    ]
    registry.register(_Figures(families))
    return generate_latest(registry)


def _totals(samples: Sequence[Sample]) -> Iterator[Metric]:
    by_name: dict[str, dict[tuple[str, ...], dict[int, float]]] = {}
    for sample in samples:
        values = by_name.setdefault(sample.name, {}).setdefault(sample.labels, {})
        values[sample.bucket] = float(sample.value)
    whose = list(by_name.get(d.ACCEPTED.name, {}))
    for total in TOTALS.values():
        series = by_name.get(total.name, {})
        for labels in _expected(total, whose):
            series.setdefault(labels, {})
        yield _total(total, series)


_ENDS = (
    *((str(Status.COMPLETED), NO_ERROR), (str(Status.CANCELLED), NO_ERROR)),
    *((str(Status.EXPIRED), NO_ERROR), (str(Status.EXPIRED), str(ErrorClass.DEADLINE))),
    *((str(Status.FAILED), str(kind)) for kind in ErrorClass),
)
_REQUESTS = tuple(product(get_args(Endpoint), map(str, Outcome)))
_CONSTANT: Mapping[str, tuple[tuple[str, ...], ...]] = {
    d.TRANSITIONS.name: tuple((str(event),) for event in Event),
    d.REQUESTS.name: _REQUESTS,
    d.REQUEST_SECONDS.name: tuple((endpoint,) for endpoint in get_args(Endpoint)),
    d.NOTICES.name: tuple(product(("webhook", "task"), ("taken", "again", "dead"))),
    d.STORED.name: tuple(product(("video", "last_frame"), ("stored", "again", "lost"))),
}


def _expected(total: Total, whose: Sequence[tuple[str, ...]]) -> Iterable[tuple[str, ...]]:
    """Series that are told from 0 on: Prometheus sees no increase in one that begins at 5.

    `whose` are the models and tenants of which anything was accepted.
    """
    if total.name == d.FINISHED.name:
        return [(*end, *who) for end in _ENDS for who in whose]
    if total.name == d.SUBMITTED.name:
        return [(how, *who) for how in ("answered", "adopted") for who in whose]
    if total.name == d.CHARGED.name:
        return whose
    return _CONSTANT.get(total.name, ())


def _total(total: Total, series: Mapping[tuple[str, ...], Mapping[int, float]]) -> Metric:
    if not total.buckets:
        counter = CounterMetricFamily(total.name, total.help, labels=total.labels)
        for labels in sorted(series):
            counter.add_metric(labels, series[labels].get(SUM, 0.0))
        return counter
    histogram = HistogramMetricFamily(total.name, total.help, labels=total.labels)
    for labels in sorted(series):
        values = series[labels]
        counts = [values.get(i, 0.0) for i in range(len(total.buckets) + 1)]
        histogram.add_metric(labels, _buckets(total.buckets, counts), values.get(SUM, 0.0))
    return histogram


def _buckets(bounds: Sequence[float], counts: Sequence[float]) -> list[tuple[str, float]]:
    """Cumulative, as Prometheus wants them."""
    so_far = 0.0
    buckets = []
    for bound, count in zip([*bounds, float("inf")], counts, strict=True):
        so_far += count
        buckets.append(("+Inf" if bound == float("inf") else repr(bound), so_far))
    return buckets


def _gauge(
    name: str, help_: str, labels: Sequence[str], values: Mapping[tuple[str, ...], float]
) -> Metric:
    gauge = GaugeMetricFamily(name, help_, labels=labels)
    for key in sorted(values):
        gauge.add_metric(key, float(values[key]))
    return gauge


def _one(name: str, help_: str, value: float) -> Metric:
    return GaugeMetricFamily(name, help_, value=value)


def _present(p: Present) -> Iterator[Metric]:
    yield _gauge(
        "seedance_generations",
        "Generations that have not ended.",
        ("status", "tenant"),
        {key: float(count) for key, count in p.generations.items()},
    )
    yield _gauge(
        "seedance_waiting_oldest_seconds",
        "Age of the oldest generation that waits for a slot.",
        ("tenant",),
        {(tenant,): age for tenant, age in p.waiting_oldest.items()},
    )
    yield _one("seedance_due_oldest_seconds", "How late the most overdue step is.", p.due_oldest)
    yield _one("seedance_attention", "Generations that need an operator.", p.attention)
    yield _one(
        "seedance_attention_oldest_seconds",
        "How long the oldest of them has needed one.",
        p.attention_oldest,
    )
    ages = GaugeHistogramMetricFamily(
        "seedance_observation_age_seconds", "How long ago running tasks were last seen, now."
    )
    ages.add_metric([], _buckets(AGES, p.ages), p.ages_sum)
    yield ages
    yield _gauge(
        "seedance_breaker_open",
        "1 while a circuit breaker stops submission.",
        ("breaker",),
        {(breaker,): opened for breaker, opened in p.breakers.items()},
    )
    yield _gauge(
        "seedance_paused",
        "Pauses of submission by operators: of all, of single tenants.",
        ("of",),
        {(of,): count for of, count in p.paused.items()},
    )
    yield from _flow_control(p.flow)
    yield from _credits(p)
    yield _gauge(
        "seedance_stray_tasks",
        "Remote tasks of ours that no generation follows: second ones, possible ones.",
        ("kind",),
        {(kind,): count for kind, count in p.strays.items()},
    )
    yield CounterMetricFamily(
        "seedance_messages_rejected", "Messages that were set aside.", value=p.rejected
    )
    yield from _processes(p)
    yield from _side_work(p)


def _flow_control(flow: FlowState) -> Iterator[Metric]:
    yield _one(
        "seedance_outage",
        "1 while every submit fails and only probes are sent.",
        flow.outage_age is not None,
    )
    yield _one(
        "seedance_throttled_seconds",
        "For how long the provider still asks to send no request (Retry-After).",
        max(0.0, flow.resume_in),
    )
    if flow.rate is not None:
        yield _one(
            "seedance_request_rate_limit",
            "Requests per second that throttling left; only while less than the setting.",
            flow.rate.now,
        )
    if flow.concurrency is not None:
        yield _one(
            "seedance_concurrency_limit",
            "Tasks at work that the provider takes; only while less than the setting.",
            flow.concurrency.value,
        )


def _credits(p: Present) -> Iterator[Metric]:
    yield _gauge(
        "seedance_credits_reserved",
        "Credits set aside for what is under way.",
        ("model", "tenant"),
        {key: float(amount) for key, amount in p.reserved.items()},
    )
    yield _one(
        "seedance_credits_reserved_overall", "The same, of all.", float(sum(p.reserved.values()))
    )
    if p.balance is None:
        return
    yield _one(
        "seedance_credits_remaining", "Left on the account, as told.", float(p.balance.remain)
    )
    yield _one("seedance_credits_used", "Used on the account, as told.", float(p.balance.used))
    yield _one(
        "seedance_balance_timestamp_seconds", "When that was told.", p.balance.at.timestamp()
    )


def _processes(p: Present) -> Iterator[Metric]:
    yield _gauge(
        "seedance_last_success_timestamp_seconds",
        "When a task of upkeep last succeeded.",
        ("what",),
        {(name,): at.timestamp() for name, at in p.pulses.items()},
    )
    yield _one("seedance_dispatchers", "Dispatchers at work, one in each worker.", p.dispatchers)


def _expected_success(within: Mapping[str, float]) -> Metric:
    return _gauge(
        "seedance_success_expected_within_seconds",
        "Longer without a success something is wrong, as the settings here say.",
        ("what",),
        {(what,): seconds for what, seconds in within.items()},
    )


def _side_work(p: Present) -> Iterator[Metric]:
    yield _gauge(
        "seedance_notices",
        "Notices that are not delivered.",
        ("status", "target"),
        {
            (status, target): getattr(notices, status)
            for target, notices in p.notices.items()
            for status in ("pending", "dead")
        },
    )
    yield _gauge(
        "seedance_notices_oldest_seconds",
        "Age of the oldest pending notice.",
        ("target",),
        {(target,): notices.oldest_seconds for target, notices in p.notices.items()},
    )

    yield _gauge(
        "seedance_artifacts",
        "Results that the archive does not have: waiting, those of them in attention, lost.",
        ("state",),
        {
            ("waiting",): p.artifacts.waiting,
            ("attention",): p.artifacts.attention,
            ("lost",): p.artifacts.lost,
        },
    )
    yield _one(
        "seedance_artifacts_oldest_seconds",
        "Age of the oldest result that waits to be stored.",
        p.artifacts.oldest_seconds,
    )


def _self(seconds: float) -> Iterator[Metric]:
    yield _gauge(
        "seedance_build_info",
        "What answers here.",
        ("version", "python"),
        {(package_version(), platform.python_version()): 1},
    )
    yield _one("seedance_collect_seconds", "What reading these figures took.", seconds)
