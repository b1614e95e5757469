"""OpenTelemetry, where it is wanted: enqueuing, stages and provider calls as one picture.

A generation lives for minutes, in many processes and with long waits, so its stages are not
children of the request that enqueued it: each is a trace of its own, whose span is linked to the
enqueuing one. That one's context (W3C `traceparent`) is stored with the generation. Requests to
the provider are children of their stage.

Without SEEDANCE_TRACING nothing here runs and nothing is imported. The SDK is set up by its own
OTEL_… variables.
"""

import sys
import threading
import time
import uuid
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, select

from api_client import RequestSeen
from models.base import table_of
from models.tables import Generation
from worker import redaction

if TYPE_CHECKING:
    from opentelemetry.trace import Link, Span, Tracer, TracerProvider

g = table_of(Generation).c

EXTRA = "tracing needs opentelemetry-sdk: pip install 'seedance-worker[otel]'"

_OPEN = threading.local()
"""The stage that this thread is in: its span, and the token of its context."""

_tracers: list["Tracer"] = []


class TracingError(Exception):
    """Tracing is asked for and can't be had."""


def start(process: str) -> None:
    """Trace from here on, to where OTEL_EXPORTER_OTLP_… says. Raises TracingError."""
    if _tracers:
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        raise TracingError(EXTRA) from None
    resource = Resource.create({"service.name": "seedance-worker", "seedance.process": process})
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    use(provider)


def use(provider: "TracerProvider | None") -> None:
    """Trace with this provider; None: no more."""
    _tracers[:] = [] if provider is None else [provider.get_tracer("seedance")]


def active() -> bool:
    """Whether this process traces."""
    return bool(_tracers)


def current() -> str | None:
    """The `traceparent` of where we are; None outside any trace.

    A producer needs no setting for this: where its process has never imported OpenTelemetry there
    is nothing to be found, and that is all the cost.
    """
    trace = sys.modules.get("opentelemetry.trace")
    if trace is None or not hasattr(trace, "get_current_span"):
        return None
    context = trace.get_current_span().get_span_context()
    if not context.is_valid:
        return None
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags):02x}"


def _link(traceparent: str) -> "Link | None":
    from opentelemetry.trace import Link, get_current_span
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    found = TraceContextTextMapPropagator().extract({"traceparent": traceparent})
    context = get_current_span(found).get_span_context()
    return Link(context) if context.is_valid else None


def stage_begins(name: str, task_id: str, traceparent: str | None = None) -> None:
    """A span for a Celery task; `traceparent` is what its message carries, if anything."""
    if not _tracers:
        return
    from opentelemetry import context, trace

    link = _link(traceparent) if traceparent else None
    span = _tracers[0].start_span(
        name,
        # A thread of the pool may still be in a trace of somebody else's.
        context=context.Context(),
        kind=trace.SpanKind.CONSUMER,
        links=[link] if link else [],
        attributes={"seedance.task": task_id},
    )
    token = context.attach(trace.set_span_in_context(span, context.Context()))
    _OPEN.stage = (span, token)


def stage_ends(error: BaseException | None = None) -> None:
    """The end of this thread's stage, with what went wrong, its secrets cut."""
    stage = getattr(_OPEN, "stage", None)
    if stage is None:
        return
    from opentelemetry import context
    from opentelemetry.trace import Status, StatusCode

    _OPEN.stage = None
    span, token = stage
    if error is not None:
        said = redaction.redact(str(error))[:500]
        span.add_event(
            "exception",
            {"exception.type": type(error).__name__, "exception.message": said},
        )
        span.set_status(Status(StatusCode.ERROR, type(error).__name__))
    span.end()
    context.detach(token)


def stage_failed(error: BaseException) -> None:
    """What a task raised; told at its end."""
    _OPEN.error = error


def take_error() -> BaseException | None:
    """What the task of this thread raised, once."""
    error = getattr(_OPEN, "error", None)
    _OPEN.error = None
    return error


def works_on(conn: Connection, ids: Sequence[uuid.UUID]) -> None:
    """Link this thread's stage to what enqueued these generations; costs a query where we trace."""
    stage = getattr(_OPEN, "stage", None)
    if stage is None:
        return
    span: Span = stage[0]
    if len(ids) == 1:
        span.set_attribute("seedance.generation", str(ids[0]))
    rows = conn.execute(select(g.trace).where(g.id.in_(ids), g.trace.is_not(None)))
    for traceparent in rows.scalars():
        link = _link(traceparent)
        if link is not None:
            span.add_link(link.context)


def request(seen: RequestSeen) -> None:
    """A request to the provider that has just ended: a child of the stage. No address, no body."""
    if not _tracers:
        return
    from opentelemetry.trace import SpanKind, Status, StatusCode

    end = time.time_ns()
    attributes: dict[str, Any] = {"seedance.outcome": str(seen.outcome)}
    if seen.http_status is not None:
        attributes["http.response.status_code"] = seen.http_status
    if seen.code:
        attributes["seedance.code"] = seen.code
    span = _tracers[0].start_span(
        f"provider {seen.endpoint}",
        kind=SpanKind.CLIENT,
        start_time=end - int(seen.seconds * 1e9),
        attributes=attributes,
    )
    if seen.outcome != "ok":
        span.set_status(Status(StatusCode.ERROR, str(seen.outcome)))
    span.end(end_time=end)
