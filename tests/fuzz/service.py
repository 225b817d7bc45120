"""A real service to ask: `bootpig-rt serve` in a process of its own, and what it says of itself."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from bootpig_rt.server.guard.keys import token_hash
from tests.fuzz.corpus import ASSETS, ROOT, pictures
from tests.fuzz.requests import TOKEN

ANSWER_S = 60.0
_START_S = 60.0
_MODEL = ASSETS.parent / "pair"
_FLAGS = {
    "max-steps": "3",
    "max-images": "2",
    "max-side-px": "64",
    "max-image-pixels": str(1 << 20),
    "max-batch": "4",
    "body-timeout-s": "2",
    "tenant-subject-bytes": "4MiB",
    "device-table-bytes": "4MiB",
    "log-format": "json",
}


@dataclass
class Service:
    """A service that runs.

    Attributes:
        port: It listens at.
        process: Its own.
        lines: What it wrote, on both streams.
        subject: Id of a subject that it keeps.
    """

    port: int
    process: subprocess.Popen[str]
    lines: list[str]
    subject: str = ""


@contextmanager
def running_service(folder: Path) -> Iterator[Service]:
    """A service with the pair of the package, behind keys, that keeps its subjects."""
    salt = "0" * 32
    key = {"id": "0" * 8, "name": "fuzz", "role": "admin", "salt": salt, "created_at": ""}
    keys = folder / "keys.json"
    keys.write_text(
        json.dumps({"format": 1, "keys": [key | {"hash": token_hash(salt, TOKEN.encode())}]})
    )
    keys.chmod(0o600)
    flags = [word for name, text in _FLAGS.items() for word in (f"--{name}", text)]
    flags += ["--keys", str(keys), "--subject-folder", str(folder / "subjects"), "--port", "0"]
    command = [sys.executable, "-m", "bootpig_rt", "serve", str(_MODEL), *flags]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
    )
    lines: list[str] = []
    service = Service(0, process, lines)
    is_told = threading.Event()

    def read() -> None:
        assert process.stdout is not None
        with process.stdout as stream:
            for line in stream:
                lines.append(line)
                if (found := re.search(r"is ready at http://127\.0\.0\.1:(\d+)", line)) is not None:
                    service.port = int(found[1])
                    is_told.set()
        is_told.set()

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        is_told.wait(_START_S)
        if not service.port:
            raise RuntimeError("the service did not start: " + "".join(lines)[-2000:])
        yield service
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            process.wait(60.0)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        reader.join(10.0)


def asked(service: Service, method: str, path: str, body: bytes = b"", kind: str = "") -> bytes:
    """The answer to a plain request; anything but success is an error."""
    status, data = answered(service, method, path, body, kind)
    if status not in (200, 201):
        raise RuntimeError(f"{method} {path}: {status} {data[:300]!r}")
    return data


def answered(
    service: Service, method: str, path: str, body: bytes = b"", kind: str = ""
) -> tuple[int, bytes]:
    """Status and body of the answer to a plain request."""
    with closing(http.client.HTTPConnection("127.0.0.1", service.port, timeout=ANSWER_S)) as http_:
        headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": kind}
        http_.request(method, path, body or None, headers)
        answer = http_.getresponse()
        return answer.status, answer.read()


def gauges(service: Service) -> dict[str, float]:
    """Every number of `/metrics`, by its name with labels."""
    lines = asked(service, "GET", "/metrics").decode().splitlines()
    pairs = (line.rpartition(" ") for line in lines if not line.startswith("#"))
    return {name: float(number) for name, _, number in pairs}


def is_idle(service: Service) -> bool:
    """Nothing waits, runs or is answered but the question itself."""
    now = gauges(service)
    names = ("bootpig_queue_pictures", "bootpig_running_pictures")
    pictures_ = sum(number for name, number in now.items() if name.startswith(names))
    return pictures_ == 0 and now["bootpig_http_requests_in_progress"] == 1


def becomes_idle(service: Service, within_s: float = 30.0) -> bool:
    """Whether it is idle soon."""
    ends = time.monotonic() + within_s
    while time.monotonic() < ends:
        if is_idle(service):
            return True
        time.sleep(0.05)
    return False


def kept_subject(service: Service) -> str:
    """Id of a subject that inputs may name."""
    head = b'--b\r\nContent-Disposition: form-data; name="'
    parts = head + b'reference_prompt"\r\n\r\na dog\r\n' + head + b'image"; filename="x"\r\n\r\n'
    body = parts + pictures()[0] + b"\r\n--b--\r\n"
    made = asked(service, "POST", "/v1/subjects", body, "multipart/form-data; boundary=b")
    return str(json.loads(made)["id"])


def faults_told(lines: list[str]) -> list[str]:
    """Lines of the log that tell of a fault of the server's own."""
    found = []
    for line in lines:
        try:
            told = json.loads(line)
            level, text = told["level"], f"{told['message']} {told.get('exception', '')[-400:]}"
        except (ValueError, TypeError, LookupError):
            level, text = "error" if "Traceback" in line or "Warning:" in line else "", line
        if level in ("error", "critical"):
            found.append(" ".join(text.split())[:500])
    return found
