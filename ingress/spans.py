"""A request as OpenTelemetry spans: one for the whole, one until its first token, one for its steps.

Made when a choice has ended, from times that are taken anyway, and only where an endpoint is configured.
Knows nothing of what is asked or answered: no text, no ids of tokens.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import set_span_in_context

from ingress.metrics import Took

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


def _tell(tracer: Any, took: Took) -> None:
    to_epoch_s = time.time() - time.monotonic()

    def at_ns(at_s: float) -> int:
        return int((at_s + to_epoch_s) * 1e9)

    told = {
        "gen_ai.usage.input_tokens": took.prompt_tokens,
        "gen_ai.usage.output_tokens": took.generated_tokens,
        "gen_ai.response.finish_reasons": [took.finish],
    }
    whole = tracer.start_span("choice", start_time=at_ns(took.start_s), attributes=told)
    context = set_span_in_context(whole)
    first_s = took.end_s if took.first_s is None else took.first_s
    parts = [("queue and prefill", took.start_s, first_s)]
    if took.first_s is not None:
        parts.append(("steps", first_s, took.end_s))
    for name, start_s, end_s in parts:
        tracer.start_span(name, context=context, start_time=at_ns(start_s)).end(at_ns(end_s))
    whole.end(at_ns(took.end_s))
