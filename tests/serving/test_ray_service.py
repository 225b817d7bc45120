"""The service over real Ray on this machine: routing, cancelling, and a replica that is killed."""

from __future__ import annotations

import base64
import http.client
import importlib.util
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from bootpig_rt.bundle.shipped import default_model

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs the extra ray"),
]

READY_S, ANSWER_S, HEAL_S = 300.0, 120.0, 180.0


@dataclass(frozen=True)
class Answer:
    """What the service said."""

    status: int
    headers: dict[str, str]
    body: dict[str, Any]


@dataclass
class Fleet:
    """Applications on Ray, and the process that holds them."""

    port: int
    process: subprocess.Popen[str]
    lock: threading.Lock = field(default_factory=threading.Lock)

    def tell(self, **told: Any) -> Any:
        with self.lock:
            assert self.process.stdin is not None
            assert self.process.stdout is not None
            self.process.stdin.write(json.dumps(told) + "\n")
            self.process.stdin.flush()
            return json.loads(self.process.stdout.readline())

    def replicas(self, app: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.tell(do="status", app=app)
        return found

    def ask(self, path: str, body: dict[str, Any] | None = None, **headers: str) -> Answer:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}",
            data=None if body is None else json.dumps(body).encode(),
            headers={"content-type": "application/json"}
            | {name.replace("_", "-"): value for name, value in headers.items()},
        )
        try:
            answer = urllib.request.urlopen(request, timeout=ANSWER_S)
        except urllib.error.HTTPError as error:
            answer = error
        with answer:
            told = {name.lower(): value for name, value in answer.headers.items()}
            return Answer(answer.status, told, json.loads(answer.read() or b"{}"))

    def draw(self, app: str, steps: int = 3, **body: Any) -> Answer:
        asked = {"prompt": "a red ball", "num_inference_steps": steps} | body
        return self.ask(f"/{app}/v1/images/generations", asked)

    def subject(self, app: str, image: bytes, seed: int) -> str:
        """Id of a kept subject, from an edit of one step."""
        url = "data:image/png;base64," + base64.b64encode(image).decode()
        asked = {
            "prompt": "a photo of it, on a beach",
            "reference_prompt": "a photo of it",
            "images": [{"image_url": url}],
            "noise_seed": seed,
            "num_inference_steps": 1,
        }
        answer = self.ask(f"/{app}/v1/images/edits", asked)
        assert answer.status == 200, answer.body
        return str(answer.body["subject_id"])


@pytest.fixture(scope="module")
def fleet(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Two applications of two replicas: one routes by subject, one does not."""
    folder = tmp_path_factory.mktemp("ray")
    server = {"model": str(default_model()), "threads": 1, "insecure": True, "max_batch": 4}
    usual = {"min_replicas": 2, "max_replicas": 2, "num_cpus": 0.3, "ingress_cpus": 0.1}
    usual |= {"spill_over": 16}  # more than come at once here
    apps = {
        "by-subject": usual | {"server": server, "subjects": str(folder / "subjects")},
        "anywhere": usual | {"server": server, "is_sticky": False},
    }
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # Ray's sockets lie in this folder, and their paths must be short.
    short = Path("/tmp") / f"bootpig-ray-{os.getpid()}"
    environment = os.environ | {
        "RAY_HOST_FOLDER": str(short),
        "RAY_HOST_PORT": str(port),
        "RAY_AUTH_MODE": "disabled",  # a cluster of this test alone; no token in the home folder
        "RAY_SERVE_LOG_TO_STDERR": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "PYTHONPATH": str(root),
        "PYTHONSAFEPATH": "1",
        "OMP_NUM_THREADS": "1",
    }
    log = (folder / "log").open("w")
    process = subprocess.Popen(
        [sys.executable, root / "tests" / "tools" / "ray_host.py", json.dumps(apps)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
        env=environment,
        start_new_session=True,
    )
    watchdog = threading.Timer(READY_S, process.kill)
    watchdog.start()
    try:
        assert process.stdout is not None
        first = process.stdout.readline()
        watchdog.cancel()
        assert first, f"Ray did not come up:\n{(folder / 'log').read_text()[-4000:]}"
        yield Fleet(port, process)
    finally:
        watchdog.cancel()
        _end(process)
        log.close()
        shutil.rmtree(short, ignore_errors=True)


def _end(process: subprocess.Popen[str]) -> None:
    try:
        process.communicate(json.dumps({"do": "stop"}) + "\n", timeout=60)
    except (subprocess.TimeoutExpired, OSError, ValueError):
        pass
    # Raylet and workers are of the same session; what is left of it ends now.
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait(30)


@pytest.fixture(scope="module")
def drawings(root: Path) -> list[bytes]:
    """Files of reference images."""
    return [
        path.read_bytes()
        for path in sorted((root / "bootpig_rt" / "assets" / "subjects").glob("*.png"))
    ]


def test_a_picture_of_a_known_subject_runs_no_reference_pass(
    fleet: Fleet, drawings: list[bytes]
) -> None:
    subject = fleet.subject("by-subject", drawings[0], seed=1)
    answer = fleet.draw("by-subject", prompt="a photo of it, in snow", subject_id=subject)
    assert answer.status == 200
    assert answer.body["reference_passes"] == 0
    assert base64.b64decode(answer.body["data"][0]["b64_json"]).startswith(b"\x89PNG")


def test_both_applications_draw_the_same_picture(fleet: Fleet, drawings: list[bytes]) -> None:
    pictures = set()
    for app in ("by-subject", "anywhere"):
        subject = fleet.subject(app, drawings[1], seed=2)
        answer = fleet.draw(app, subject_id=subject, seed=5, output_format="png")
        pictures.add(answer.body["data"][0]["b64_json"])
    assert len(pictures) == 1


def test_what_cannot_be_drawn_is_refused_and_a_deadline_is_kept(fleet: Fleet) -> None:
    refused = fleet.draw("by-subject", solver="euler")
    assert (refused.status, refused.body["error"]["param"]) == (400, "solver")
    late = fleet.draw("by-subject", steps=200, deadline_s=0.2)
    assert (late.status, late.body["error"]["code"]) == (504, "deadline_exceeded")


def test_a_stream_has_partial_images_and_ends_with_the_picture(fleet: Fleet) -> None:
    body = {"prompt": "a red ball", "num_inference_steps": 6, "stream": True, "partial_images": 2}
    names = [name for name, _ in _events(fleet, "by-subject", body)]
    assert names[-1] == "image_generation.completed"
    assert names.count("image_generation.partial_image") == 2


def _events(
    fleet: Fleet, app: str, body: dict[str, Any], request_id: str = "", most: int = 10_000
) -> list[tuple[str, dict[str, Any]]]:
    """Events of a stream; the connection is closed after `most` of them."""
    connection = http.client.HTTPConnection("127.0.0.1", fleet.port, timeout=ANSWER_S)
    headers = {"content-type": "application/json"}
    if request_id:
        headers["x-request-id"] = request_id
    connection.request("POST", f"/{app}/v1/images/generations", json.dumps(body), headers)
    answer, found, name = connection.getresponse(), [], ""
    assert answer.status == 200
    for line in answer:
        if line.startswith(b"event: "):
            name = line[7:].strip().decode()
        elif line.startswith(b"data: "):
            found.append((name, json.loads(line[6:])))
            if len(found) == most:
                break
    connection.close()
    return found


def test_a_client_that_leaves_stops_its_work(fleet: Fleet) -> None:
    body = {
        "prompt": "a red ball",
        "num_inference_steps": 200,
        "n": 2,
        "stream": True,
        "preview_every": 1,
        "partial_images": 3,
    }
    assert _events(fleet, "by-subject", body, "leaves-early", most=1)
    ends = time.monotonic() + 20
    while time.monotonic() < ends:
        job = fleet.ask("/by-subject/v1/jobs/leaves-early").body
        running = sum(one["running"] for one in fleet.replicas("by-subject"))
        if job["status"] != "running" and not running:
            break
        time.sleep(0.2)
    assert job["status"] == "cancelled"
    assert job["done_steps"] < job["total_steps"]
    assert running == 0


def test_routing_by_subject_saves_reference_passes(
    fleet: Fleet, drawings: list[bytes], record_property: Callable[[str, object], None]
) -> None:
    """Ten subjects, forty pictures in any order, four at a time."""
    passes, hits = {}, {}
    for app in ("anywhere", "by-subject"):
        subjects = [
            fleet.subject(app, drawings[number % len(drawings)], seed=100 + number)
            for number in range(10)
        ]
        before = Counter[str]()
        for replica in fleet.replicas(app):
            before.update({"misses": replica["misses"], "hits": replica["device_hits"]})
        asked = subjects * 4
        random.Random(7).shuffle(asked)
        with ThreadPoolExecutor(4) as clients:
            answers = list(
                clients.map(lambda one, app=app: fleet.draw(app, 2, subject_id=one), asked)
            )
        assert {answer.status for answer in answers} == {200}
        passes[app] = sum(answer.body["reference_passes"] for answer in answers)
        after = Counter[str]()
        for replica in fleet.replicas(app):
            after.update({"misses": replica["misses"], "hits": replica["device_hits"]})
        made, found = after["misses"] - before["misses"], after["hits"] - before["hits"]
        hits[app] = found / (made + found)
    record_property("reference_passes", passes)
    record_property("hit_ratio", hits)
    assert passes["by-subject"] == 0  # its edit made the table where it is read
    assert passes["anywhere"] > 0
    assert hits["by-subject"] > hits["anywhere"]


def test_a_replica_that_is_killed_under_load_loses_no_accepted_request(
    fleet: Fleet, record_property: Callable[[str, object], None]
) -> None:
    app = "by-subject"
    before = {one["pid"] for one in fleet.replicas(app)}
    assert len(before) == 2
    begun, outcomes = threading.Semaphore(0), Counter[str]()
    lock = threading.Lock()

    def client(number: int) -> None:
        for round in range(4):
            begun.release()
            answer = fleet.draw(app, 12, prompt=f"ball {number} of {round}")
            with lock:
                if answer.status == 200:
                    outcomes["picture"] += 1
                    assert answer.body["data"][0]["b64_json"]
                else:
                    outcomes[answer.body["error"]["code"]] += 1
                    assert answer.status in (429, 503), answer.body
                    assert int(answer.headers["retry-after"]) >= 1
                    # And a client that does as it is told gets its picture.
                    time.sleep(int(answer.headers["retry-after"]))
                    assert fleet.draw(app, 2).status in (200, 429, 503)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for _ in range(12):  # most have sent their second request by now
        assert begun.acquire(timeout=ANSWER_S)
    busy = max(fleet.replicas(app), key=lambda one: int(one["running"]))
    os.kill(busy["pid"], signal.SIGKILL)
    for thread in threads:
        thread.join(ANSWER_S)
        assert not thread.is_alive()
    record_property("outcomes", dict(outcomes))
    assert sum(outcomes.values()) == 32
    assert outcomes["picture"] >= 20
    ends = time.monotonic() + HEAL_S
    while time.monotonic() < ends:
        now = {one["pid"] for one in fleet.replicas(app)}
        if len(now) == 2 and busy["pid"] not in now:
            break
        time.sleep(1)
    assert len(now) == 2
    assert busy["pid"] not in now
    assert fleet.draw(app).status == 200
