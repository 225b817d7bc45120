"""The nodes in a real ComfyUI on the CPU, through its HTTP API and its WebSocket.

BOOTPIG_RT_COMFYUI names its folder, BOOTPIG_RT_COMFYUI_PYTHON the Python that has what it needs
and this package's dependencies; without them the tests are skipped.
"""

from __future__ import annotations

import asyncio
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bootpig_rt.backends.pair_options import PairOptions
from bootpig_rt.bundle.shipped import default_model
from bootpig_rt.images.picture import is_marked_generated, read_parameters
from bootpig_rt.pipeline import Pipeline

COMFYUI = os.environ.get("BOOTPIG_RT_COMFYUI", "")
PYTHON = os.environ.get("BOOTPIG_RT_COMFYUI_PYTHON", sys.executable)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not COMFYUI, reason="BOOTPIG_RT_COMFYUI names no folder of a ComfyUI"),
]
aiohttp = pytest.importorskip("aiohttp", reason="the tests listen to ComfyUI's WebSocket")


class Server:
    """A ComfyUI that runs."""

    def __init__(self, port: int, folder: Path) -> None:
        self.url, self.folder = f"http://127.0.0.1:{port}", folder

    def ask(self, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.url}{path}", data)
        with urllib.request.urlopen(request, timeout=60) as answer:
            text = answer.read()
        return json.loads(text) if text else None

    def run(self, workflow: Any, *, interrupt_at: int | None = None) -> list[Any]:
        """Queue a workflow; what the WebSocket says until it ends: dicts, and bytes of previews."""
        return asyncio.run(self._run(workflow, interrupt_at))

    async def _run(self, workflow: Any, interrupt_at: int | None) -> list[Any]:
        heard: list[Any] = []
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(f"{self.url}/ws?clientId=test", max_msg_size=0) as ws,
        ):
            body = {"prompt": workflow, "client_id": "test", "extra_data": {"extra_pnginfo": {}}}
            body["extra_data"]["extra_pnginfo"]["workflow"] = {"name": "of a test"}
            asked = await asyncio.to_thread(self.ask, "/prompt", body)
            ends = ("execution_success", "execution_error", "execution_interrupted")
            while True:
                message = await asyncio.wait_for(ws.receive(), 300)
                if message.type == aiohttp.WSMsgType.BINARY:
                    heard.append(message.data)
                    continue
                told = json.loads(message.data)
                heard.append(told)
                data = told["data"]
                if data.get("prompt_id") not in (None, asked["prompt_id"]):
                    continue
                if told["type"] == "progress" and data["value"] == interrupt_at:
                    await asyncio.to_thread(self.ask, "/interrupt", {})
                if told["type"] in ends:
                    return heard

    def saved(self, heard: list[Any], node: str) -> list[Path]:
        """Files that a node said it saved."""
        for told in heard:
            if isinstance(told, dict) and told["type"] == "executed":
                if told["data"]["node"] == node:
                    return [
                        self.folder / "output" / each["subfolder"] / each["filename"]
                        for each in told["data"]["output"]["images"]
                    ]
        return []


@pytest.fixture(scope="module")
def server(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("comfyui")
    for name in ("custom_nodes", "input", "output", "models"):
        (folder / name).mkdir()
    (folder / "custom_nodes" / "bootpig_rt").symlink_to(root / "integrations" / "comfyui")
    shutil.copy(root / "bootpig_rt" / "assets" / "subjects" / "owl.png", folder / "input")
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    command = [PYTHON, "main.py", "--cpu", "--port", str(port), "--base-directory", str(folder)]
    command += ["--disable-auto-launch", "--disable-api-nodes", "--database-url", "sqlite://"]
    environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONSAFEPATH", None)  # ComfyUI imports from its own folder
    log = (folder / "log").open("w")
    process = subprocess.Popen(
        command, cwd=COMFYUI, env=environment, stdout=log, stderr=subprocess.STDOUT
    )
    made = Server(port, folder)
    try:
        for _ in range(1200):
            try:
                made.ask("/system_stats")
                break
            except (urllib.error.URLError, ConnectionError):
                assert process.poll() is None, (folder / "log").read_text()[-3000:]
                time.sleep(0.25)
        yield made
    finally:
        process.terminate()
        process.wait(timeout=60)
        log.close()


@pytest.fixture
def workflow(root: Path) -> Any:
    folder = root / "integrations" / "comfyui" / "example_workflows"
    return json.loads((folder / "subject_in_a_scene_api.json").read_text())


def types_of(heard: list[Any]) -> list[str]:
    return [told["type"] for told in heard if isinstance(told, dict)]


def test_comfyui_knows_the_nodes(server: Server) -> None:
    known = server.ask("/object_info")
    names = {name for name, node in known.items() if node["category"] == "BootPIG"}
    assert names == {
        *("BootPIGLoadPair", "BootPIGEncodeSubject", "BootPIGOutlines", "BootPIGApplyControl"),
        *("BootPIGSample", "BootPIGInpaint", "BootPIGSave"),
    }
    assert known["BootPIGSave"]["output_node"]
    assert server.ask("/object_info/BootPIGSample")["BootPIGSample"]["output_name"] == [
        "images",
        "parameters",
    ]


def test_the_example_draws_what_the_pipeline_draws(server: Server, workflow: Any) -> None:
    workflow["5"]["inputs"] |= {"pictures": 2, "steps": 6}
    heard = server.run(workflow)
    assert types_of(heard)[-1] == "execution_success", heard[-1]
    paths = server.saved(heard, "6")
    assert len(paths) == 2
    with Pipeline(default_model()) as pipe:
        result = pipe(
            workflow["5"]["inputs"]["prompt"],
            reference_images=server.folder / "input" / "owl.png",
            reference_prompt="a photo of an owl",
            num_inference_steps=6,
            num_images_per_prompt=2,
            seed=1,
        )
    for path, expected, parameters in zip(paths, result.images, result.parameters, strict=True):
        with Image.open(path) as image:
            off = np.abs(np.asarray(image, np.int16) - np.asarray(expected, np.int16))
            assert json.loads(image.info["prompt"])["5"]["inputs"]["steps"] == 6
            assert json.loads(image.info["workflow"]) == {"name": "of a test"}
        assert off.max() <= 2  # the backend that `auto` took there may be another
        assert is_marked_generated(path)
        assert read_parameters(path)["seed"] == parameters.seed


def test_the_example_with_a_map_draws_what_the_pipeline_draws(server: Server, root: Path) -> None:
    folder = root / "integrations" / "comfyui" / "example_workflows"
    workflow = json.loads((folder / "follow_a_map_api.json").read_text())
    depth = np.repeat(np.linspace(0, 120, 64).astype(np.uint8)[:, None], 64, axis=1)
    depth[16:56, 8:32] = 230
    Image.fromarray(depth).save(server.folder / "input" / "depth.png")
    workflow["8"]["inputs"] |= {"steps": 4}
    heard = server.run(workflow)
    assert types_of(heard)[-1] == "execution_success", heard[-1]
    (path,) = server.saved(heard, "9")
    with Pipeline(pair=PairOptions(controls="depth")) as pipe:
        (expected,) = pipe(
            workflow["8"]["inputs"]["prompt"],
            reference_images=server.folder / "input" / "owl.png",
            reference_prompt="a photo of an owl",
            num_inference_steps=4,
            seed=1,
            control_image={"depth": depth},
        ).images
    with Image.open(path) as image:
        off = np.abs(np.asarray(image, np.int16) - np.asarray(expected, np.int16))
    assert off.max() <= 2
    assert [one["kind"] for one in read_parameters(path)["controls"]] == ["depth"]


def test_steps_and_previews_come_over_the_websocket(server: Server, workflow: Any) -> None:
    workflow["5"]["inputs"] |= {"pictures": 1, "steps": 5, "seed": 2}
    heard = server.run(workflow)
    steps = [
        told["data"]["value"]
        for told in heard
        if isinstance(told, dict) and told["type"] == "progress" and told["data"]["node"] == "5"
    ]
    assert [value for value in steps if value][-5:] == [1, 2, 3, 4, 5]
    previews = [told for told in heard if isinstance(told, bytes)]
    assert previews
    picture = Image.open(io.BytesIO(previews[-1][previews[-1].index(b"\xff\xd8") :]))
    assert picture.format == "JPEG"


def test_an_interrupt_in_the_middle_ends_the_run_and_the_next_one_draws(
    server: Server, workflow: Any
) -> None:
    workflow["5"]["inputs"] |= {"pictures": 1, "steps": 300, "seed": 3}
    heard = server.run(workflow, interrupt_at=4)
    assert types_of(heard)[-1] == "execution_interrupted", heard[-1]
    assert heard[-1]["data"]["node_id"] == "5"
    workflow["5"]["inputs"] |= {"steps": 2}
    after = server.run(workflow)
    assert types_of(after)[-1] == "execution_success", after[-1]
    cached = next(t for t in after if isinstance(t, dict) and t["type"] == "execution_cached")
    assert {"1", "2", "3"} <= set(cached["data"]["nodes"])  # the pair and its subject were kept
    assert len(server.saved(after, "6")) == 1


def test_a_wrong_folder_is_refused_when_it_is_queued(server: Server, workflow: Any) -> None:
    workflow["1"]["inputs"]["folder"] = "/nowhere"
    with pytest.raises(urllib.error.HTTPError) as caught:
        server.run(workflow)
    told = json.loads(caught.value.read())
    caught.value.close()
    (error,) = told["node_errors"]["1"]["errors"]
    assert "/nowhere is no folder of a pair or a bundle" in error["details"]


def test_what_cannot_be_drawn_is_told_at_its_node(server: Server, workflow: Any) -> None:
    workflow["5"]["inputs"]["reference_schedule"] = "soon"
    last = server.run(workflow)[-1]
    assert last["type"] == "execution_error"
    assert last["data"]["node_id"] == "5"
    assert "reference schedule is 'soon', expected exact" in last["data"]["exception_message"]
