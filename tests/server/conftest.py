"""Real servers: processes of their own, on sockets of their own, with the small bundle."""

from __future__ import annotations

import asyncio
import io
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, Protocol

import httpx
import numpy as np
import pytest
from PIL import Image, ImageDraw

from bootpig_rt.server.app import create_app
from bootpig_rt.server.guard.keys import Principal
from bootpig_rt.server.local import local_loaders, model_folders
from bootpig_rt.server.metrics import Metrics
from bootpig_rt.server.options import ServerOptions
from bootpig_rt.server.output import Output
from bootpig_rt.server.service import Service

START_TIMEOUT_S = 60.0


@dataclass
class ServerProcess:
    """A server that runs.

    Attributes:
        url: Where it listens.
        process: Itself.
        lines: What it wrote so far, on both streams.
    """

    url: str
    process: subprocess.Popen[str]
    lines: list[str] = field(default_factory=list)
    reader: threading.Thread = field(default_factory=threading.Thread)

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def client(self, **options: object) -> httpx.Client:
        """A client whose requests go to this server."""
        # Reading the certificates of all the world takes longer than most requests.
        usual: dict[str, Any] = {"base_url": self.url, "timeout": 60.0, "verify": False}
        return httpx.Client(**(usual | options))

    def stop(self, timeout_s: float = 30.0) -> int:
        """Tell it to stop; its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.ended(timeout_s)

    def ended(self, timeout_s: float = 30.0) -> int:
        """Wait for its end; its exit code."""
        code = self.process.wait(timeout_s)
        self.reader.join(timeout_s)
        return code


class StartServer(Protocol):
    """`start_server(*flags)`, see the fixture."""

    def __call__(
        self, *flags: str, model: Path | None = ..., waits: bool = ...
    ) -> ServerProcess: ...


def _start(
    root: Path,
    flags: tuple[str, ...],
    model: Path,
    *,
    waits: bool = True,
    program: tuple[str, ...] = ("-m", "bootpig_rt", "serve"),
) -> ServerProcess:
    command = [sys.executable, *program, str(model), "--port", "0", *flags]
    environment = os.environ | {
        "PYTHONPATH": str(root),
        "PYTHONSAFEPATH": "1",
        "PYTHONUNBUFFERED": "1",
    }
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    )
    server = ServerProcess("", process)
    is_told = threading.Event()

    def read() -> None:
        assert process.stdout is not None
        with process.stdout as lines:
            for line in lines:
                server.lines.append(line)
                if "is ready at http" in line:
                    server.url = line.rsplit(" ", 1)[1].strip()
                    is_told.set()
        is_told.set()

    server.reader = threading.Thread(target=read, daemon=True)
    server.reader.start()
    if waits:
        assert is_told.wait(START_TIMEOUT_S), "".join(server.lines)
        assert server.url, "".join(server.lines)
    return server


@pytest.fixture
def start_server(root: Path, tiny_bundle_folder: Path) -> Iterator[StartServer]:
    """A function that starts a server with some flags, and waits until it is ready."""
    started: list[ServerProcess] = []

    def start(*flags: str, model: Path | None = None, waits: bool = True) -> ServerProcess:
        started.append(_start(root, flags, model or tiny_bundle_folder, waits=waits))
        return started[-1]

    yield start
    for server in started:
        if server.process.poll() is None:
            server.process.kill()
        server.ended()


@pytest.fixture(scope="session")
def run_server(
    root: Path, tiny_bundle_folder: Path
) -> Callable[..., AbstractContextManager[ServerProcess]]:
    """`with run_server(*flags) as server`, for fixtures that live longer than a test.

    `program` is another one that takes the model and the flags of `bootpig-rt serve`.
    """

    @contextmanager
    def run(*flags: str, model: Path | None = None, **options: Any) -> Iterator[ServerProcess]:
        running = _start(root, flags, model or tiny_bundle_folder, **options)
        try:
            yield running
        finally:
            if running.process.poll() is None:
                running.process.send_signal(signal.SIGTERM)
            try:
                running.ended()
            except subprocess.TimeoutExpired:
                running.process.kill()
                running.ended()
                raise

    return run


@pytest.fixture(scope="session")
def server(root: Path, tiny_bundle_folder: Path) -> Iterator[ServerProcess]:
    """One server for all tests of a worker that only ask it things."""
    running = _start(root, (), tiny_bundle_folder, waits=True)
    yield running
    running.stop()


@pytest.fixture(scope="session")
def followed_server(root: Path, controlled_bundle_folder: Path) -> Iterator[ServerProcess]:
    """The same with a model that has controls."""
    running = _start(root, (), controlled_bundle_folder, waits=True)
    yield running
    running.stop()


@pytest.fixture
def client(server: ServerProcess) -> Iterator[httpx.Client]:
    """A client of the shared server."""
    with server.client() as one:
        yield one


@pytest.fixture(scope="session")
def reference_png() -> bytes:
    """A red disc on a transparent ground."""
    image = Image.new("RGBA", (48, 48))
    ImageDraw.Draw(image).ellipse((6, 6, 42, 42), fill=(200, 40, 30, 255))
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture(scope="session")
def eventually() -> Callable[[Callable[[], bool]], bool]:
    """Whether something comes true within some seconds."""

    def wait(is_true: Callable[[], bool], timeout_s: float = 10.0) -> bool:
        ends = time.monotonic() + timeout_s
        while time.monotonic() < ends:
            if is_true():
                return True
            time.sleep(0.02)
        return is_true()

    return wait


class AskService(Protocol):
    """`ask_service(output, method, path, ...)`, see the fixture."""

    def __call__(
        self, output: Output, method: str, path: str, **options: Any
    ) -> httpx.Response: ...


@contextmanager
def _local_service(options: ServerOptions) -> Iterator[tuple[Service, asyncio.Runner]]:
    metrics = Metrics(model_folders(options))
    service = Service(options, local_loaders(options, metrics), Output(), metrics)
    with asyncio.Runner() as runner:
        runner.run(service.start())
        yield service, runner
        runner.run(service.close())


@pytest.fixture(scope="module")
def local_service(tiny_bundle_folder: Path) -> Iterator[tuple[Service, asyncio.Runner]]:
    """A service in this process, for tests that give it parts of their own."""
    with _local_service(ServerOptions(model=str(tiny_bundle_folder), max_batch=4)) as running:
        yield running


@pytest.fixture
def ask_service(local_service: tuple[Service, asyncio.Runner]) -> Iterator[AskService]:
    """A function that sends a request to a service whose pictures leave through `output`."""
    with _asking(*local_service) as ask:
        yield ask


@pytest.fixture
def run_service() -> Callable[[ServerOptions], AbstractContextManager[AskService]]:
    """`with run_service(options) as ask`: the same for a service with options of its own."""

    @contextmanager
    def run(options: ServerOptions) -> Iterator[AskService]:
        with _local_service(options) as (service, runner), _asking(service, runner) as ask:
            yield ask

    return run


@contextmanager
def _asking(service: Service, runner: asyncio.Runner) -> Iterator[AskService]:
    app = create_app(service)

    async def named(scope: Any, receive: Any, send: Any) -> None:
        principal = Principal("", "admin")
        scope["state"] = {"request_id": f"req_{secrets.token_hex(8)}", "principal": principal}
        await app(scope, receive, send)

    def ask(output: Output, method: str, path: str, **options: Any) -> httpx.Response:
        async def send() -> httpx.Response:
            transport = httpx.ASGITransport(named, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
                return await client.request(method, path, **options)

        service.output = output
        return runner.run(send())

    yield ask
    service.output = Output()


@pytest.fixture
def write_network(tmp_path: Path) -> Callable[..., Path]:
    """A function that writes a network with the inputs and outputs of open_nsfw.

    Its score is the sigmoid of blue less green, of the mean. Its input is BGR less the mean of
    open_nsfw, so that grey scores sigmoid((104 - 117) / 100). With `fails`, it has no number for a
    picture that is not all of one colour.
    """
    onnx: Any = pytest.importorskip("onnx", reason="the extra `export` is not installed")
    helper, numpy_helper = onnx.helper, onnx.numpy_helper

    def write(
        side_px: int = 224,
        *,
        factor: float = 0.01,
        columns: int = 2,
        fails: bool = False,
        name: str = "m.onnx",
    ) -> Path:
        weights = np.zeros((3, columns), np.float32)
        weights[0, -1], weights[1, -1] = factor, -factor
        nodes = [helper.make_node("ReduceMean", ["input:0"], ["m"], axes=[1, 2], keepdims=0)]
        if fails:
            nodes += [
                helper.make_node("ReduceMax", ["input:0"], ["high"], axes=[1, 2], keepdims=0),
                helper.make_node("Sub", ["m", "high"], ["below"]),
                helper.make_node("Sqrt", ["below"], ["root"]),
                helper.make_node("Add", ["m", "root"], ["mean"]),
            ]
        nodes += [
            helper.make_node("MatMul", ["mean" if fails else "m", "weights"], ["logits"]),
            helper.make_node("Softmax", ["logits"], ["outputs"], axis=-1),
        ]
        graph = helper.make_graph(
            nodes,
            "tiny",
            [helper.make_tensor_value_info("input:0", 1, ["n", side_px, side_px, 3])],
            [helper.make_tensor_value_info("outputs", 1, ["n", columns])],
            [numpy_helper.from_array(weights, "weights")],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 9)], ir_version=4)
        onnx.save(model, tmp_path / name)
        return tmp_path / name

    return write


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, bytes]]]:
    """Paths and bodies that a collector of OpenTelemetry got; all that begins now sends there."""
    got: list[tuple[str, bytes]] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append((self.path, self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Collector) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        where = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", where)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield got
        server.shutdown()
