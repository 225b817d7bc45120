"""A span for each request with its stages, in the caller's trace; nothing of it without traces."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from bootpig_rt.request import Timings
from bootpig_rt.server.guard.keys import Principal
from bootpig_rt.server.request_notes import begin_notes, note, note_timings
from bootpig_rt.server.tracing import Tracing, resource_of_service

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Route:
    path = "/v1/images/edits"


def spans(headers: Sequence[tuple[bytes, bytes]] = (), status: int = 200) -> list[ReadableSpan]:
    """What one request leaves, in the order in which its spans ended."""
    exporter = InMemorySpanExporter()
    tracing = Tracing(exporter)
    state = {"request_id": "req_1", "principal": Principal("lab", "user")}
    scope = {"method": "POST", "headers": list(headers), "state": state, "route": Route()}
    notes = begin_notes(scope)
    notes.began_at -= 1.0
    span = tracing.begin(notes)
    note(model="small", num_images=2, prompt="a secret dog", outcome=None)
    note_timings(Timings(queue_ms=100, encode_ms=50, reference_ms=200, denoise_ms=300, decode_ms=9))
    tracing.end(span, notes, status)
    tracing.close()
    found = list(exporter.get_finished_spans())
    assert notes.trace_id == f"{found[-1].context.trace_id:032x}"
    return found


def test_the_stages_of_a_request_are_its_children_end_to_end() -> None:
    *stages, request = spans()
    assert [one.name for one in stages] == ["encode", "queue", "reference", "denoise", "decode"]
    took_ms = [((one.end_time or 0) - (one.start_time or 0)) / 1e6 for one in stages]
    assert took_ms == [50, 100, 200, 300, 9]
    for one, following in itertools.pairwise(stages):
        assert one.end_time == following.start_time
        assert one.parent is not None
        assert one.parent.span_id == request.context.span_id
    assert request.start_time is not None
    assert stages[0].start_time is not None
    assert request.start_time < stages[0].start_time


def test_a_span_says_what_was_asked_and_by_whom_and_never_the_prompt() -> None:
    request = spans()[-1]
    assert request.name == "POST /v1/images/edits"
    assert request.kind is SpanKind.SERVER
    assert dict(request.attributes or {}) == {
        "http.request.method": "POST",
        "http.route": "/v1/images/edits",
        "http.response.status_code": 200,
        "bootpig.request_id": "req_1",
        "bootpig.tenant": "lab",
        "bootpig.model": "small",
        "bootpig.num_images": 2,
    }


def test_a_request_joins_the_trace_of_its_caller() -> None:
    request = spans([(b"traceparent", PARENT.encode()), (b"tracestate", b"a=1")])[-1]
    assert f"{request.context.trace_id:032x}" == PARENT.split("-")[1]
    assert request.parent is not None
    assert f"{request.parent.span_id:016x}" == PARENT.split("-")[2]


def test_a_header_that_is_no_trace_begins_a_new_one() -> None:
    request = spans([(b"traceparent", b"00-\xff\n-zz")])[-1]
    assert request.parent is None


def test_only_what_the_server_failed_at_is_an_error() -> None:
    assert spans(status=500)[-1].status.status_code is StatusCode.ERROR
    assert spans(status=404)[-1].status.status_code is StatusCode.UNSET


def test_the_environment_names_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    def name() -> object:
        return resource_of_service().attributes["service.name"]

    assert name() == "bootpig-rt"
    monkeypatch.setenv("OTEL_SERVICE_NAME", "pictures")
    assert name() == "pictures"


def test_spans_go_where_the_environment_says(collector: list[tuple[str, bytes]]) -> None:
    tracing = Tracing()
    notes = begin_notes({"method": "GET", "headers": [], "route": Route()})
    tracing.end(tracing.begin(notes), notes, 200)
    tracing.close()
    ((path, body),) = collector
    assert path == "/v1/traces"
    assert b"GET /v1/images/edits" in body


def test_a_service_without_traces_loads_no_sdk(root: Path) -> None:
    code = "import sys, bootpig_rt.server.observe; print('opentelemetry.sdk' in sys.modules)"
    environment = os.environ | {"PYTHONPATH": str(root), "PYTHONSAFEPATH": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    assert done.stdout == "False\n"
