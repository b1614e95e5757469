"""Traces: one picture of enqueuing, stages and provider calls, by links; by the real SDK."""

import uuid
from collections.abc import Iterator

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode
from sqlalchemy import select

import simulator
from models.base import table_of
from models.schedule import Stage
from models.tables import Generation
from tests.conftest import MakeRuntime
from tests.integration.conftest import Steps, text_request
from worker import tracing
from worker.stages import accept


class Traced:
    """What was exported, and the tracer of a producer's own."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.producer = self.provider.get_tracer("shop")

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.exporter.get_finished_spans() if span.name == name]


@pytest.fixture
def traced() -> Iterator[Traced]:
    made = Traced()
    tracing.use(made.provider)
    yield made
    tracing.use(None)
    made.provider.shutdown()


class TracedSteps(Steps):
    """Steps as Celery's signals frame them."""

    def run(self, claim) -> None:
        tracing.stage_begins(f"seedance.{claim.stage}", f"{claim.id}.{claim.stage}.{claim.lease}")
        try:
            super().run(claim)
        except Exception as error:
            tracing.stage_failed(error)
            raise
        finally:
            tracing.stage_ends(tracing.take_error())


def stored(steps: Steps, generation_id: uuid.UUID) -> str | None:
    g = table_of(Generation).c
    with steps.rt.engine.connect() as conn:
        return conn.execute(select(g.trace).where(g.id == generation_id)).scalar_one()


def test_each_stage_links_to_what_enqueued_it_and_has_its_requests_as_children(
    traced: Traced, make_runtime: MakeRuntime, sim: simulator.Simulator
) -> None:
    steps = TracedSteps(make_runtime())
    with traced.producer.start_as_current_span("checkout") as checkout:
        generation_id = steps.enqueue(text_request("a cat that nobody may see"))
        here = checkout.get_span_context()
    sim.fault("get", "not_found", times=1)
    steps.until_ended(generation_id)

    [submit] = traced.named("seedance.submit")
    polls = traced.named("seedance.poll")
    assert len(polls) >= 2
    for span in (submit, *polls):
        assert [link.context.trace_id for link in span.links] == [here.trace_id]
        assert [link.context.span_id for link in span.links] == [here.span_id]
        assert span.context.trace_id != here.trace_id, "a trace of its own"
        assert span.attributes["seedance.generation"] == str(generation_id)
    [post] = traced.named("provider submit")
    assert post.parent is not None
    assert post.parent.span_id == submit.context.span_id
    assert post.attributes["seedance.outcome"] == "ok"
    assert 0 < post.end_time - post.start_time < 60e9
    gets = traced.named("provider get")
    assert {get.parent.span_id for get in gets} <= {poll.context.span_id for poll in polls}
    assert [get.status.status_code for get in gets].count(StatusCode.ERROR) == 1
    everything = "".join(span.to_json() for span in traced.exporter.get_finished_spans())
    for secret in ("nobody may see", sim.api_key, "token=", "http://"):
        assert secret not in everything


def test_a_batch_links_to_all_that_it_resolves(
    traced: Traced, make_runtime: MakeRuntime, sim: simulator.Simulator
) -> None:
    steps = TracedSteps(make_runtime())
    sim.fault("submit", "drop_after", times=1)
    with traced.producer.start_as_current_span("checkout") as checkout:
        generation_id = steps.enqueue()
        here = checkout.get_span_context()
    steps.until_ended(generation_id)
    resolves = traced.named(f"seedance.{Stage.RESOLVE}")
    assert resolves
    assert {link.context.span_id for span in resolves for link in span.links} == {here.span_id}
    [post] = traced.named("provider submit")
    assert post.attributes["seedance.outcome"] == "lost"


def test_a_message_that_carries_a_trace_is_linked_to_it(
    traced: Traced, make_runtime: MakeRuntime
) -> None:
    rt = make_runtime()
    with traced.producer.start_as_current_span("elsewhere") as elsewhere:
        parent = tracing.current()
    generation_id = uuid.uuid4()
    tracing.stage_begins("seedance.generate", str(generation_id), parent)
    accept.run(rt, str(generation_id), [], {"request": text_request()})
    tracing.stage_ends()
    [span] = traced.named("seedance.generate")
    assert [link.context.span_id for link in span.links] == [elsewhere.get_span_context().span_id]
    here = f"{span.context.trace_id:032x}-{span.context.span_id:016x}"
    assert here in (stored(Steps(rt), generation_id) or "")


def test_what_goes_wrong_is_told_without_its_secrets(
    traced: Traced, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEEDANCE_API_KEY", "sk-very-secret")
    tracing.stage_begins("seedance.poll", "t")
    tracing.stage_failed(ValueError("sk-very-secret at https://h/p?token=geheim"))
    tracing.stage_ends(tracing.take_error())
    tracing.stage_ends()  # there is none any more: nothing happens
    [span] = traced.named("seedance.poll")
    assert span.status.status_code is StatusCode.ERROR
    assert "sk-very-secret" not in span.to_json()
    assert "geheim" not in span.to_json()
    assert tracing.take_error() is None


def test_without_tracing_nothing_is_stored_nor_asked(steps: Steps) -> None:
    assert not tracing.active()
    tracing.stage_begins("seedance.poll", "t")
    generation_id = steps.enqueue()
    tracing.stage_ends()
    assert stored(steps, generation_id) is None


def test_a_trace_that_is_none_links_nothing(traced: Traced) -> None:
    tracing.stage_begins("seedance.generate", "t", "00-not-a-trace")
    tracing.stage_ends()
    [span] = traced.named("seedance.generate")
    assert span.links == ()
