"""Metrics: what a service counts, for Prometheus. A label has few values, whatever callers send.

A label is a model, a route or a word of a list here; anything else is counted as `other`. What the
engines and stores know of themselves is asked for when somebody scrapes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)

from bootpig_rt import __version__
from bootpig_rt.engine.events import Launch
from bootpig_rt.request import Timings
from bootpig_rt.server.model_states import ModelState, ModelStates

CONTENT_TYPE = CONTENT_TYPE_LATEST
"""Of what `Metrics.render` returns."""

OTHER = "other"

OUTCOMES = (
    "succeeded",
    "failed",
    "cancelled",
    "deadline_exceeded",
    "out_of_memory",
    "numerical_error",
    "flagged",
    "refused",
)
"""How a picture may end."""

REASONS = (
    "bad_host",
    "bad_origin",
    "body_timeout",
    "body_too_large",
    "cancelled",
    "content_policy",
    "credentials_unavailable",
    "deadline_exceeded",
    "draining",
    "duplicate_request",
    "engine_lost",
    "forbidden",
    "internal_error",
    "invalid_api_key",
    "invalid_form",
    "invalid_image",
    "invalid_json",
    "invalid_prompt",
    "invalid_request",
    "invalid_subject_file",
    "invalid_value",
    "job_not_found",
    "method_not_allowed",
    "missing_field",
    "model_not_found",
    "not_found",
    "not_ready",
    "numerical_error",
    "out_of_memory",
    "queue_full",
    "quota_exceeded",
    "reload_failed",
    "safety_unavailable",
    "storage_error",
    "subject_mismatch",
    "subject_not_found",
    "subject_quota",
    "too_many_connections",
    "too_many_images",
    "too_many_uploads",
    "unknown_field",
    "unsupported_media_type",
)
"""Codes of errors: why a request has no picture."""

STAGES = ("queue", "encode", "text", "reference", "denoise", "decode")
METHODS = ("DELETE", "GET", "HEAD", "OPTIONS", "POST", "PUT")
STATUSES = ("1xx", "2xx", "3xx", "4xx", "5xx")

_PICTURES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 128)
_ROWS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 384)
_STEP_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
_STAGE_S = (0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 120, 300)
_REQUEST_S = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 120, 300, 600)


class Metrics:
    """Counters of one service, in a registry of their own. Safe to use from threads.

    Args:
        models: Names that the label `model` may have.
        routes: Templates that the label `route` may have, such as "/v1/subjects/{id}".
    """

    def __init__(self, models: Iterable[str] = (), routes: Iterable[str] = ()) -> None:
        """Everything is at zero, and shown so: rates are right from the first event on."""
        self.registry = CollectorRegistry()
        self._models, self._routes = frozenset(models), frozenset(routes)
        counter, gauge, histogram = self._counter, self._gauge, self._histogram
        self._pictures = counter("pictures", "Pictures by how they ended.", "model", "outcome")
        self._refusals = counter("refusals", "Errors that callers were told, by code.", "reason")
        self._reloads = counter("model_reloads", "Models loaded again.", "model", "outcome")
        self._passes = counter(
            "reference_passes", "References that were read, each at one noise level.", "model"
        )
        self._requests = counter(
            "http_requests", "Answers by class of their status.", "route", "method", "status"
        )
        self._request_s = histogram(
            "http_request_duration_seconds", "Until an answer ended.", _REQUEST_S, "route"
        )
        self._in_progress = gauge("http_requests_in_progress", "Requests without a whole answer.")
        self._step_pictures = histogram("step_pictures", "Batch size of steps.", _PICTURES, "model")
        self._step_rows = histogram(
            "step_rows", "Rows of the Base U-Net in a step, up to three a picture.", _ROWS, "model"
        )
        self._step_s = histogram("step_duration_seconds", "Time of steps.", _STEP_S, "model")
        self._stage_s = histogram(
            "stage_duration_seconds", "Time of requests by stage.", _STAGE_S, "model", "stage"
        )
        self._subjects = gauge("subjects", "Subjects that are kept.")
        self._subject_bytes = gauge("subject_bytes", "Host memory of the subjects kept.")
        gauge("build_info", "1, with the version.", "version").labels(__version__).set(1)
        gauge("start_time_seconds", "Unix time at which the service began.").set(time.time())
        ProcessCollector(registry=self.registry)
        self._begin_at_zero()

    def know_routes(self, routes: Iterable[str]) -> None:
        """Add templates that the label `route` may have."""
        self._routes |= frozenset(routes)

    def watch(self, ask: Callable[[], Mapping[str, ModelState]]) -> None:
        """Ask for the state of every model at each scrape, on its thread. To be called once."""
        self.registry.register(ModelStates(self._models, ask))

    def picture_done(self, model: str, outcome: str, count: int = 1) -> None:
        """Some pictures have ended; `outcome` is one of `OUTCOMES`."""
        self._pictures.labels(_of(model, self._models), _of(outcome, OUTCOMES)).inc(count)

    def refused(self, reason: str) -> None:
        """A caller was told an error; `reason` is its code, one of `REASONS`."""
        self._refusals.labels(_of(reason, REASONS)).inc()

    def step(self, model: str, batch_size: int, took_s: float, num_rows: int | None = None) -> None:
        """One step of one batch has ended."""
        model = _of(model, self._models)
        self._step_pictures.labels(model).observe(batch_size)
        self._step_s.labels(model).observe(took_s)
        if num_rows is not None:
            self._step_rows.labels(model).observe(num_rows)

    def launches_of(self, model: str) -> Callable[[Launch], None]:
        """What counts the steps of a model, for `EngineOptions(on_launch=...)`."""

        def count(launch: Launch) -> None:
            self.step(model, launch.num_pictures, launch.took_s, launch.num_rows)

        return count

    def stage(self, model: str, stage: str, ms: float) -> None:
        """A request has spent some time in a stage, one of `STAGES`."""
        self._stage_s.labels(_of(model, self._models), _of(stage, STAGES)).observe(ms / 1e3)

    def request_drawn(self, model: str, timings: Timings, reference_passes: int) -> None:
        """A request has its pictures: its time in all stages, and the passes that it took."""
        for stage in STAGES:
            self.stage(model, stage, getattr(timings, f"{stage}_ms"))
        self._passes.labels(_of(model, self._models)).inc(reference_passes)

    def reloaded(self, model: str, *, is_ok: bool) -> None:
        """A model was loaded again, or was not and the old one goes on."""
        outcome = "succeeded" if is_ok else "failed"
        self._reloads.labels(_of(model, self._models), outcome).inc()

    def subjects(self, count: int, size_bytes: int) -> None:
        """How many subjects are kept now, and what they take."""
        self._subjects.set(count)
        self._subject_bytes.set(size_bytes)

    def request_begins(self) -> None:
        """A request came in. One `request_ends` follows, however it ends."""
        self._in_progress.inc()

    def request_ends(self, route: str, method: str, status: int, took_s: float) -> None:
        """An answer has ended; 499 where the client left before that."""
        self._in_progress.dec()
        route, method = _of(route, self._routes), _of(method, METHODS)
        self._requests.labels(route, method, _of(f"{status // 100}xx", STATUSES)).inc()
        self._request_s.labels(route).observe(took_s)

    def render(self) -> bytes:
        """All of it in Prometheus' text format. May list a folder: call it on a thread."""
        return generate_latest(self.registry)

    def _begin_at_zero(self) -> None:
        for model in self._models:
            for metric in (self._step_pictures, self._step_rows, self._step_s, self._passes):
                metric.labels(model)
            for stage in STAGES:
                self._stage_s.labels(model, stage)
            for outcome in OUTCOMES:
                self._pictures.labels(model, outcome)
            for outcome in ("succeeded", "failed"):
                self._reloads.labels(model, outcome)
        for reason in (*REASONS, OTHER):
            self._refusals.labels(reason)

    def _counter(self, name: str, told: str, *labels: str) -> Counter:
        return Counter(f"bootpig_{name}", told, labels, registry=self.registry)

    def _gauge(self, name: str, told: str, *labels: str) -> Gauge:
        return Gauge(f"bootpig_{name}", told, labels, registry=self.registry)

    def _histogram(self, name: str, told: str, buckets: Sequence[float], *labels: str) -> Histogram:
        return Histogram(f"bootpig_{name}", told, labels, buckets=buckets, registry=self.registry)


def _of(value: str, known: Collection[str]) -> str:
    """A value that a label may have; `other` for any other."""
    return value if value in known else OTHER
