"""Clients that leave, cancel, come all at once or too late; pictures beside many others."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import random
import socket
import struct
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, closing
from typing import Any

import httpx
import pytest
from PIL import Image

Check = Callable[..., dict[str, Any]]
Eventually = Callable[..., bool]
Gauges = Callable[[httpx.Client], dict[str, float]]
IsIdle = Callable[[httpx.Client], bool]
DRAW = "/v1/images/generations"
SHORT: dict[str, Any] = {"prompt": "a photo of a dog", "num_inference_steps": 1}
LONG = SHORT | {"num_inference_steps": 200, "n": 4}
QUITE_LONG = LONG | {"num_inference_steps": 80}
STEPS = 'bootpig_step_pictures_sum{model="tiny_bundle"}'


def ask_on(connection: socket.socket, body: dict[str, Any], request_id: str = "") -> None:
    text = json.dumps(body)
    head = f"POST {DRAW} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
    head += f"x-request-id: {request_id}\r\n" if request_id else ""
    connection.sendall(f"{head}content-length: {len(text)}\r\n\r\n{text}".encode())


def pixels(answer: httpx.Response) -> list[bytes]:
    assert answer.status_code == 200, answer.text
    files = [base64.b64decode(one["b64_json"]) for one in answer.json()["data"]]
    return [Image.open(io.BytesIO(file)).convert("RGB").tobytes() for file in files]


@pytest.mark.parametrize("when", ["queued", "mid-step", "while it is told"])
@pytest.mark.parametrize("how", ["closed", "reset"])
def test_a_client_that_leaves_leaves_nothing_behind(
    server: Any,
    client: httpx.Client,
    gauges: Gauges,
    is_idle: IsIdle,
    eventually: Eventually,
    when: str,
    how: str,
) -> None:
    where = ("127.0.0.1", server.port)
    before = gauges(client)
    body = LONG | {"n": 10, "stream": when == "while it is told", "partial_images": 3}
    last_id = f"last-{how}-{when}".replace(" ", "-")  # the job of another case is still known
    with (
        closing(socket.create_connection(where)) as first,
        closing(socket.create_connection(where)) as last,
    ):
        ask_on(first, body, f"first-of-{last_id}")
        if when == "while it is told":
            told = b""
            while b"partial_image" not in told:
                told += first.recv(100_000)
        else:
            assert eventually(lambda: gauges(client)[STEPS] > before[STEPS])
        if when == "queued":
            ask_on(last, LONG | {"n": 10}, last_id)
            assert eventually(lambda: client.get(f"/v1/jobs/{last_id}").status_code == 200)
            assert client.get(f"/v1/jobs/{last_id}").json()["status"] == "queued"
        for one in (last, first):
            if how == "reset":
                one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            one.close()
    assert eventually(lambda: is_idle(client))
    after = gauges(client)
    assert after[STEPS] - before[STEPS] < 500  # of 2000 for each of them
    cancelled = 'bootpig_pictures_total{model="tiny_bundle",outcome="cancelled"}'
    assert after[cancelled] > before[cancelled]


def test_a_job_may_be_cancelled_at_any_time_and_any_number_of_times(
    server: Any,
    client: httpx.Client,
    is_idle: IsIdle,
    eventually: Eventually,
    in_background: Callable[..., Any],
    check_refusal: Check,
) -> None:
    rng = random.Random(5)
    ends = Counter[int]()
    for number in range(12):
        name = f"to-cancel-{number}"
        body = SHORT | {"num_inference_steps": 10}
        drawing = in_background(server, body, headers={"x-request-id": name})
        assert eventually(lambda: client.get(f"/v1/jobs/{name}").status_code == 200)  # noqa: B023
        time.sleep(rng.uniform(0.0, 0.03))
        for _ in range(2):
            assert client.post(f"/v1/jobs/{name}/cancel").status_code == 200
        status = drawing.answer.status_code
        ends[status] += 1
        told = client.get(f"/v1/jobs/{name}").json()["status"]
        assert told == {200: "succeeded", 409: "cancelled"}[status]
        assert client.post(f"/v1/jobs/{name}/cancel").json()["status"] == told
    assert set(ends) <= {200, 409}
    check_refusal(client.post("/v1/jobs/never-was/cancel"), 404, "job_not_found")
    check_refusal(client.get("/v1/jobs/" + "a" * 3000), 404, "job_not_found")
    assert eventually(lambda: is_idle(client))


def test_an_id_in_use_is_refused_and_free_again_afterwards(
    server: Any,
    client: httpx.Client,
    eventually: Eventually,
    in_background: Callable[..., Any],
    check_refusal: Check,
) -> None:
    named = {"x-request-id": "the-same"}
    first = in_background(server, QUITE_LONG, headers=named)
    assert eventually(lambda: client.get("/v1/jobs/the-same").status_code == 200)
    check_refusal(client.post(DRAW, json=SHORT, headers=named), 409, "duplicate_request")
    assert first.answer.status_code == 200
    assert client.post(DRAW, json=SHORT, headers=named).status_code == 200


def test_of_ten_times_as_many_as_may_wait_those_that_are_taken_are_drawn(
    run_server: Any, is_idle: IsIdle, eventually: Eventually
) -> None:
    async def burst(url: str) -> tuple[list[httpx.Response], list[httpx.Response]]:
        limits = httpx.Limits(max_connections=200)
        async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits) as client:
            body = SHORT | {"num_inference_steps": 10}
            asked = [client.post(DRAW, json=body | {"seed": n}) for n in range(100)]
            probes = [client.get(f"/{name}") for name in ("livez", "readyz", "metrics")] * 3
            answers = await asyncio.gather(*asked, *probes)
            return list(answers[: len(asked)]), list(answers[len(asked) :])

    with run_server("--max-waiting", "8", "--max-batch", "2") as server, ExitStack() as stack:
        slow = stack.enter_context(closing(socket.create_connection(("127.0.0.1", server.port))))
        ask_on(slow, SHORT | {"stream": True})  # and is never read
        answers, probes = asyncio.run(burst(server.url))
        assert {one.status_code for one in probes} == {200}
        counts = Counter(one.status_code for one in answers)
        assert set(counts) == {200, 429}
        assert counts[200] >= 8
        for one in answers:
            if one.status_code == 429:
                assert one.json()["error"]["code"] == "queue_full"
                assert int(one.headers["retry-after"]) >= 1
        with server.client() as client:
            assert eventually(lambda: is_idle(client))
            metrics = client.get("/metrics").text
    drawn = f'bootpig_pictures_total{{model="tiny_bundle",outcome="succeeded"}} {counts[200] + 1}.0'
    assert drawn in metrics
    assert f'bootpig_refusals_total{{reason="queue_full"}} {counts[429]}.0' in metrics


def test_work_whose_time_is_over_before_its_turn_is_never_begun(
    server: Any,
    client: httpx.Client,
    gauges: Gauges,
    is_idle: IsIdle,
    eventually: Eventually,
    in_background: Callable[..., Any],
    check_refusal: Check,
) -> None:
    assert eventually(lambda: is_idle(client))
    before = gauges(client)[STEPS]
    first = in_background(server, QUITE_LONG)  # all places of a batch
    assert eventually(lambda: gauges(client)[STEPS] > before)
    answer = client.post(DRAW, json=LONG | {"n": 8, "deadline_s": 0.05})
    check_refusal(answer, 504, "deadline_exceeded", "deadline_s")
    assert first.answer.status_code == 200
    assert eventually(lambda: is_idle(client))
    assert gauges(client)[STEPS] - before == 4 * QUITE_LONG["num_inference_steps"]


def test_work_whose_time_is_over_amid_its_steps_stops(
    client: httpx.Client, gauges: Gauges, is_idle: IsIdle, eventually: Eventually
) -> None:
    before = gauges(client)[STEPS]
    answer = client.post(DRAW, json=LONG | {"n": 10, "deadline_s": 0.1})
    assert answer.status_code == 504
    assert eventually(lambda: is_idle(client))
    assert gauges(client)[STEPS] - before < 500


def test_pictures_are_as_they_are_alone_in_any_company_and_whenever_they_join(
    server: Any,
    client: httpx.Client,
    gauges: Gauges,
    eventually: Eventually,
    in_background: Callable[..., Any],
    reference_png: bytes,
) -> None:
    fields, files = {"reference_prompt": "a photo of a disc"}, {"image": reference_png}
    subject = client.post("/v1/subjects", data=fields, files=files).json()["id"]
    mixed: list[dict[str, Any]] = [
        SHORT | {"num_inference_steps": 12, "seed": 1},
        SHORT | {"num_inference_steps": 7, "seed": 2, "subject_id": subject},
        SHORT | {"num_inference_steps": 9, "seed": 3, "solver": "dpmpp_2m", "n": 2},
        SHORT | {"num_inference_steps": 5, "seed": 4, "size": "64x32"},
        SHORT | {"num_inference_steps": 15, "seed": 5, "size": "64x32", "solver": "unipc"},
        SHORT | {"num_inference_steps": 8, "seed": 6, "text_guidance_scale": 1.0},
        SHORT | {"num_inference_steps": 6, "seed": 7, "subject_id": subject, "merge": "mean"},
    ]
    alone = [pixels(client.post(DRAW, json=body)) for body in mixed]
    before = gauges(client)[STEPS]
    company = in_background(server, QUITE_LONG | {"seed": 9, "n": 2})
    assert eventually(lambda: gauges(client)[STEPS] > before)  # so the others join it
    together = [in_background(server, body) for body in mixed]
    assert [pixels(one.answer) for one in together] == alone
    assert company.answer.status_code == 200


def test_a_short_request_waits_for_no_long_one(
    server: Any,
    client: httpx.Client,
    gauges: Gauges,
    eventually: Eventually,
    in_background: Callable[..., Any],
) -> None:
    before = gauges(client)[STEPS]
    large = QUITE_LONG | {"n": 3, "size": "64x64"}
    long = in_background(server, large, headers={"x-request-id": "the-long-one"})
    assert eventually(lambda: gauges(client)[STEPS] > before)
    assert client.post(DRAW, json=SHORT).status_code == 200
    assert client.get("/v1/jobs/the-long-one").json()["status"] == "running"
    assert long.answer.status_code == 200
