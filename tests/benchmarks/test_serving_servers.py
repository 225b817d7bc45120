"""The servers that ours is compared with, and processes of servers."""

from __future__ import annotations

import base64
import io
import sys
import time
from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image

from bootpig_rt.benchmarks.ours import torch_threads
from bootpig_rt.benchmarks.serving.drawer import Body, Drawer
from bootpig_rt.benchmarks.serving.process import ServerProcess
from bootpig_rt.benchmarks.serving.workload import new_photo
from bootpig_rt.errors import BootPIGError
from bootpig_rt.pipeline import Pipeline

# Inside diffusers' schedulers, with numpy 2.
pytestmark = pytest.mark.filterwarnings("default")


def body(number: int, *, size_px: int = 32, steps: int = 3, n: int = 1) -> Body:
    photo = new_photo(number)
    return Body(f"{photo.shows}, in the snow", photo.shows, photo.base64, size_px, steps, n, number)


def pixels(file: bytes) -> np.ndarray[tuple[int, ...], np.dtype[np.int16]]:
    return np.asarray(Image.open(io.BytesIO(file)), np.int16)


@pytest.fixture(scope="module")
def asked() -> list[Body]:
    """Requests of several subjects, sizes and steps; one asks for two pictures."""
    return [body(1), body(2, n=2), body(3, size_px=16), body(4, steps=2), body(5)]


def test_pictures_that_are_drawn_together_are_those_drawn_alone(
    tiny_pair_folder: Path, asked: list[Body]
) -> None:
    with torch_threads(1):
        alone = Drawer(tiny_pair_folder, threads=1, is_batched=False).draw(asked)
        together = Drawer(tiny_pair_folder, threads=1, is_batched=True).draw(asked)
    assert [one.batch for one in alone] == [1] * 5
    assert [one.batch for one in together] == [4, 4, 1, 1, 4]
    for one, other in zip(alone, together, strict=True):
        assert len(one.files) == len(other.files)
        for a, b in zip(one.files, other.files, strict=True):
            assert np.abs(pixels(a) - pixels(b)).max() <= 1


def test_they_draw_what_ours_draws(tiny_pair_folder: Path, asked: list[Body]) -> None:
    with torch_threads(1):
        (theirs,) = Drawer(tiny_pair_folder, threads=1, is_batched=False).draw(asked[1:2])
        with Pipeline(tiny_pair_folder, backend="torch", device="cpu") as pipe:
            ours = pipe(
                asked[1].prompt,
                reference_images=base64.b64decode(asked[1].image),
                reference_prompt=asked[1].reference_prompt,
                num_inference_steps=3,
                num_images_per_prompt=2,
                seed=2,
                reference_schedule="exact",
            )
    for mine, file in zip(ours.images, theirs.files, strict=True):
        assert np.abs(np.asarray(mine, np.int16) - pixels(file)).max() <= 1


def test_the_first_server_draws_and_refuses_what_it_cannot_read(tiny_pair_folder: Path) -> None:
    client = pytest.importorskip("fastapi.testclient").TestClient
    from bootpig_rt.benchmarks.serving.fastapi_server import create_app

    with torch_threads(1):
        app = create_app(Drawer(tiny_pair_folder, threads=1, is_batched=False))
        asked = msgspec.to_builtins(body(1))
        drawn = client(app).post("/draw", json=asked)
        assert drawn.status_code == 200
        assert pixels(base64.b64decode(drawn.json()["data"][0]["b64_json"])).shape == (32, 32, 3)
        assert client(app).post("/draw", json=asked | {"image": "AAAA"}).status_code == 400
        assert client(app).post("/draw", json=asked | {"colour": "red"}).status_code == 400


SERVER = """
import http.server, subprocess, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/ready" else 404)
        self.end_headers()
    def log_message(self, *words):
        print("asked", flush=True)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Name of a module that serves, and has a child."""
    (tmp_path / "little_server.py").write_text(SERVER)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return "little_server"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what processes hold")
def test_a_server_is_started_watched_and_ended_with_its_children(
    module: str, tmp_path: Path
) -> None:
    server = ServerProcess([module, "{port}"], ready="/ready", log=tmp_path / "log")
    try:
        server.wait_ready(30)
        usage = server.usage()
        assert usage.threads == 2  # one of each process
        assert usage.rss_bytes > 8 << 20
        assert usage.fds >= 6
        server.pause()
    finally:
        server.stop()
    assert not server.is_running
    # The child was told to end, too; the system forgets it a moment later.
    for _ in range(500):
        if not server.usage().threads:
            break
        time.sleep(0.01)
    assert server.usage().threads == 0
    assert server.tail == "asked"


def test_a_server_that_ends_says_why(module: str, tmp_path: Path) -> None:
    server = ServerProcess([module, "no-port"], ready="/ready", log=tmp_path / "log")
    with pytest.raises(BootPIGError, match=r"ended with 1: ValueError: invalid literal"):
        server.wait_ready(30)


def test_a_server_may_listen_where_an_earlier_one_did(module: str, tmp_path: Path) -> None:
    first = ServerProcess([module, "{port}"], ready="/ready", log=tmp_path / "log")
    first.wait_ready(30)
    first.kill()
    second = ServerProcess(
        [module, "{port}"], ready="/ready", log=tmp_path / "log", port=first.port
    )
    try:
        second.wait_ready(30)
    finally:
        second.stop()
