"""Spans of a request: nested, as long as it took, without a word of it; and none where nobody asked."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from actors.scheduler import SchedulerLimits
from cluster.spec import wants_spans
from ingress.metrics import Stint, Took
from ingress.spans import otlp_processor, teller
from model.sampling import Sampling
from tests.shoals import engine_of, local_parts
from tests.unit.app_server import TEXT, app_server

WORK = {"queue_s": 0.5, "steps": 3, "experts_s": 0.25, "restarts": 0}
TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"


def told(*stints: Stint, end_s: float = 10.0, parent: str | None = None) -> Sequence[ReadableSpan]:
    exporter = InMemorySpanExporter()
    teller(SimpleSpanProcessor(exporter), "ingress-1")(
        Took(
            prompt_tokens=7,
            generated_tokens=4,
            finish="stop",
            start_s=0.0,
            end_s=end_s,
            stints=stints,
            parent=parent,
        )
    )
    return exporter.get_finished_spans()


def seconds(span: ReadableSpan, since: ReadableSpan) -> tuple[float, float]:
    """When it began and ended after the beginning of another."""
    start, end = ((at - since.start_time) / 1e9 for at in (span.start_time, span.end_time))
    return round(start, 6), round(end, 6)


def named(spans: Sequence[ReadableSpan], name: str) -> list[ReadableSpan]:
    return sorted((span for span in spans if span.name == name), key=lambda span: span.start_time)


def test_a_choice_is_its_time_at_an_actor_and_that_its_queue_prefill_and_steps() -> None:
    spans = told(Stint(actor_id="attention-0", start_s=1.0, first_s=4.0, work=WORK))
    [whole], [stint] = named(spans, "choice"), named(spans, "attention")
    assert seconds(stint, whole) == (1.0, 10.0)
    assert stint.parent.span_id == whole.context.span_id
    phases = {name: named(spans, name)[0] for name in ("queue", "prefill", "steps")}
    assert {span.parent.span_id for span in phases.values()} == {stint.context.span_id}
    assert [seconds(span, whole) for span in phases.values()] == [(1.0, 1.5), (1.5, 4.0), (4.0, 10.0)]
    assert dict(stint.attributes) == {
        "shoal.actor": "attention-0",
        "shoal.queue_s": 0.5,
        "shoal.steps": 3,
        "shoal.experts_s": 0.25,
        "shoal.restarts": 0,
    }
    assert dict(whole.attributes) == {
        "gen_ai.usage.input_tokens": 7,
        "gen_ai.usage.output_tokens": 4,
        "gen_ai.response.finish_reasons": ("stop",),
    }
    assert whole.resource.attributes["service.instance.id"] == "ingress-1"


def test_an_actor_that_was_lost_has_a_span_until_the_next_took_over() -> None:
    lost = Stint(actor_id="attention-0", start_s=0.0, first_s=2.0)
    spans = told(lost, Stint(actor_id="attention-1", start_s=5.0, first_s=6.0, work=WORK))
    [whole] = named(spans, "choice")
    assert [seconds(span, whole) for span in named(spans, "attention")] == [(0.0, 5.0), (5.0, 10.0)]
    assert [seconds(span, whole) for span in named(spans, "steps")] == [(2.0, 5.0), (6.0, 10.0)]
    assert [seconds(span, whole) for span in named(spans, "queue and prefill")] == [(0.0, 2.0)]


def test_a_choice_without_a_token_has_no_steps() -> None:
    spans = told(Stint(actor_id="attention-0", start_s=1.0))
    assert sorted(span.name for span in spans) == ["attention", "choice", "queue and prefill"]
    assert [span.name for span in told()] == ["choice"]


def test_a_queue_by_another_clock_ends_before_the_first_token() -> None:
    spans = told(Stint(actor_id="a", start_s=1.0, first_s=2.0, work={**WORK, "queue_s": 90.0}))
    [whole] = named(spans, "choice")
    assert seconds(named(spans, "queue")[0], whole) == (1.0, 2.0)


@pytest.mark.parametrize("parent", [None, "", "what", f"00-{'0' * 32}-{PARENT}-01"])
def test_a_choice_whose_client_names_no_trace_is_the_root_of_its_own(parent: str | None) -> None:
    [whole] = told(parent=parent)
    assert whole.parent is None


def test_a_choice_is_part_of_the_trace_that_its_client_names() -> None:
    [whole] = told(parent=f"00-{TRACE}-{PARENT}-01")
    assert f"{whole.context.trace_id:032x}" == TRACE
    assert f"{whole.parent.span_id:016x}" == PARENT


def test_its_times_are_those_of_the_wall() -> None:
    [whole] = told(end_s=3.0)
    assert abs(whole.end_time / 1e9 - (time.time() - time.monotonic() + 3.0)) < 60
    assert whole.end_time - whole.start_time == pytest.approx(3e9, rel=1e-3)


def test_a_request_over_http_is_told_with_every_actor_that_had_it(tmp_path: Path) -> None:
    with app_server(tmp_path) as served:
        exporter = InMemorySpanExporter()
        served.engine.metrics.on_end = teller(SimpleSpanProcessor(exporter), "ingress-1")
        for actor in served.actors:
            actor.drop_after = 4
        headers = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
        response = served.post("/v1/completions", TEXT, headers=headers)
        assert response.status_code == 200, response.text
        served.until(lambda: named(exporter.get_finished_spans(), "choice"))
        spans = exporter.get_finished_spans()
    [whole] = named(spans, "choice")
    assert f"{whole.context.trace_id:032x}" == TRACE
    actors = [span.attributes["shoal.actor"] for span in named(spans, "attention")]
    assert len(actors) > 1
    assert set(actors) == {"attention-0", "attention-1"}


def test_an_engine_tells_with_the_last_token_alone_what_it_did_for_a_sequence(tiny_v32: Path) -> None:
    engine = engine_of(local_parts(tiny_v32), SchedulerLimits(chunk_tokens=64))
    sampling = Sampling(max_tokens=3, temperature=0.0, ignore_eos=True)
    assert engine.submit("test", "a", list(range(16, 116)), [], sampling, now_s=5.0) is None
    told: list[Any] = []
    now_s = 7.0
    while engine.has_work:
        told += [event.work for event in engine.step(now_s).get("test", [])]
        now_s += 1.0
    assert told[:-1] == [None, None]
    assert told[-1] == {"queue_s": 2.0, "steps": 4, "experts_s": told[-1]["experts_s"], "restarts": 0}
    assert told[-1]["experts_s"] >= 0.0


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
