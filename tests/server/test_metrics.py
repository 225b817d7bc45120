"""What is counted, that labels stay few, and that a scrape is answered whatever the engine does."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from bootpig_rt.engine.engine import Engine
from bootpig_rt.engine.events import Launch
from bootpig_rt.engine.options import EngineOptions
from bootpig_rt.pipeline import Pipeline
from bootpig_rt.request import Request, Timings
from bootpig_rt.server.metrics import OUTCOMES, REASONS, STAGES, Metrics
from bootpig_rt.server.model_states import ModelState
from bootpig_rt.storage.stats import StoreStats
from bootpig_rt.storage.store import SubjectStore

SUBJECT_ROUTE = "/v1/subjects/{id}"


def values(metrics: Metrics) -> dict[str, float]:
    """Every sample of a scrape, by its name with labels as Prometheus writes it."""
    found = {}
    for family in text_string_to_metric_families(metrics.render().decode()):
        for sample in family.samples:
            labels = ",".join(f"{k}={v}" for k, v in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(["small"], ["/v1/images/edits", SUBJECT_ROUTE])


def test_everything_that_may_happen_is_there_at_zero_from_the_start(metrics: Metrics) -> None:
    found = values(metrics)
    for outcome in OUTCOMES:
        assert found[f"bootpig_pictures_total{{model=small,outcome={outcome}}}"] == 0
    for reason in REASONS:
        assert found[f"bootpig_refusals_total{{reason={reason}}}"] == 0
    for stage in STAGES:
        assert found[f"bootpig_stage_duration_seconds_count{{model=small,stage={stage}}}"] == 0
    assert found["bootpig_start_time_seconds"] > 1e9


def test_names_say_whose_they_are_and_in_which_unit(metrics: Metrics) -> None:
    metrics.watch(lambda: {"small": ModelState(0, 0, 0.0, StoreStats())})
    families = list(text_string_to_metric_families(metrics.render().decode()))
    ours = [one for one in families if not one.name.startswith("process_")]
    assert len(ours) > 20
    for family in ours:
        assert family.name.startswith("bootpig_")
        assert family.documentation.endswith(".") or family.documentation.startswith("1, with")
        assert not family.name.endswith(("_ms", "_s"))


def test_every_error_that_the_service_tells_is_a_reason(root: Path) -> None:
    found: set[str] = set()
    for path in (root / "bootpig_rt" / "server").rglob("*.py"):
        text = path.read_text()
        found |= set(re.findall(r"""ApiError\(\s*\d+,\s*"(\w+)""" + '"', text))
        found |= set(re.findall(r"""refuse\([^()]*?\d{3}, "(\w+)""" + '"', text))
    assert len(found) > 30
    assert found <= set(REASONS)


def test_the_page_for_operators_has_every_metric(metrics: Metrics, root: Path) -> None:
    metrics.watch(lambda: {"small": ModelState(0, 0, 0.0, StoreStats())})
    families = text_string_to_metric_families(metrics.render().decode())
    ours = {
        f"{one.name}_total" if one.type == "counter" else one.name
        for one in families
        if one.name.startswith("bootpig_") and not one.name.endswith("_created")
    }
    page = (root / "docs" / "how-to" / "operate-a-server.md").read_text()
    assert set(re.findall(r"^\| `(bootpig_\w+)`", page, re.M)) == ours


def test_no_label_grows_with_what_callers_send(metrics: Metrics) -> None:
    def send(number: int) -> None:
        odd = f'x{number}\n"}} 1'
        metrics.picture_done(odd, odd)
        metrics.refused(odd)
        metrics.stage(odd, odd, 1.0)
        metrics.step(odd, number + 1, 0.01, number + 1)
        metrics.reloaded(odd, is_ok=True)
        metrics.request_drawn(odd, Timings(), 1)
        metrics.request_begins()
        metrics.request_ends(f"/{odd}", odd, 200 + number % 400, 0.01)

    metrics.watch(lambda: {f"model{i}": ModelState(i, i, i) for i in range(10_000)})
    send(0)
    for status in (200, 300, 400, 500):
        metrics.request_begins()
        metrics.request_ends("/", "BREW", status, 0.01)
    before = len(values(metrics))
    for number in range(10_000):
        send(number)
    after = values(metrics)
    assert len(after) == before
    assert after["bootpig_refusals_total{reason=other}"] == 10_001


def test_threads_lose_no_count(metrics: Metrics) -> None:
    def count(_: int) -> None:
        for _ in range(500):
            metrics.picture_done("small", "succeeded")
            metrics.request_begins()
            metrics.request_ends("/v1/images/edits", "POST", 200, 0.1)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(count, range(8)))
    found = values(metrics)
    assert found["bootpig_pictures_total{model=small,outcome=succeeded}"] == 4000
    labels = "{method=POST,route=/v1/images/edits,status=2xx}"
    assert found[f"bootpig_http_requests_total{labels}"] == 4000
    assert found["bootpig_http_requests_in_progress"] == 0


def test_times_are_told_in_seconds(metrics: Metrics) -> None:
    timings = Timings(queue_ms=250, encode_ms=20, reference_ms=300, denoise_ms=1500, decode_ms=40)
    metrics.request_drawn("small", timings, 26)
    found = values(metrics)
    stages = {
        stage: found[f"bootpig_stage_duration_seconds_sum{{model=small,stage={stage}}}"]
        for stage in STAGES
    }
    assert stages == {
        "queue": 0.25,
        "encode": 0.02,
        "text": 0.0,
        "reference": 0.3,
        "denoise": 1.5,
        "decode": 0.04,
    }
    assert found["bootpig_reference_passes_total{model=small}"] == 26


def test_stores_and_queues_are_asked_at_the_scrape(metrics: Metrics) -> None:
    state = ModelState(3, 2, 1.5, StoreStats(device_hits=4, disk_hits=1, misses=2, host_bytes=512))
    states = {"small": state}
    metrics.watch(lambda: states)
    metrics.subjects(7, 1024)
    found = values(metrics)
    assert found["bootpig_queue_pictures{model=small}"] == 3
    assert found["bootpig_running_pictures{model=small}"] == 2
    assert found["bootpig_expected_wait_seconds{model=small}"] == 1.5
    assert found["bootpig_table_lookups_total{model=small,tier=device}"] == 4
    assert found["bootpig_table_lookups_total{model=small,tier=none}"] == 2
    assert found["bootpig_table_bytes{model=small,tier=host}"] == 512
    assert found["bootpig_subjects"] == 7
    assert found["bootpig_subject_bytes"] == 1024
    states["small"] = ModelState(0, 0, 0.05, StoreStats(device_hits=9, make_ms=1500.0))
    found = values(metrics)
    assert found["bootpig_queue_pictures{model=small}"] == 0
    assert found["bootpig_table_lookups_total{model=small,tier=device}"] == 9
    assert found["bootpig_table_make_seconds_total{model=small}"] == 1.5


def test_an_engine_that_cannot_be_asked_takes_no_other_metric_away(
    metrics: Metrics, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> dict[str, ModelState]:
        raise RuntimeError("the replica is gone")

    metrics.watch(fail)
    metrics.refused("queue_full")
    assert values(metrics)["bootpig_refusals_total{reason=queue_full}"] == 1
    assert "the replica is gone" in caplog.text


@pytest.fixture
def make_engine(pipeline: Pipeline) -> Callable[[EngineOptions], Engine]:
    """Engines over the tiny pair, with a store of their own."""

    def make(options: EngineOptions) -> Engine:
        store = SubjectStore()
        return Engine(pipeline._backend, pipeline._tokenizer, store, max_batch=4, options=options)

    return make


def test_the_steps_of_an_engine_are_counted(
    metrics: Metrics, make_engine: Callable[[EngineOptions], Engine]
) -> None:
    engine = make_engine(EngineOptions(on_launch=metrics.launches_of("small")))
    jobs = [engine.submit(Request(prompt="a", num_inference_steps=n, seed=n)) for n in (2, 3)]
    engine.drive(jobs)
    found = values(metrics)
    assert found["bootpig_step_pictures_count{model=small}"] == 3
    assert found["bootpig_step_pictures_sum{model=small}"] == 5  # two pictures twice, then one
    assert found["bootpig_step_rows_sum{model=small}"] == 10  # two branches without a subject
    assert found["bootpig_step_duration_seconds_sum{model=small}"] > 0


def test_a_scrape_is_answered_while_the_engine_is_inside_of_a_step(
    metrics: Metrics, make_engine: Callable[[EngineOptions], Engine]
) -> None:
    is_inside, may_go_on = threading.Event(), threading.Event()

    def hold(launch: Launch) -> None:
        is_inside.set()
        assert may_go_on.wait(60)

    engine = make_engine(EngineOptions(on_launch=hold))
    metrics.watch(
        lambda: {
            "small": ModelState(engine.num_waiting, engine.num_running, engine.expected_wait_s())
        }
    )
    with engine.start():
        jobs = [engine.submit(Request(prompt="a", num_inference_steps=2, seed=n)) for n in range(6)]
        assert is_inside.wait(60)
        found = values(metrics)  # hangs here if a scrape waits for the step
        may_go_on.set()
        assert [len(job.result(60).images) for job in jobs] == [1] * 6
    total = (
        found["bootpig_running_pictures{model=small}"]
        + found["bootpig_queue_pictures{model=small}"]
    )
    assert 1 <= found["bootpig_running_pictures{model=small}"] <= 4
    assert total <= 6
