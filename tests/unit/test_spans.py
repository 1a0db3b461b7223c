"""Spans of a request: nested, as long as it took, without a word of it; and none where nobody asked."""

from __future__ import annotations

import sys

import pytest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from cluster.spec import wants_spans
from ingress.metrics import RequestMetrics, Took
from ingress.spans import otlp_processor, teller


def told(metrics: RequestMetrics, *, num_tokens: int, finish: str | None) -> InMemorySpanExporter:
    exporter = InMemorySpanExporter()
    metrics.on_end = teller(SimpleSpanProcessor(exporter), "ingress-1")
    watch = metrics.watch(7)
    watch.delivered(num_tokens)
    watch.delivered(num_tokens)
    watch.end(finish)
    return exporter


def test_a_choice_is_its_way_to_the_first_token_and_its_steps() -> None:
    spans = {
        span.name: span for span in told(RequestMetrics(), num_tokens=2, finish="stop").get_finished_spans()
    }
    whole, first, steps = (spans[name] for name in ("choice", "queue and prefill", "steps"))
    assert {span.parent.span_id for span in (first, steps)} == {whole.context.span_id}
    assert whole.start_time == first.start_time <= first.end_time == steps.start_time
    assert steps.end_time == whole.end_time >= steps.start_time
    assert dict(whole.attributes) == {
        "gen_ai.usage.input_tokens": 7,
        "gen_ai.usage.output_tokens": 4,
        "gen_ai.response.finish_reasons": ("stop",),
    }
    assert whole.resource.attributes["service.instance.id"] == "ingress-1"


def test_a_choice_without_a_token_has_no_steps() -> None:
    spans = told(RequestMetrics(), num_tokens=0, finish=None).get_finished_spans()
    assert sorted(span.name for span in spans) == ["choice", "queue and prefill"]
    [whole] = [span for span in spans if span.name == "choice"]
    assert whole.attributes["gen_ai.response.finish_reasons"] == ("cut",)


def test_its_times_are_those_of_the_wall() -> None:
    import time

    exporter = InMemorySpanExporter()
    tell, now_s = teller(SimpleSpanProcessor(exporter), "i"), time.monotonic()
    tell(
        Took(
            prompt_tokens=1,
            generated_tokens=1,
            finish="stop",
            start_s=now_s - 3,
            first_s=now_s - 2,
            end_s=now_s,
        )
    )
    [whole] = [span for span in exporter.get_finished_spans() if span.name == "choice"]
    assert abs(whole.end_time / 1e9 - time.time()) < 60
    assert whole.end_time - whole.start_time == pytest.approx(3e9, rel=1e-3)


def test_nothing_is_sent_unless_an_endpoint_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    assert not wants_spans()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318")
    assert wants_spans()


def test_without_the_exporter_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(RuntimeError, match="pip install"):
        otlp_processor()
