"""Evaluates the PromQL of the alert rules on recorded samples: what of it they use, no more.

promql-parser reads it; here is what each part means. `rate`, `increase` and `delta` take the first
and last sample of their window and don't extrapolate: thresholds are to be passed by far.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import promql_parser
from prometheus_client.parser import text_string_to_metric_families

Labels = frozenset[tuple[str, str]]
Vector = dict[Labels, float]
STALE = 300.0
"""Seconds after which a series that is not told any more is gone."""


@dataclass
class Recording:
    """Samples of each series, in the order of their times (seconds)."""

    series: dict[Labels, list[tuple[float, float]]] = field(default_factory=dict)

    def scrape(self, at: float, body: bytes) -> None:
        """What a scrape got at that time."""
        for family in text_string_to_metric_families(body.decode()):
            for sample in family.samples:
                labels = frozenset({**sample.labels, "__name__": sample.name}.items())
                self.series.setdefault(labels, []).append((at, sample.value))


def evaluate(query: str, recorded: Recording, at: float) -> Vector | float:
    """The value of an expression at a time."""
    return _value(promql_parser.parse(query), recorded, at)


def holds(query: str, recorded: Recording, times: Sequence[float]) -> bool:
    """Whether an alert's expression has the same element at each of the times: then it fires."""
    elements = [set(_vector(evaluate(query, recorded, at))) for at in times]
    return bool(set.intersection(*elements))


def names(query: str) -> set[tuple[str, Labels]]:
    """The metrics that a query reads, and the labels that it chooses by."""
    found: set[tuple[str, Labels]] = set()

    def look(node: Any) -> None:
        if isinstance(node, promql_parser.VectorSelector):
            matchers = node.matchers.matchers
            found.add((node.name, frozenset((m.name, m.value) for m in matchers)))
        for part in _parts(node):
            look(part)

    look(promql_parser.parse(query))
    return found


def _parts(node: Any) -> list[Any]:
    match node:
        case promql_parser.BinaryExpr():
            return [node.lhs, node.rhs]
        case promql_parser.Call():
            return list(node.args)
        case promql_parser.AggregateExpr() | promql_parser.ParenExpr() | promql_parser.UnaryExpr():
            return [node.expr]
        case promql_parser.MatrixSelector():
            return [node.vector_selector]
        case _:
            return []


def _vector(value: Vector | float) -> Vector:
    assert isinstance(value, dict), "a rule's expression is a vector"
    return value


def _value(node: Any, recorded: Recording, at: float) -> Vector | float:
    match node:
        case promql_parser.NumberLiteral():
            return float(node.val)
        case promql_parser.ParenExpr():
            return _value(node.expr, recorded, at)
        case promql_parser.VectorSelector():
            return {
                labels: samples[-1][1]
                for labels, samples in _chosen(node, recorded, at, STALE).items()
            }
        case promql_parser.Call():
            return _call(node, recorded, at)
        case promql_parser.AggregateExpr():
            return _aggregate(node, _vector(_value(node.expr, recorded, at)))
        case promql_parser.BinaryExpr():
            return _binary(node, _value(node.lhs, recorded, at), _value(node.rhs, recorded, at))
    raise NotImplementedError(type(node))


def _chosen(
    node: Any, recorded: Recording, at: float, back: float
) -> dict[Labels, list[tuple[float, float]]]:
    found = {}
    for labels, samples in recorded.series.items():
        named = dict(labels)
        if named["__name__"] == node.name and all(
            _matches(m, named) for m in node.matchers.matchers
        ):
            within = [sample for sample in samples if at - back < sample[0] <= at]
            if within:
                found[labels] = within
    return found


def _matches(matcher: Any, labels: Mapping[str, str]) -> bool:
    value = labels.get(matcher.name, "")
    match str(matcher.op).removeprefix("MatchOp."):
        case "Equal":
            return value == matcher.value
        case "NotEqual":
            return value != matcher.value
        case "Re":
            return re.fullmatch(matcher.value, value) is not None
        case "NotRe":
            return re.fullmatch(matcher.value, value) is None
    raise NotImplementedError(matcher.op)


def _nameless(labels: Labels) -> Labels:
    return frozenset(label for label in labels if label[0] != "__name__")


def _call(node: Any, recorded: Recording, at: float) -> Vector | float:
    match node.func.name:
        case "time":
            return at
        case "absent":
            there = _vector(_value(node.args[0], recorded, at))
            return {} if there else {frozenset(): 1.0}
        case "rate" | "increase" | "delta" as name:
            window = node.args[0].range.total_seconds()
            samples = _chosen(node.args[0].vector_selector, recorded, at, window)
            over = window if name == "rate" else 1.0
            change = _difference if name == "delta" else _growth
            return {
                _nameless(labels): change([value for _, value in values]) / over
                for labels, values in samples.items()
                if len(values) > 1
            }
        case "max_over_time":
            window = node.args[0].range.total_seconds()
            samples = _chosen(node.args[0].vector_selector, recorded, at, window)
            return {
                _nameless(labels): max(value for _, value in values)
                for labels, values in samples.items()
            }
        case "histogram_quantile":
            buckets = _vector(_value(node.args[1], recorded, at))
            return _quantile(float(node.args[0].val), buckets)
    raise NotImplementedError(node.func.name)


def _difference(values: Sequence[float]) -> float:
    return values[-1] - values[0]


def _growth(values: Sequence[float]) -> float:
    """Of a counter: one that falls began anew."""
    grown = 0.0
    for before, after in pairwise(values):
        grown += after - before if after >= before else after
    return grown


def _quantile(q: float, buckets: Vector) -> Vector:
    groups: dict[Labels, list[tuple[float, float]]] = {}
    for labels, value in buckets.items():
        bound = float(dict(labels)["le"])
        rest = frozenset(label for label in labels if label[0] != "le")
        groups.setdefault(rest, []).append((bound, value))
    found = {}
    for rest, values in groups.items():
        values.sort()
        wanted = q * values[-1][1]
        if values[-1][1] == 0:
            continue
        before_bound, before = 0.0, 0.0
        for bound, count in values:
            if count >= wanted:
                if math.isinf(bound):
                    found[rest] = before_bound
                else:
                    share = (wanted - before) / (count - before) if count > before else 0.0
                    found[rest] = before_bound + (bound - before_bound) * share
                break
            before_bound, before = bound, count
    return found


def _aggregate(node: Any, vector: Vector) -> Vector:
    combine = {"sum": sum, "max": max, "min": min, "count": len}[str(node.op)]
    by = set() if node.modifier is None else set(node.modifier.labels)
    groups: dict[Labels, list[float]] = {}
    for labels, value in vector.items():
        groups.setdefault(frozenset(label for label in labels if label[0] in by), []).append(value)
    return {labels: float(combine(values)) for labels, values in groups.items()}


_OPERATIONS: Mapping[str, Callable[[float, float], float]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a / b if b else math.nan,
}
_COMPARISONS: Mapping[str, Callable[[float, float], bool]] = {
    ">": lambda a, b: a > b,
    "<": lambda a, b: a < b,
    "==": lambda a, b: a == b,
}


def _binary(node: Any, left: Vector | float, right: Vector | float) -> Vector | float:
    op = str(node.op)
    if isinstance(left, float) and isinstance(right, float):
        return _OPERATIONS[op](left, right)
    ignored = set() if node.modifier is None else _ignored(node.modifier)

    def key(labels: Labels) -> Labels:
        return frozenset(label for label in _nameless(labels) if label[0] not in ignored)

    if op in ("and", "or"):
        assert isinstance(left, dict)
        assert isinstance(right, dict)
        theirs = {key(labels) for labels in right}
        if op == "and":
            return {labels: value for labels, value in left.items() if key(labels) in theirs}
        mine = {key(labels) for labels in left}
        return left | {labels: v for labels, v in right.items() if key(labels) not in mine}
    pairs = _pairs(left, right, key)
    if op in _COMPARISONS:
        return {labels: a for labels, a, b in pairs if _COMPARISONS[op](a, b)}
    return {key(labels): _OPERATIONS[op](a, b) for labels, a, b in pairs}


def _pairs(
    left: Vector | float, right: Vector | float, key: Callable[[Labels], Labels]
) -> list[tuple[Labels, float, float]]:
    if isinstance(right, float):
        assert isinstance(left, dict)
        return [(labels, value, right) for labels, value in left.items()]
    if isinstance(left, float):
        return [(labels, left, value) for labels, value in right.items()]
    theirs = {key(labels): value for labels, value in right.items()}
    assert len(theirs) == len(right), "one to one"
    return [
        (labels, value, theirs[key(labels)])
        for labels, value in left.items()
        if key(labels) in theirs
    ]


def _ignored(modifier: Any) -> set[str]:
    matching = modifier.matching
    if matching is None:
        return set()
    assert "Exclude" in str(matching.type), "only ignoring is needed"
    return set(matching.labels)
