"""What Sentry and OpenTelemetry would send to their servers is written to files instead."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sentry_sdk
from opentelemetry import trace
from opentelemetry.instrumentation.celery import CeleryInstrumentor
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from sentry_sdk.envelope import Envelope
from sentry_sdk.transport import Transport

from .place import Place


def install(place: Place) -> None:
    """Start both as their documentation says."""

    class ToFile(Transport):
        def capture_envelope(self, envelope: Envelope) -> None:
            for item in envelope.items:
                event = item.get_event()
                if event is not None:
                    place.note("sentry", as_noted(event))

    class Spans(SpanExporter):
        def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
            for span in spans:
                place.note("spans", as_span(span))
            return SpanExportResult.SUCCESS

    sentry_sdk.init(dsn="https://key@127.0.0.1/1", transport=ToFile, traces_sample_rate=1.0)
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(Spans()))
    trace.set_tracer_provider(provider)
    CeleryInstrumentor().instrument()


def as_noted(event: Any) -> dict[str, Any]:
    """An error that Sentry captured."""
    exceptions = (event.get("exception") or {}).get("values") or [{}]
    return {
        "error": exceptions[-1].get("type"),
        "logged": event.get("logger"),
        "task": event.get("transaction"),
        "id": (event.get("tags") or {}).get("celery_task_id"),
        "job": ((event.get("extra") or {}).get("celery-job") or {}).get("task_name"),
        "handled": (exceptions[-1].get("mechanism") or {}).get("handled"),
    }


def as_span(span: ReadableSpan) -> dict[str, Any]:
    """A span that has ended."""
    context = span.get_span_context()
    assert context is not None
    return {
        "name": span.name,
        "kind": span.kind.name,
        "trace": context.trace_id,
        "span": context.span_id,
        "parent": span.parent.span_id if span.parent else None,
        "status": span.status.status_code.name,
        "id": (span.attributes or {}).get("messaging.message.id"),
        "state": (span.attributes or {}).get("celery.state"),
    }
