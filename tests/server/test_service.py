"""The life of a service: ready, draining, reloading; jobs, deadlines and full queues."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

Eventually = Callable[[Callable[[], bool]], bool]
LONG: dict[str, Any] = {"prompt": "a photo of a dog", "num_inference_steps": 50, "n": 4}
SHORT: dict[str, Any] = {"prompt": "a photo of a dog", "num_inference_steps": 1}
DRAW = "/v1/images/generations"


class Background(threading.Thread):
    """A request on a thread of its own."""

    def __init__(self, server: Any, body: dict[str, Any], request_id: str = "") -> None:
        super().__init__(daemon=True)
        self.server, self.body, self.answer = server, body, None
        self.headers = {"x-request-id": request_id} if request_id else {}
        self.error: Exception | None = None
        self.start()

    def run(self) -> None:
        try:
            with self.server.client() as client:
                self.answer = client.post(DRAW, json=self.body, headers=self.headers)
        except httpx.HTTPError as error:
            self.error = error

    @property
    def status(self) -> int:
        self.join(60)
        assert self.answer is not None, self.error
        return int(self.answer.status_code)


def gauges(client: httpx.Client) -> dict[str, float]:
    found = {}
    for line in client.get("/metrics").text.splitlines():
        if not line.startswith("#"):
            name, _, value = line.rpartition(" ")
            found[name] = float(value)
    return found


def busy(client: httpx.Client) -> float:
    now = gauges(client)
    return sum(
        value
        for name, value in now.items()
        if name.startswith(("bootpig_queue_pictures", "bootpig_running_pictures"))
    )


def test_a_server_says_that_it_lives_and_is_ready(client: httpx.Client) -> None:
    assert client.get("/livez").status_code == 200
    assert client.get("/readyz").json() == {"status": "ready"}
    assert "bootpig_step_pictures_count" in client.get("/metrics").text


def test_head_is_answered_as_get_is_without_its_body(client: httpx.Client) -> None:
    for path, status in (("/livez", 200), ("/v1/limits", 200), ("/v1/jobs/never", 404)):
        found, head = client.get(path), client.head(path)
        assert (found.status_code, head.status_code) == (status, status)
        assert head.content == b""
        assert head.headers["content-length"] == str(len(found.content))


def test_a_job_is_asked_after_by_its_request_id_and_cancelled_twice(
    server: Any, client: httpx.Client, eventually: Eventually
) -> None:
    drawing = Background(server, LONG | {"n": 10}, "one-to-cancel")
    assert eventually(lambda: client.get("/v1/jobs/one-to-cancel").status_code == 200)
    job = client.get("/v1/jobs/one-to-cancel").json()
    assert job["status"] in ("queued", "running")
    assert client.post("/v1/jobs/one-to-cancel/cancel").status_code == 200
    assert drawing.status == 409
    assert client.get("/v1/jobs/one-to-cancel").json()["status"] == "cancelled"
    assert client.post("/v1/jobs/one-to-cancel/cancel").json()["status"] == "cancelled"
    assert client.post("/v1/jobs/never/cancel").status_code == 404
    assert eventually(lambda: busy(client) == 0)


def test_a_client_that_leaves_stops_its_work(
    server: Any, client: httpx.Client, eventually: Eventually
) -> None:
    for body in (LONG | {"n": 10}, LONG | {"n": 10, "stream": True}):
        before = gauges(client)['bootpig_step_pictures_count{model="tiny_bundle"}']
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            text = json.dumps(body)
            head = f"POST {DRAW} HTTP/1.1\r\nhost: 127.0.0.1\r\n"
            head += f"content-type: application/json\r\ncontent-length: {len(text)}\r\n\r\n"
            connection.sendall((head + text).encode())
            name = 'bootpig_step_pictures_count{model="tiny_bundle"}'
            assert eventually(lambda: gauges(client)[name] > before)  # noqa: B023
        assert eventually(lambda: busy(client) == 0)
        assert gauges(client)[name] < before + 100  # of 150


def test_a_deadline_that_is_too_short_is_504(client: httpx.Client, eventually: Eventually) -> None:
    answer = client.post(DRAW, json=LONG | {"deadline_s": 0.01})
    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "deadline_exceeded")
    assert eventually(lambda: busy(client) == 0)


@pytest.fixture(scope="module")
def narrow(
    run_server: Any, tiny_bundle_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Any, Path]]:
    """A server that draws one picture at a time, where four may wait, and its model's folder."""
    folder = tmp_path_factory.mktemp("narrow") / "pair"
    shutil.copytree(tiny_bundle_folder, folder)
    with run_server("--max-waiting", "4", "--max-batch", "1", model=folder) as server:
        yield server, folder


def test_a_full_queue_is_429_with_a_time_to_come_back_and_what_was_taken_is_drawn(
    narrow: tuple[Any, Path], eventually: Eventually
) -> None:
    server, _ = narrow
    with server.client() as client:
        taken = [Background(server, LONG | {"n": 4})]
        assert eventually(lambda: busy(client) >= 3)
        answers = [client.post(DRAW, json=SHORT | {"n": 4}) for _ in range(5)]
        assert {one.status_code for one in answers} == {429}
        assert all(int(one.headers["retry-after"]) >= 1 for one in answers)
        assert client.get("/readyz").status_code == 200
        assert [one.status for one in taken] == [200]


def test_told_to_stop_it_ends_what_runs_and_takes_no_more(
    start_server: Any, eventually: Eventually
) -> None:
    server = start_server()
    with server.client() as client:
        drawing = Background(server, LONG)
        assert eventually(lambda: busy(client) > 0)
        server.process.send_signal(signal.SIGTERM)
        assert eventually(lambda: client.get("/readyz").json()["status"] == "draining")
        assert client.post(DRAW, json=SHORT).status_code == 503
        assert client.get("/livez").status_code == 200
        assert drawing.status == 200
    assert server.ended() == 0


def test_told_to_stop_twice_it_ends_at_once(start_server: Any, eventually: Eventually) -> None:
    server = start_server()
    with server.client() as client:
        Background(server, LONG | {"n": 10})
        assert eventually(lambda: busy(client) > 0)
        server.process.send_signal(signal.SIGTERM)
        assert eventually(lambda: client.get("/readyz").status_code == 503)
    server.process.send_signal(signal.SIGTERM)
    assert server.ended(10) == 130


def test_a_model_is_loaded_again_under_load_and_a_bad_one_leaves_the_old_one_drawing(
    narrow: tuple[Any, Path], eventually: Eventually
) -> None:
    server, folder = narrow
    graph = folder / "denoise_step.onnx"
    good = graph.read_bytes()
    with server.client() as client:
        running = Background(server, LONG)
        assert eventually(lambda: busy(client) > 0)
        assert client.post("/v1/admin/reload", json={}).status_code == 200
        graph.write_bytes(good[:-100] + b"\0" * 100)
        answer = client.post("/v1/admin/reload", json={"model": "pair"})
        graph.write_bytes(good)
        assert (answer.status_code, answer.json()["error"]["code"]) == (422, "reload_failed")
        assert str(folder) not in answer.text
        assert client.post(DRAW, json=SHORT).status_code == 200
        assert running.status == 200


def test_a_port_in_use_and_a_model_that_is_not_there_are_one_line_and_exit_code_2(
    start_server: Any, server: Any, tmp_path: Path
) -> None:
    in_use = start_server("--port", str(server.port), waits=False)
    missing = start_server(model=tmp_path / "none", waits=False)
    for failed, text in ((in_use, "is in use"), (missing, "no folder")):
        assert failed.ended(60) == 2
        lines = [line for line in failed.lines if "error:" in line]
        assert len(lines) == 1
        assert text in lines[0]
