"""Tracing: a span for each request with its stages as children, through OpenTelemetry.

Where spans go the variables `OTEL_*` say, as for any program with OpenTelemetry. The package is
needed only when traces are asked for: `pip install "bootpig-rt[otel]"`. Prompts are in no span.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from typing import TYPE_CHECKING

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace import SpanKind, Status, StatusCode, format_trace_id, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from bootpig_rt import __version__
from bootpig_rt.server.logs import PRIVATE
from bootpig_rt.server.request_notes import RequestNotes

if TYPE_CHECKING:
    from opentelemetry.trace import Span

logger = logging.getLogger(__name__)

CLOSE_S = 2.0
"""How long the end of a service waits for the spans that have not been sent."""

STAGES = ("encode", "queue", "text", "reference", "denoise", "decode")
"""In the order in which a request goes through them."""

_PASSED_ON = ("traceparent", "tracestate")


class Tracing:
    """Makes the spans of requests.

    Args:
        exporter: Takes them, in batches, on a thread; by default they go over HTTP to
            `OTEL_EXPORTER_OTLP_ENDPOINT`.
    """

    def __init__(self, exporter: SpanExporter | None = None) -> None:
        self._exporter = OTLPSpanExporter() if exporter is None else exporter
        self._provider = TracerProvider(resource=resource_of_service(), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(self._exporter))
        self._tracer = self._provider.get_tracer("bootpig_rt.server", __version__)
        self._propagator = TraceContextTextMapPropagator()

    def begin(self, notes: RequestNotes) -> Span:
        """The span of a request, in the trace of its caller if its headers name one (W3C)."""
        headers = {
            name.decode("latin-1"): value.decode("latin-1")
            for name, value in notes.scope["headers"]
        }
        carrier = {name: headers[name] for name in _PASSED_ON if name in headers}
        span = self._tracer.start_span(
            str(notes.scope["method"]),
            context=self._propagator.extract(carrier),
            kind=SpanKind.SERVER,
            start_time=_unix_ns(notes.began_at),
        )
        notes.trace_id = format_trace_id(span.get_span_context().trace_id)
        return span

    def end(self, span: Span, notes: RequestNotes, status: int) -> None:
        """The request has ended: its stages become children, laid end to end.

        A stage takes the time that `Timings` has for it, and the last one ends when the pictures
        were there; what lies between a request's steps is in none of them.
        """
        method = str(notes.scope["method"])
        if notes.route is not None:
            span.update_name(f"{method} {notes.route}")
            span.set_attribute("http.route", notes.route)
        span.set_attribute("http.request.method", method)
        span.set_attribute("http.response.status_code", status)
        for name, value in {"request_id": notes.request_id, "tenant": notes.tenant}.items():
            if value is not None:
                span.set_attribute(f"bootpig.{name}", value)
        for name, field in notes.fields.items():
            if field is not None and name not in PRIVATE:
                span.set_attribute(f"bootpig.{name}", field)
        if status >= 500:
            span.set_status(Status(StatusCode.ERROR))
        if notes.timings is not None and span.is_recording():
            self._stages(span, notes)
        span.end()

    def close(self) -> None:
        """Send what has not been sent, as far as it is taken within `CLOSE_S`."""
        sending = threading.Thread(target=self._provider.shutdown, daemon=True)
        sending.start()
        sending.join(CLOSE_S)
        if sending.is_alive():
            self._exporter.shutdown()  # by itself it would go on trying for ten seconds and more
            sending.join(CLOSE_S)
            logger.warning("the last spans were not sent within %g s, and are lost", CLOSE_S)

    def _stages(self, span: Span, notes: RequestNotes) -> None:
        assert notes.timings is not None
        parent = set_span_in_context(span)
        first = _unix_ns(notes.began_at)
        at = max(first, _unix_ns(notes.drawn_at) - round(1e6 * notes.timings.total_ms))
        for stage in STAGES:
            took_ns = round(1e6 * getattr(notes.timings, f"{stage}_ms"))
            if took_ns > 0:
                child = self._tracer.start_span(stage, context=parent, start_time=at)
                at += took_ns
                child.end(at)


def resource_of_service() -> Resource:
    """What the spans are of: `OTEL_RESOURCE_ATTRIBUTES`, `OTEL_SERVICE_NAME`, and our version."""
    attributes = {"service.version": __version__}
    if "OTEL_SERVICE_NAME" not in os.environ:
        attributes["service.name"] = "bootpig-rt"
    return Resource.create(attributes)


def _unix_ns(at: float) -> int:
    """Unix time in nanoseconds of a moment by `time.perf_counter`."""
    return time.time_ns() - round(1e9 * (time.perf_counter() - at))
