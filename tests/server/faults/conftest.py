"""How to hand a server what nobody should, and to look at what that does to its process."""

from __future__ import annotations

import http.client
import io
import json
import os
import socket
import struct
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image, ImageDraw

DRAW = "/v1/images/generations"
TIMEOUT_S = 60.0


@pytest.fixture(scope="session")
def check_refusal() -> Callable[..., dict[str, Any]]:
    """`check_refusal(answer, status, code, param)`: it is one, and tells nothing of the server."""

    def check(
        answer: httpx.Response, status: int, code: str | None = None, param: str | None = "any"
    ) -> dict[str, Any]:
        assert answer.status_code == status, answer.text[:500]
        assert answer.headers["content-type"] == "application/json"
        assert answer.headers["x-request-id"]
        error: dict[str, Any] = answer.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert code in (None, error["code"]), error
        assert param in ("any", error["param"]), error
        text = answer.text
        for secret in ("Traceback", ".py", "/tmp", "/root", "/home", "site-packages", " at 0x"):
            assert secret not in text
        assert len(error["message"]) < 500
        return error

    return check


@pytest.fixture(scope="session")
def gauges() -> Callable[[httpx.Client], dict[str, float]]:
    """`gauges(client)`: every number of `/metrics` by its name with labels."""

    def read(client: httpx.Client) -> dict[str, float]:
        found = {}
        for line in client.get("/metrics").text.splitlines():
            if not line.startswith("#"):
                name, _, value = line.rpartition(" ")
                found[name] = float(value)
        return found

    return read


@pytest.fixture(scope="session")
def is_idle(gauges: Callable[[httpx.Client], dict[str, float]]) -> Callable[[httpx.Client], bool]:
    """Whether nothing waits, runs or is being answered but the question itself."""

    def ask(client: httpx.Client) -> bool:
        now = gauges(client)
        pictures = [
            value
            for name, value in now.items()
            if name.startswith(("bootpig_queue_pictures", "bootpig_running_pictures"))
        ]
        return sum(pictures) == 0 and now["bootpig_http_requests_in_progress"] == 1

    return ask


@dataclass(frozen=True)
class Usage:
    """What a process takes."""

    pid: int

    def now_mib(self) -> float:
        return self._status("VmRSS") / 1024

    def forget_peak(self) -> None:
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")

    def peak_mib(self) -> float:
        return self._status("VmHWM") / 1024

    def cpu_s(self) -> float:
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def _status(self, name: str) -> int:
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return int(next(line.split()[1] for line in lines if line.startswith(f"{name}:")))


@pytest.fixture(scope="session")
def usage_of() -> Callable[[Any], Usage]:
    """`usage_of(server)`; a test that measures is skipped where the system cannot tell."""

    def find(server: Any) -> Usage:
        usage = Usage(server.process.pid)
        try:
            usage.forget_peak()
        except OSError:
            pytest.skip("this system does not tell what a process takes")
        return usage

    return find


@dataclass
class Answer:
    """What came back on a socket."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def code(self) -> str:
        return str(json.loads(self.body)["error"]["code"])


@pytest.fixture(scope="session")
def send_raw() -> Callable[..., Answer]:
    """`send_raw(server, head, body)`: bytes on a socket of their own, and the answer to them.

    `Host` is added to the head, and `Content-Length` unless the head says how long the body is.
    """

    def send(server: Any, head: str | bytes, body: bytes = b"") -> Answer:
        data = head.encode("latin-1") if isinstance(head, str) else head
        lines = [data, f"Host: 127.0.0.1:{server.port}".encode()]
        if b"content-length" not in data.lower() and b"transfer-encoding" not in data.lower():
            lines.append(f"Content-Length: {len(body)}".encode())
        where = ("127.0.0.1", server.port)
        with closing(socket.create_connection(where, TIMEOUT_S)) as connection:
            connection.sendall(b"\r\n".join([*lines, b"", b""]) + body)
            response = http.client.HTTPResponse(connection)
            response.begin()
            headers = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, headers, response.read())

    return send


@pytest.fixture(scope="session")
def form_of() -> Callable[..., tuple[str, bytes]]:
    """`form_of(*parts)`: content type and body of a form whose parts are given as bytes."""

    def make(*parts: bytes, boundary: bytes = b"b", is_whole: bool = True) -> tuple[str, bytes]:
        body = b"".join(b"--" + boundary + b"\r\n" + part + b"\r\n" for part in parts)
        end = b"--" + boundary + b"--\r\n" if is_whole else b""
        return f"multipart/form-data; boundary={boundary.decode('latin-1')}", body + end

    return make


@pytest.fixture(scope="session")
def part_of() -> Callable[..., bytes]:
    """`part_of(name, content, filename)`: one part of a form; `head` is added to its headers."""

    def make(
        name: str | bytes,
        content: bytes = b"",
        filename: str | bytes | None = None,
        head: bytes = b"",
    ) -> bytes:
        def raw(text: str | bytes) -> bytes:
            return text if isinstance(text, bytes) else text.encode()

        line = b'Content-Disposition: form-data; name="' + raw(name) + b'"'
        if filename is not None:
            line += b'; filename="' + raw(filename) + b'"'
        return line + b"\r\n" + head + b"\r\n" + content

    return make


@pytest.fixture(scope="session")
def disc() -> Callable[..., Image.Image]:
    """`disc(mode, size)`: a red disc on white, or on nothing in a mode with transparency."""

    def make(mode: str = "RGB", size: tuple[int, int] = (48, 48)) -> Image.Image:
        image = Image.new("RGBA", size)
        box = (6, 6, size[0] - 6, size[1] - 6)
        ImageDraw.Draw(image).ellipse(box, fill=(200, 40, 30, 255))
        if mode in ("RGBA", "LA"):
            return image.convert(mode)
        white = Image.new("RGB", size, "white")
        white.paste(image, mask=image)
        return white.convert(mode)

    return make


@pytest.fixture(scope="session")
def encoded() -> Callable[..., bytes]:
    """`encoded(image, format, ...)`: the file of a picture."""

    def make(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
        stream = io.BytesIO()
        image.save(stream, format, **options)
        return stream.getvalue()

    return make


@pytest.fixture(scope="session")
def png_chunk() -> Callable[[bytes, bytes], bytes]:
    """`png_chunk(kind, data)`: one chunk with its length and checksum."""

    def make(kind: bytes, data: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + checksum

    return make


@pytest.fixture(scope="session")
def png_of_size(png_chunk: Callable[[bytes, bytes], bytes]) -> Callable[..., bytes]:
    """`png_of_size(width, height)`: a small file that says that it has so many pixels."""

    def make(width: int, height: int, *, has_pixels: bool = False) -> bytes:
        head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
        rows = (b"\0" * (3 * width + 1)) * height if has_pixels else b""
        chunks = (b"IHDR", head), (b"IDAT", zlib.compress(rows, 9)), (b"IEND", b"")
        return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(kind, data) for kind, data in chunks)

    return make


class Faults:
    """What is going wrong in a server."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @contextmanager
    def __call__(self, name: str, text: str = "") -> Iterator[None]:
        """`with faults("oom")`: it goes wrong in the block."""
        new = self.folder / f"{name}.new"
        new.write_text(text)
        new.rename(self.folder / name)
        try:
            yield
        finally:
            (self.folder / name).unlink()

    def was_met(self, name: str) -> bool:
        """Whether the server waits, or has waited, at it."""
        return (self.folder / f"{name}.met").exists()


@dataclass
class Faulty:
    """A server in which something can go wrong."""

    server: Any
    faults: Faults


@pytest.fixture(scope="session")
def run_faulty(run_server: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """`with run_faulty(*flags) as faulty`: a server in which something can go wrong.

    Faults that are named in `on` are there from the beginning.
    """
    program = str(Path(__file__).with_name("faulty_server.py"))

    @contextmanager
    def run(*flags: str, on: Sequence[str] = (), **options: Any) -> Iterator[Faulty]:
        folder = tmp_path_factory.mktemp("faults")
        for name in on:
            (folder / name).touch()
        with run_server(*flags, program=(program, str(folder)), **options) as server:
            yield Faulty(server, Faults(folder))

    return run


class Background(threading.Thread):
    """A request on a thread of its own."""

    def __init__(self, server: Any, body: dict[str, Any], **options: Any) -> None:
        super().__init__(daemon=True)
        self._server, self._body, self._options = server, body, options
        self._answer: httpx.Response | None = None
        self.error: Exception | None = None
        self.start()

    def run(self) -> None:
        try:
            with self._server.client() as client:
                self._answer = client.post(DRAW, json=self._body, **self._options)
        except httpx.HTTPError as error:
            self.error = error

    @property
    def answer(self) -> httpx.Response:
        """Waited for."""
        self.join(TIMEOUT_S)
        assert self._answer is not None, self.error
        return self._answer


@pytest.fixture(scope="session")
def in_background() -> Callable[..., Background]:
    """`in_background(server, body)`: a picture is asked for; `.answer` waits for it."""
    return Background
