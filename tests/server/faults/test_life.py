"""The begin and the end of a service, models that change under it, and what runs out around it."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

Check = Callable[..., dict[str, Any]]
Eventually = Callable[..., bool]
DRAW = "/v1/images/generations"
SHORT: dict[str, Any] = {"prompt": "a photo of a dog", "num_inference_steps": 1}
FIELDS = {"reference_prompt": "a photo of a disc"}


@contextmanager
def limited(server: Any, kind: int, soft: int) -> Iterator[None]:
    """A server that may have no more of something than `soft`."""
    pid = server.process.pid
    old = resource.prlimit(pid, kind)
    resource.prlimit(pid, kind, (soft, old[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, kind, old)


def answers(client: httpx.Client) -> bool:
    try:
        return client.get("/livez").status_code == 200
    except httpx.HTTPError:
        return False


def test_told_to_stop_while_it_warms_up_it_ends_well_and_had_taken_nothing(
    run_faulty: Callable[..., Any], check_refusal: Check, eventually: Eventually, tmp_path: Path
) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    with run_faulty("--port", str(port), waits=False, on=("load",)) as faulty:
        server = faulty.server
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            assert eventually(lambda: answers(client), 60)
            ready = client.get("/readyz")
            assert (ready.status_code, ready.json()["status"]) == (503, "starting")
            refused = client.post(DRAW, json=SHORT)
            check_refusal(refused, 503, "not_ready")
            assert refused.headers["retry-after"]
            server.process.send_signal(signal.SIGTERM)
            assert eventually(lambda: client.get("/readyz").json()["status"] == "draining")
        (faulty.faults.folder / "load").unlink()
        assert server.ended() == 0
    assert not any("is ready at" in line for line in server.lines)


def test_a_closed_log_pipe_costs_lines_alone_and_an_idle_server_ends_at_once(
    root: Path, tiny_bundle_folder: Path
) -> None:
    reading, writing = os.pipe()
    environment = os.environ | {"PYTHONPATH": str(root), "PYTHONSAFEPATH": "1"}
    command = [sys.executable, "-m", "bootpig_rt", "serve", str(tiny_bundle_folder), "--port", "0"]
    process = subprocess.Popen(command, stdout=writing, stderr=writing, env=environment)
    try:
        os.close(writing)
        told = b""
        while b"is ready at http" not in told or not told.endswith(b"\n"):
            more = os.read(reading, 65536)
            assert more, told
            told += more
        os.close(reading)
        line = next(one for one in told.decode().splitlines() if "is ready at" in one)
        with httpx.Client(base_url=line.rsplit(" ", 1)[1], timeout=60) as client:
            for _ in range(3):
                assert client.post(DRAW, json=SHORT).status_code == 200
                assert client.post(DRAW, content=b"nonsense").status_code == 415
            assert client.get("/readyz").status_code == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()


def test_a_temporary_folder_that_is_full_costs_large_uploads_alone(
    run_server: Any,
    check_refusal: Check,
    reference_png: bytes,
    disc: Callable[..., Image.Image],
    encoded: Callable[..., bytes],
) -> None:
    large = encoded(disc(size=(900, 900)), compress_level=0)
    assert len(large) > 2 << 20
    with run_server() as server, server.client() as client:
        made = client.post("/v1/subjects", data=FIELDS, files={"image": reference_png}).json()
        address = f"/v1/subjects/{made['id']}/file"
        file = client.get(address).content
        assert client.post("/v1/subjects/preview", files={"image": large}).status_code == 200
        with limited(server, resource.RLIMIT_FSIZE, 4096):
            refused = client.post("/v1/subjects/preview", files={"image": large})
            check_refusal(refused, 503, "storage_error")
            assert refused.headers["retry-after"]
            check_refusal(client.get(address), 503, "storage_error")
            check_refusal(client.post("/v1/subjects", files={"file": file}), 503, "storage_error")
            assert client.post(DRAW, json=SHORT).status_code == 200
            small = client.post("/v1/subjects", data=FIELDS, files={"image": reference_png})
            assert small.status_code == 201
        assert client.post("/v1/subjects/preview", files={"image": large}).status_code == 200
        assert client.post("/v1/subjects", files={"file": file}).status_code == 201
        _file_descriptors_run_out(server, client)


def _file_descriptors_run_out(server: Any, client: httpx.Client) -> None:
    """Connections that cannot be taken wait; those that there are go on."""
    client.get("/livez")
    used = len(os.listdir(f"/proc/{server.process.pid}/fd"))
    with limited(server, resource.RLIMIT_NOFILE, used + 2):
        waiting = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(8)]
        assert client.get("/livez").status_code == 200
        assert client.post(DRAW, json=SHORT).status_code == 200
    for one in waiting:
        one.close()
    with server.client() as other:
        assert other.get("/readyz").status_code == 200


@pytest.mark.slow
def test_no_request_fails_while_models_are_loaded_again_well_and_badly(
    start_server: Any, tiny_bundle_folder: Path, tmp_path: Path, reference_png: bytes
) -> None:
    folder = tmp_path / "pair"
    shutil.copytree(tiny_bundle_folder, folder)
    server = start_server(model=folder)
    is_over = threading.Event()
    seen: list[int] = []

    def keep_asking(subject_id: str) -> None:
        with server.client() as client:
            while not is_over.is_set():
                body = SHORT | {"num_inference_steps": 5, "subject_id": subject_id}
                seen.append(client.post(DRAW, json=body).status_code)

    with server.client() as client:
        made = client.post("/v1/subjects", data=FIELDS, files={"image": reference_png}).json()
        askers = [threading.Thread(target=keep_asking, args=(made["id"],)) for _ in range(3)]
        for one in askers:
            one.start()
        statuses = []
        graph, good = folder / "denoise_step.onnx", (folder / "denoise_step.onnx").read_bytes()
        for damage in (good, good[:-100], b"", good):
            graph.write_bytes(damage)
            statuses.append(client.post("/v1/admin/reload", json={}).status_code)
            assert client.get("/readyz").status_code == 200
        server.process.send_signal(signal.SIGHUP)
        time.sleep(2.0)
        is_over.set()
        for one in askers:
            one.join(60)
    assert statuses == [200, 422, 422, 200]
    assert set(seen) == {200}
    assert len(seen) > 20


@pytest.mark.slow
def test_other_weights_draw_a_subject_anew_and_its_file_is_of_the_old_ones(
    start_server: Any,
    tiny_bundle_folder: Path,
    write_tiny_manifest: Callable[[Path], None],
    tmp_path: Path,
    reference_png: bytes,
    check_refusal: Check,
) -> None:
    folder = tmp_path / "pair"
    shutil.copytree(tiny_bundle_folder, folder)
    server = start_server(model=folder)
    with server.client() as client:
        made = client.post("/v1/subjects", data=FIELDS, files={"image": reference_png}).json()
        body = SHORT | {"subject_id": made["id"], "seed": 1}
        file = client.get(f"/v1/subjects/{made['id']}/file").content
        uploaded = client.post("/v1/subjects", files={"file": file}).json()["id"]
        client.post(DRAW, json=body)
        assert client.post(DRAW, json=body).json()["reference_passes"] == 0
        before = client.get("/v1/models").json()["data"][0]["fingerprint"]
        weights = folder / "ref_unet" / "diffusion_pytorch_model.safetensors"
        changed = {name: 1.01 * one for name, one in load_file(weights).items()}
        weights.unlink()  # the running model may still read the old file
        save_file(changed, weights, metadata={"format": "pt"})
        (folder / "manifest.json").unlink()
        write_tiny_manifest(folder)
        assert client.post("/v1/admin/reload", json={}).status_code == 200, server.lines[-3:]
        assert client.get("/v1/models").json()["data"][0]["fingerprint"] != before
        again = client.post(DRAW, json=body)
        assert again.status_code == 200, again.text
        assert again.json()["reference_passes"] > 0
        old = client.post(DRAW, json=SHORT | {"subject_id": uploaded})
        check_refusal(old, 409, "subject_mismatch", "subject_id")


@pytest.mark.slow
def test_a_service_that_cannot_begin_says_why_in_one_line_and_exits_with_2(
    start_server: Any, tiny_bundle_folder: Path, tmp_path: Path
) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(tiny_bundle_folder, damaged)
    (damaged / "vae_decoder.onnx").write_bytes(b"")
    pickled = tmp_path / "pickled"
    shutil.copytree(tiny_bundle_folder, pickled)
    (pickled / "manifest.json").unlink()
    for file in pickled.rglob("*.safetensors"):
        file.rename(file.with_suffix(".bin"))
    config = tmp_path / "serve.toml"
    config.write_text("max_batches = 3\n")
    cases = [
        (damaged, (), "vae_decoder"),
        (pickled, (), "convert it to safetensors"),
        (tiny_bundle_folder, ("--device", "cuda:7"), "cuda"),
        (tiny_bundle_folder, ("--config", str(config)), "did you mean max_batch?"),
    ]
    running = [start_server(*flags, model=model, waits=False) for model, flags, _ in cases]
    for server, (_, _, text) in zip(running, cases, strict=True):
        assert server.ended(120) == 2, server.lines
        lines = [line for line in server.lines if "error:" in line]
        assert len(lines) == 1, server.lines
        assert text in lines[0]
        assert "Traceback" not in "".join(server.lines)
