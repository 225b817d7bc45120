"""A device that has no room, gives no numbers, or is gone; a process that hangs or is killed."""

from __future__ import annotations

import base64
import io
import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

Check = Callable[..., dict[str, Any]]
Eventually = Callable[..., bool]
DRAW = "/v1/images/generations"
SMALL: dict[str, Any] = {"prompt": "a photo of a dog", "num_inference_steps": 4, "seed": 3}
LARGE = SMALL | {"size": "64x64"}


@pytest.fixture(scope="module")
def faulty(run_faulty: Callable[..., Any]) -> Iterator[Any]:
    """One server for the tests that it survives."""
    with run_faulty() as running:
        yield running


@pytest.fixture
def client(faulty: Any) -> Iterator[httpx.Client]:
    with faulty.server.client() as one:
        yield one


def pixels(answer: httpx.Response) -> list[bytes]:
    assert answer.status_code == 200, answer.text
    files = [base64.b64decode(one["b64_json"]) for one in answer.json()["data"]]
    return [Image.open(io.BytesIO(file)).convert("RGB").tobytes() for file in files]


def test_a_picture_without_room_is_503_and_others_are_as_they_are_alone(
    faulty: Any, client: httpx.Client, check_refusal: Check, in_background: Callable[..., Any]
) -> None:
    alone, large = pixels(client.post(DRAW, json=SMALL)), pixels(client.post(DRAW, json=LARGE))
    with faulty.faults("oom"):
        beside = in_background(faulty.server, SMALL | {"num_inference_steps": 50})
        answer = client.post(DRAW, json=LARGE)
        check_refusal(answer, 503, "out_of_memory")
        assert int(answer.headers["retry-after"]) >= 1
        assert beside.answer.status_code == 200
        assert pixels(client.post(DRAW, json=SMALL)) == alone
    assert pixels(client.post(DRAW, json=LARGE)) == large
    assert 'outcome="out_of_memory"' in client.get("/metrics").text


@pytest.mark.parametrize("fault", ["oom-together", "oom-decode-together"])
def test_pictures_that_have_no_room_together_are_drawn_one_by_one(
    faulty: Any, client: httpx.Client, fault: str
) -> None:
    expected = pixels(client.post(DRAW, json=LARGE | {"n": 3}))
    with faulty.faults(fault):
        assert pixels(client.post(DRAW, json=LARGE | {"n": 3})) == expected


def test_a_decoder_without_room_is_503_and_the_next_picture_is_drawn(
    faulty: Any, client: httpx.Client, check_refusal: Check
) -> None:
    expected = pixels(client.post(DRAW, json=LARGE))
    with faulty.faults("oom-decode"):
        check_refusal(client.post(DRAW, json=LARGE | {"n": 2}), 503, "out_of_memory")
    assert pixels(client.post(DRAW, json=LARGE)) == expected


def test_no_picture_is_ever_made_of_what_is_no_number(
    faulty: Any, client: httpx.Client, check_refusal: Check
) -> None:
    with faulty.faults("nan"):
        check_refusal(client.post(DRAW, json=LARGE), 500, "numerical_error")
        stream = client.post(DRAW, json=LARGE | {"stream": True, "partial_images": 1})
        assert stream.status_code == 200  # it had begun
        assert "image_generation.completed" not in stream.text
        last = [line for line in stream.text.splitlines() if line.startswith("data: ")][-1]
        assert json.loads(last[6:])["error"]["code"] == "numerical_error"
        assert client.post(DRAW, json=SMALL).status_code == 200
    assert client.post(DRAW, json=LARGE).status_code == 200


def test_an_encoder_that_gives_no_numbers_makes_no_subject(
    faulty: Any, client: httpx.Client, check_refusal: Check, reference_png: bytes
) -> None:
    fields, files = {"reference_prompt": "a disc"}, {"image": reference_png}
    before = client.get("/v1/subjects").json()["data"]
    with faulty.faults("nan-encode"):
        answer = client.post("/v1/subjects", data=fields, files=files)
        check_refusal(answer, 500, "numerical_error")
    assert client.get("/v1/subjects").json()["data"] == before
    assert client.post("/v1/subjects", data=fields, files=files).status_code == 201


def test_what_nobody_foresaw_is_a_500_that_tells_nothing_and_the_server_goes_on(
    faulty: Any, client: httpx.Client, check_refusal: Check
) -> None:
    with faulty.faults("broken"):
        answer = client.post(DRAW, json=LARGE, headers={"x-request-id": "broken-one"})
        error = check_refusal(answer, 500, "internal_error")
        assert "secret" not in error["message"]
        assert client.post(DRAW, json=SMALL).status_code == 200
    assert client.get("/v1/jobs/broken-one").json()["status"] == "failed"
    told = [line for line in faulty.server.lines if "/secret/place" in line]
    assert told
    assert all("broken-one" in line or "lost" in line for line in told)


def test_a_clock_that_jumps_stops_nothing(
    faulty: Any, client: httpx.Client, in_background: Callable[..., Any], reference_png: bytes
) -> None:
    fields, files = {"reference_prompt": "a disc"}, {"image": reference_png}
    for jump_s in (-86_400, 400 * 86_400):
        made = client.post("/v1/subjects", data=fields | {"ttl_s": "3600"}, files=files).json()
        drawing = in_background(faulty.server, SMALL | {"num_inference_steps": 50, "n": 4})
        with faulty.faults("clock", str(jump_s)):
            assert drawing.answer.status_code == 200
            assert client.post(DRAW, json=SMALL | {"deadline_s": 30}).status_code == 200
            kept = client.get(f"/v1/subjects/{made['id']}").status_code
            assert kept == (200 if jump_s < 0 else 404)
            assert client.get("/readyz").status_code == 200
            assert client.get("/metrics").status_code == 200


def test_a_device_that_is_gone_for_good_ends_the_process_and_those_who_wait_are_told(
    run_faulty: Callable[..., Any],
    check_refusal: Check,
    in_background: Callable[..., Any],
    eventually: Eventually,
) -> None:
    with run_faulty() as faulty, faulty.server.client() as client:
        with faulty.faults("slow"):
            waiting = [in_background(faulty.server, LARGE | {"seed": n}) for n in range(3)]
            assert eventually(lambda: faulty.faults.was_met("slow"))
            lost = faulty.faults("lost")
            lost.__enter__()
        for one in waiting:
            check_refusal(one.answer, 503, "engine_lost")
            assert one.answer.headers["retry-after"]
        try:
            assert client.get("/readyz").status_code == 503
            assert client.get("/livez").status_code == 503
        except httpx.HTTPError:  # it has ended by now
            pass
        assert faulty.server.ended() == 1
        lost.__exit__(None, None, None)
    assert any("illegal memory access" in line for line in faulty.server.lines)


@pytest.mark.slow
def test_an_engine_that_hangs_is_found_out_and_its_process_ends(
    run_faulty: Callable[..., Any],
    check_refusal: Check,
    in_background: Callable[..., Any],
    eventually: Eventually,
) -> None:
    with run_faulty("--hang-s", "5") as faulty, faulty.server.client() as client:
        with faulty.faults("hang"):
            late = in_background(faulty.server, LARGE | {"deadline_s": 0.5})
            waiting = in_background(faulty.server, LARGE)
            assert eventually(lambda: faulty.faults.was_met("hang"))
            check_refusal(late.answer, 504, "deadline_exceeded")
            assert client.get("/livez").status_code == 200
            check_refusal(waiting.answer, 503, "engine_lost")
            assert faulty.server.ended() == 1
    assert any("a launch has not ended for" in line for line in faulty.server.lines)


@pytest.mark.slow
def test_a_killed_process_leaves_what_it_kept_to_the_next_one(
    run_faulty: Callable[..., Any],
    run_server: Any,
    in_background: Callable[..., Any],
    reference_png: bytes,
    tmp_path: Path,
) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    folders = ("--subject-folder", str(tmp_path / "s"), "--store", str(tmp_path / "t"))
    flags = ("--port", str(port), *folders)
    fields, files = {"reference_prompt": "a disc"}, {"image": reference_png}
    with run_faulty(*flags) as faulty, faulty.server.client() as client:
        made = client.post("/v1/subjects", data=fields, files=files).json()
        body = SMALL | {"subject_id": made["id"]}
        first = client.post(DRAW, json=body)
        assert first.json()["reference_passes"] > 0
        with faulty.faults("killed"):
            cut_off = in_background(faulty.server, LARGE)
            assert faulty.server.ended() == -9
            cut_off.join(30)
        assert isinstance(cut_off.error, httpx.HTTPError)
    start = time.monotonic()
    with run_server(*flags) as server, server.client() as client:
        again = client.post(DRAW, json=body)
        assert pixels(again) == pixels(first)
        assert again.json()["reference_passes"] == 0
    assert time.monotonic() - start < 60
