"""A request as OpenTelemetry spans: the whole, and what each attention actor did of it.

Made when a choice has ended, from times that are taken anyway, and only where an endpoint is configured.
Knows nothing of what is asked or answered: no text, no ids of tokens.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from ingress.metrics import Stint, Took

SERVICE = "shoal-ingress"
REMEDY = "OTEL_EXPORTER_OTLP_ENDPOINT is set: pip install opentelemetry-exporter-otlp-proto-http, or unset it"


def otlp_processor() -> SpanProcessor:
    """Sends to the endpoint that OpenTelemetry's own variables name. Raises RuntimeError without exporter."""
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ImportError:
        raise RuntimeError(REMEDY) from None
    processor: SpanProcessor = BatchSpanProcessor(OTLPSpanExporter())
    return processor


def teller(processor: SpanProcessor, identity: str) -> Callable[[Took], None]:
    """What tells a choice that has ended. identity: of this ingress."""
    resource = Resource.create({"service.name": SERVICE, "service.instance.id": identity})
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(processor)
    tracer = provider.get_tracer("shoal")
    return lambda took: _tell(tracer, took)


@dataclass(frozen=True, slots=True)
class _Part:
    """A stretch of time by the monotonic clock, and what it is made of."""

    name: str
    start_s: float
    end_s: float
    attributes: dict[str, Any]
    parts: tuple[_Part, ...] = ()


def _tell(tracer: Any, took: Took) -> None:
    told = {
        "gen_ai.usage.input_tokens": took.prompt_tokens,
        "gen_ai.usage.output_tokens": took.generated_tokens,
        "gen_ai.response.finish_reasons": [took.finish],
    }
    whole = _Part("choice", took.start_s, took.end_s, told, tuple(_stints(took)))
    # A header that is no traceparent yields an empty context: the choice is the root of its trace.
    parent = TraceContextTextMapPropagator().extract({"traceparent": took.parent or ""}, Context())
    _start(tracer, whole, parent, time.time() - time.monotonic())


def _start(tracer: Any, part: _Part, parent: Context, to_epoch_s: float) -> None:
    def at_ns(at_s: float) -> int:
        return int((at_s + to_epoch_s) * 1e9)

    span = tracer.start_span(
        part.name, context=parent, start_time=at_ns(part.start_s), attributes=part.attributes
    )
    for inner in part.parts:
        _start(tracer, inner, set_span_in_context(span), to_epoch_s)
    span.end(at_ns(part.end_s))


def _stints(took: Took) -> Iterator[_Part]:
    """Each until the next begins: an actor that is lost says nothing of its end."""
    starts_s = [stint.start_s for stint in took.stints]
    for stint, (start_s, end_s) in zip(took.stints, pairwise([*starts_s, took.end_s]), strict=True):
        work = {f"shoal.{name}": value for name, value in (stint.work or {}).items()}
        told = {"shoal.actor": stint.actor_id, **work}
        yield _Part("attention", start_s, end_s, told, tuple(_phases(stint, end_s)))


def _phases(stint: Stint, end_s: float) -> Iterator[_Part]:
    """Only who has ended it knows how long it waited, and by another clock: a length, not a time."""
    first_s = end_s if stint.first_s is None else stint.first_s
    begun_s = stint.start_s
    if stint.work is not None:
        begun_s = min(begun_s + stint.work["queue_s"], first_s)
        yield _Part("queue", stint.start_s, begun_s, {})
    yield _Part("prefill" if stint.work is not None else "queue and prefill", begun_s, first_s, {})
    if stint.first_s is not None:
        yield _Part("steps", first_s, end_s, {})
