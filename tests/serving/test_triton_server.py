"""The exported repository in a real Triton: the one that PyTriton ships.

BOOTPIG_RT_TRITON names a virtual environment with `nvidia-pytriton` and this package in it, for
Triton needs numpy 1; `make test-triton` makes one. The tests speak HTTP as Triton's clients do.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import struct
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from bootpig_rt.bundle.pair_config import read_pair_config
from bootpig_rt.bundle.shipped import default_model
from bootpig_rt.images.read_marks import is_marked_generated, read_parameters
from bootpig_rt.serving.triton_repository import TritonOptions, export_repository

pytestmark = pytest.mark.slow

READY_S, ANSWER_S = 90.0, 120.0


@dataclass(frozen=True)
class Server:
    """A Triton that runs."""

    port: int
    process: subprocess.Popen[bytes]

    def open(self, path: str, body: bytes = b"", **headers: str) -> Any:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}",
            data=body or None,
            headers={name.replace("_", "-"): value for name, value in headers.items()},
        )
        return urllib.request.urlopen(request, timeout=ANSWER_S)

    def infer(self, **tensors: Any) -> dict[str, Any]:
        """One picture, in the binary form of the protocol; texts, files and whole numbers."""
        inputs, blobs = [], []
        for name, value in tensors.items():
            data = value.encode() if isinstance(value, str) else value
            if isinstance(data, bytes):
                kind, blob = "BYTES", struct.pack("<I", len(data)) + data
            else:
                long = name == "SEED"
                kind, blob = ("INT64", struct.pack("<q", data)) if long else ("INT32", b"")
                blob = blob or struct.pack("<i", data)
            inputs.append(
                {
                    "name": name,
                    "shape": [1],
                    "datatype": kind,
                    "parameters": {"binary_data_size": len(blob)},
                }
            )
            blobs.append(blob)
        header = json.dumps({"inputs": inputs, "parameters": {"binary_data_output": True}}).encode()
        answer = self.open(
            "/v2/models/bootpig/infer",
            header + b"".join(blobs),
            Inference_Header_Content_Length=str(len(header)),
        )
        size = int(answer.headers["Inference-Header-Content-Length"])
        data = answer.read()
        told, rest, outputs = json.loads(data[:size]), data[size:], {}
        for one in told["outputs"]:
            length = one["parameters"]["binary_data_size"]
            outputs[one["name"]], rest = rest[:length], rest[length:]
            if one["datatype"] == "BYTES":
                outputs[one["name"]] = outputs[one["name"]][4:]
        return outputs


@pytest.fixture(scope="module")
def triton() -> Path:
    """The environment that has a Triton in it."""
    named = os.environ.get("BOOTPIG_RT_TRITON")
    if not named:
        pytest.skip("no Triton: make test-triton installs one and sets BOOTPIG_RT_TRITON")
    return Path(named).resolve()


@pytest.fixture(scope="module")
def server(triton: Path, root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with a model that answers once and one that streams."""
    work = tmp_path_factory.mktemp("triton")
    version = subprocess.check_output(
        [triton / "bin" / "python", "-c", "import sys; print('%d.%d' % sys.version_info[:2])"],
        text=True,
    ).strip()
    packages = triton / "lib" / f"python{version}" / "site-packages"
    shipped = packages / "pytriton" / "tritonserver"
    shutil.copytree(shipped / "backends", work / "backends")
    stub = "triton_python_backend_stub"
    shutil.copy(
        shipped / "python_backend_stubs" / version / stub, work / "backends" / "python" / stub
    )
    for name, is_streaming in (("bootpig", False), ("stream", True)):
        options = TritonOptions(name=name, threads=1, is_streaming=is_streaming)
        export_repository(default_model(), work / f"{name}-repository", options)
        # The environment may hold another version of the package.
        model = work / f"{name}-repository" / name / "1" / "model.py"
        model.write_text(f"import sys\n\nsys.path.insert(0, {str(root)!r})\n{model.read_text()}")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command: list[str | Path] = [
        shipped / "bin" / "tritonserver",
        f"--model-repository={work / 'bootpig-repository'}",
        f"--model-repository={work / 'stream-repository'}",
        f"--backend-directory={work / 'backends'}",
        "--http-address=127.0.0.1",
        f"--http-port={port}",
        "--allow-grpc=false",
        "--allow-metrics=false",
        "--exit-timeout-secs=20",
    ]
    environment = os.environ | {
        "PATH": f"{triton / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "LD_LIBRARY_PATH": str(packages / "nvidia_pytriton.libs"),
        "OMP_NUM_THREADS": "1",
    }
    with (work / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
    server = Server(port, process)
    try:
        _wait_until_ready(server, work / "log")
        yield server
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)


def _wait_until_ready(server: Server, log: Path) -> None:
    ends = time.monotonic() + READY_S
    while time.monotonic() < ends and server.process.poll() is None:
        try:
            server.open("/v2/health/ready")
            return
        except OSError:
            time.sleep(0.2)
    pytest.fail(f"Triton did not get ready:\n{log.read_text()[-4000:]}")


@pytest.fixture(scope="module")
def frog(root: Path) -> bytes:
    """A file of a reference image."""
    return (root / "bootpig_rt" / "assets" / "subjects" / "frog.png").read_bytes()


def test_triton_draws_a_subject_and_the_picture_says_that_it_is_generated(
    server: Server, frog: bytes, tmp_path: Path
) -> None:
    asked: dict[str, Any] = {
        "PROMPT": "a photo of a frog, on a beach",
        "REFERENCE_IMAGES": frog,
        "REFERENCE_PROMPT": "a photo of a frog",
        "NUM_INFERENCE_STEPS": 3,
        "SEED": 11,
    }
    outputs = server.infer(**asked)
    side = read_pair_config(default_model() / "pair.json").sample_size_px
    assert len(outputs["IMAGES"]) == side * side * 3
    (tmp_path / "out.png").write_bytes(outputs["PNG"])
    assert is_marked_generated(tmp_path / "out.png")
    assert read_parameters(tmp_path / "out.png")["seed"] == 11
    assert server.infer(**asked)["IMAGES"] == outputs["IMAGES"]


def test_a_bad_value_is_a_bad_request_and_the_next_one_is_drawn(server: Server) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        server.infer(PROMPT="a red ball", NUM_INFERENCE_STEPS=0)
    assert refused.value.code == 400
    assert "num_inference_steps is 0" in refused.value.read().decode()
    assert server.infer(PROMPT="a red ball", NUM_INFERENCE_STEPS=1)["PNG"]


def test_requests_share_the_engine_so_a_short_one_passes_a_long_one(server: Server) -> None:
    done: list[str] = []

    def ask(name: str, steps: int) -> None:
        server.infer(PROMPT=name, NUM_INFERENCE_STEPS=steps)
        done.append(name)

    long = threading.Thread(target=ask, args=("long", 120))
    long.start()
    time.sleep(0.5)  # it has begun
    for number in range(3):
        ask(f"short {number}", 2)
    long.join(ANSWER_S)
    assert done[-1] == "long"
    assert len(done) == 4


def test_a_stream_sends_previews_and_the_picture_last(server: Server) -> None:
    body = {"PROMPT": "a red ball", "NUM_INFERENCE_STEPS": 4, "PREVIEW_EVERY": 2, "SEED": 1}
    answer = server.open("/v2/models/stream/generate_stream", json.dumps(body).encode())
    lines = [line.decode(errors="replace") for line in answer if line.startswith(b"data: ")]
    told = [json.loads(line[6:], strict=False) for line in lines]
    assert [one["PROGRESS"] for one in told] == [[2, 4], [4, 4], [4, 4]]
    assert [("PARAMETERS" in one) for one in told] == [False, False, True]


def test_a_server_that_is_told_to_stop_unloads_both_models(server: Server) -> None:
    server.process.terminate()
    assert server.process.wait(30) == 0
