"""A server process as its operator sees it: log lines, metrics, traces, settings."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from bootpig_rt.cli.main import main
from bootpig_rt.server.config import read_config
from bootpig_rt.server.options import ServerOptions

PROMPT = "a photo of a dog,\n\x1b[31mof my secret beach"
STAGES = (b"encode", b"reference", b"denoise", b"decode")

Eventually = Callable[[Callable[[], bool]], bool]


def values(text: str) -> dict[tuple[str, ...], float]:
    """Samples of a scrape, by name and the values of its labels."""
    return {
        (sample.name, *(label for _, label in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def records(lines: list[str]) -> list[dict[str, Any]]:
    """Log lines; each is one of JSON, but for the one that tells the address."""
    return [json.loads(line) for line in lines if "is ready at http" not in line]


def test_a_request_is_in_the_log_the_metrics_and_its_trace_and_its_prompt_nowhere(
    start_server: Any, reference_png: bytes, collector: list[tuple[str, bytes]]
) -> None:
    server = start_server("--traces")
    with server.client() as client:
        edit = client.post(
            "/v1/images/edits",
            data={"prompt": PROMPT, "reference_prompt": "a dog", "num_inference_steps": "2"},
            files={"image": ("a.png", reference_png)},
            headers={"X-Request-Id": "mine_1"},
        )
        assert edit.status_code == 200, edit.text
        subject = edit.json()["subject_id"]
        body = {"prompt": PROMPT, "subject_id": subject, "num_inference_steps": 2, "n": 2}
        assert client.post("/v1/images/generations", json=body).status_code == 200
        assert client.post("/v1/images/generations", json={"prompt": ""}).status_code == 400
        assert client.get("/v1/a%0ab%1b[31m").status_code == 404
        found = values(client.get("/metrics").text)
    assert server.stop() == 0

    lines = [one for one in records(server.lines) if one["logger"] == "bootpig_rt.server.access"]
    assert [one["status"] for one in lines] == [200, 200, 400, 404]
    first, second, third, fourth = lines
    assert edit.headers["x-request-id"] == first["request_id"] == "mine_1"
    assert (first["model"], first["num_images"], first["steps"]) == ("tiny_bundle", 1, 2)
    assert first["reference_passes"] > 0
    assert first["denoise_ms"] > 0
    assert (second["num_images"], second["reference_passes"]) == (2, 0)
    assert third["error"] == "invalid_value"
    assert fourth["path"] == "/v1/a\nb\x1b[31m"
    assert "secret beach" not in "".join(server.lines)

    model = "tiny_bundle"
    assert found["bootpig_pictures_total", model, "succeeded"] == 3
    assert found["bootpig_step_pictures_sum", model] == 6
    assert found["bootpig_table_lookups_total", model, "none"] == 1
    assert found["bootpig_table_lookups_total", model, "device"] >= 1
    assert found["bootpig_table_bytes", model, "device"] > 0
    assert found["bootpig_reference_passes_total", model] == first["reference_passes"]
    assert found["bootpig_subjects",] == 1
    assert found["bootpig_subject_bytes",] > 0
    assert found["bootpig_queue_pictures", model] == found["bootpig_running_pictures", model] == 0
    assert found["bootpig_refusals_total", "invalid_value"] == 1
    assert found["bootpig_http_requests_in_progress",] == 1  # the scrape itself

    sent = b"".join(body for _, body in collector)
    assert b"POST /v1/images/edits" in sent
    assert all(stage in sent for stage in STAGES)
    assert bytes.fromhex(first["trace_id"]) in sent
    assert b"secret beach" not in sent


def test_what_is_refused_ahead_of_drawing_is_neither_failed_nor_cancelled(
    server: Any, client: httpx.Client
) -> None:
    before = values(client.get("/metrics").text)
    bodies: list[dict[str, Any]] = [
        {"num_inference_steps": 1000, "n": 2},
        {"num_inference_steps": 1000, "stream": True},
        {"subject_id": f"sub_{0:024x}"},
    ]
    answers = [
        client.post("/v1/images/generations", json={"prompt": "a", **body}) for body in bodies
    ]
    assert [answer.status_code for answer in answers] == [400, 400, 404]
    after = values(client.get("/metrics").text)
    changed = {
        key[2]: after[key] - before[key]
        for key in after
        if key[0] == "bootpig_pictures_total" and after[key] != before[key]
    }
    assert changed == {"refused": 4}


@pytest.fixture(scope="module")
def told(run_server: Any) -> Iterator[Any]:
    """A server that drew and has ended: in text, with prompts, its spans to nobody."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
        patch.setenv("NO_PROXY", "127.0.0.1")
        with run_server("--traces", "--log-prompts", "--log-format", "text") as server:
            with server.client() as client:
                body = {"prompt": PROMPT, "num_inference_steps": 1}
                assert client.post("/v1/images/generations", json=body).status_code == 200
            server.stop()
            yield server


def test_a_collector_that_is_gone_holds_nobody_up(told: Any) -> None:
    assert told.ended() == 0
    assert any("the last spans were not sent" in line for line in told.lines)


def test_prompts_are_in_the_log_where_they_are_asked_for(told: Any) -> None:
    assert told.ended() == 0
    (line,) = [line for line in told.lines if "secret beach" in line]
    assert "\\x1b[31mof my secret beach" in line
    assert line[:-1].isprintable()


def test_metrics_are_answered_while_pictures_are_drawn(
    server: Any, client: httpx.Client, eventually: Eventually
) -> None:
    def is_running() -> bool:
        found = values(client.get("/metrics").text)
        return found["bootpig_running_pictures", "tiny_bundle"] > 0

    def draw() -> None:
        body = {"prompt": "a dog", "num_inference_steps": 50, "n": 4}
        with server.client() as other:
            answers.append(other.post("/v1/images/generations", json=body).status_code)

    answers: list[int] = []
    thread = threading.Thread(target=draw)
    thread.start()
    seen = eventually(is_running)
    thread.join(60)
    assert seen
    assert answers == [200]


def test_the_settings_are_printed_as_a_file_that_gives_them_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", "--print-config", "--max-batch", "3", "--drain-s", "1m"]) == 0
    path = tmp_path / "serve.toml"
    path.write_text(capsys.readouterr().out)
    assert ServerOptions(**read_config(path)) == ServerOptions(max_batch=3, drain_s=60.0)


def test_a_wrong_setting_is_one_line_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "serve.toml"
    path.write_text("max_bacth = 3\n")
    assert main(["serve", "--config", str(path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("unknown key 'max_bacth'; did you mean max_batch?")
