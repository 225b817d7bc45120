"""One piece of requests to a real service, over real sockets, several at once.

    python -m tests.fuzz.asking SEED BEGIN END WORK

Every answer has to be one that docs/reference/http.md names, and none may say that the server is at
fault. Afterwards the service is ready, nothing is on its way, and it takes what it took before.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import itertools
import json
import re
import socket
import sys
import threading
import time
from collections import Counter
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec

from tests.fuzz.bodies import SUBJECT_ID
from tests.fuzz.corpus import ROOT
from tests.fuzz.kinds import input_of
from tests.fuzz.requests import is_whole, parts_of
from tests.fuzz.results import Piece
from tests.fuzz.service import (
    ANSWER_S,
    Service,
    answered,
    asked,
    becomes_idle,
    faults_told,
    kept_subject,
    running_service,
)
from tests.fuzz.usage import Usage
from tests.fuzz.worker import Findings

CONNECTIONS = 6
MAX_GROWTH_MIB = 48.0
MAX_FILES_MORE = 8

_PAUSE_S = 0.002
_DOCS = ROOT / "docs" / "reference" / "http.md"


@dataclass(frozen=True)
class Answer:
    """What came back of a request.

    Attributes:
        status: None where the connection was closed without an answer.
        code: Of an error.
    """

    status: int | None
    code: str | None = None


def documented_codes() -> dict[int, set[str]]:
    """Codes of errors by status, from the table of the docs."""
    found: dict[int, set[str]] = {}
    section = _DOCS.read_text().partition("\n## Codes\n")[2]
    for status, codes in re.findall(r"^\| (\d{3}) \| ([^|]+) \|", section, re.M):
        found.setdefault(int(status), set()).update(re.findall(r"`(\w+)`", codes))
    return found


def sent(service: Service, data: bytes) -> Answer:
    """Send one input as it says, and read what comes back."""
    sending, request = parts_of(data)
    request = request.replace(SUBJECT_ID.encode(), service.subject.encode())
    where = ("127.0.0.1", service.port)
    with closing(socket.create_connection(where, ANSWER_S)) as connection:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it may have answered
            for begin, end in itertools.pairwise([0, *sending.cuts, len(request)]):
                connection.sendall(request[begin:end])
                if end < len(request):
                    time.sleep(_PAUSE_S)
        if sending.ends == "leave late":
            time.sleep(0.02)
        if sending.ends != "wait":
            return Answer(None)
        try:
            got = http.client.HTTPResponse(connection, method=_method(request))
            got.begin()
            body = got.read()
        except (http.client.BadStatusLine, ConnectionError):
            return Answer(None)
    if sending.is_drawn and got.status == 201:
        return _drawn(service, str(json.loads(body)["id"]))
    return Answer(got.status, _code(got.status, got.getheader("content-type") or "", body))


def _code(status: int, kind: str, body: bytes) -> str | None:
    """Of an error, in an answer or in a stream."""
    if status >= 400 and body:
        return str(json.loads(body)["error"]["code"])
    if "event-stream" in kind:
        for line in io.BytesIO(body):
            if line.startswith(b"data:") and b'"error"' in line[:40]:
                return str(json.loads(line[5:])["error"]["code"])
    return None


def _drawn(service: Service, subject: str) -> Answer:
    """What comes of a subject that was taken; the first answer that is no success, if there is."""
    one = f"/v1/subjects/{subject}"
    wish = {"prompt": "an owl, on a beach", "num_inference_steps": 2, "subject_id": subject}
    body = json.dumps(wish).encode()
    asking = (
        ("GET", one, b""),
        ("GET", f"{one}/preview", b""),
        ("GET", f"{one}/file", b""),
        ("POST", "/v1/images/generations", body),
        ("DELETE", one, b""),
    )
    found = Answer(201)
    for method, path, data in asking:
        status, got = answered(service, method, path, data, "application/json")
        if status >= 400 and found.status == 201 and status != 404:  # another may delete it, too
            found = Answer(status, _code(status, "", got))
    return found


def _method(request: bytes) -> str:
    return request.partition(b" ")[0].decode("latin-1")


def judged(answer: Answer, data: bytes, documented: dict[int, set[str]]) -> str | None:
    """What is wrong with an answer; None where nothing is."""
    sending, request = parts_of(data)
    status, code = answer.status, answer.code
    if status is None:
        is_owed = sending.ends == "wait" and is_whole(request)
        return "no answer to a whole request" if is_owed else None
    codes = documented.get(status)
    is_late = code == "deadline_exceeded" and b"deadline_s" in request  # it was asked for
    if status >= 500 and not is_late:
        return f"{status} {code}"
    if status >= 400 and codes is None:
        return f"a status that the docs do not name: {status} {code}"
    if code is not None and status >= 400 and code not in (codes or ()):
        return f"a code that the docs do not name: {status} {code}"
    if 300 <= status < 400:
        return f"a status that the docs do not name: {status}"
    return None


class Asking:
    """Clients on threads of their own, each of which takes the next input."""

    def __init__(self, service: Service, findings: Findings, seed: int, made: Path) -> None:
        self._service, self._findings, self._seed = service, findings, seed
        self._made, self._documented = made, documented_codes()
        self._lock = threading.Lock()
        self.outcomes: Counter[str] = Counter()

    def run(self, begin: int, end: int) -> None:
        """Ask all of it."""
        self._next = iter(range(begin, end))
        clients = [threading.Thread(target=self._ask, daemon=True) for _ in range(CONNECTIONS)]
        for one in clients:
            one.start()
        for one in clients:
            one.join()

    def _ask(self) -> None:
        while True:
            with self._lock:  # drawing them is not the server's work, and the corpus is shared
                index = next(self._next, None)
                if index is None:
                    return
                data = input_of("request", self._seed, index, self._made)
            try:
                answer = sent(self._service, data)
                wrong = judged(answer, data, self._documented)
                told = "left" if answer.status is None else f"{answer.status} {answer.code or ''}"
            except (OSError, ValueError, LookupError, http.client.HTTPException) as error:
                told = type(error).__name__
                wrong = f"no answer that can be read: {told} ({error})"
            with self._lock:
                self.outcomes[told.strip()] += 1
                if wrong is not None:
                    self._findings.add(index, wrong, data)


def run_piece(seed: int, begin: int, end: int, work: Path) -> Piece:
    """Ask a new service some things, several at once."""
    start = time.monotonic()
    findings = Findings(work / "found", "request", seed)
    with TemporaryDirectory() as folder, running_service(Path(folder)) as service:
        service.subject = kept_subject(service)
        usage = Usage(service.process.pid)
        asking = Asking(service, findings, seed, work / "made")
        asking.run(begin, end)
        becomes_idle(service)
        settled_mib, num_files = usage.memory_mib(), usage.num_files()
        outcomes = dict(asking.outcomes)
        asking.run(begin, end)  # what was met before takes no more memory
        if not becomes_idle(service):
            findings.add(-1, "gauges that do not come to zero", b"")
        asked(service, "GET", "/readyz")
        growth_mib = usage.memory_mib() - settled_mib
        new_files = usage.num_files() - num_files
        peak_mib = usage.peak_mib()
        checks = {"files": float(new_files), "peak_mib": peak_mib}
    if growth_mib > MAX_GROWTH_MIB:
        findings.add(-1, f"growth ({growth_mib:.0f} MiB)", b"")
    if new_files > MAX_FILES_MORE:
        findings.add(-1, f"files left open ({new_files})", b"")
    for line in faults_told(service.lines):
        findings.add(-1, f"a fault in the log ({line})", b"")
    if service.process.returncode != 0:
        findings.add(-1, f"the service ended with {service.process.returncode}", b"")
    return Piece(
        kind="request",
        seed=seed,
        begin=begin,
        end=end,
        outcomes=outcomes,
        findings=findings.all,
        seconds=time.monotonic() - start,
        peak_mib=peak_mib - settled_mib,
        growth_mib=growth_mib,
        checks=checks,
    )


def main(words: list[str]) -> int:
    """Print the piece as JSON."""
    seed, begin, end, work = words
    piece = run_piece(int(seed), int(begin), int(end), Path(work))
    sys.stdout.buffer.write(msgspec.json.encode(piece))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
