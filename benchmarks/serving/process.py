"""A server in a process of its own, with whatever processes it starts."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bootpig_rt.errors import BootPIGError

_POLL_S = 0.05
_STOP_S = 15.0


@dataclass(frozen=True)
class Usage:
    """What a server holds, with all its processes.

    Attributes:
        rss_bytes: Resident memory.
        fds: Open files, sockets and pipes.
        threads: In all.
    """

    rss_bytes: int
    fds: int
    threads: int


class ServerProcess:
    """A server that was started, in a group of processes of its own.

    Args:
        words: Of the command, after `python -m`; `{port}` in them becomes a free port.
        ready: Path that answers 200 when it is ready.
        log: File for what it writes.
        port: To listen on; None: a free one.
        environment: In addition to that of this process.
    """

    def __init__(
        self,
        words: Sequence[str],
        *,
        ready: str,
        log: Path,
        port: int | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Start it; `wait_ready` waits."""
        self.port = _free_port() if port is None else port
        self._ready, self._log = ready, log
        self._words = [word.format(port=self.port) for word in words]
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as file:
            self._process = subprocess.Popen(
                [sys.executable, "-m", *self._words], stdin=subprocess.DEVNULL, stdout=file,
                stderr=file, env={**os.environ, **(environment or {})}, start_new_session=True,
            )  # fmt: skip

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """Of the process that was started."""
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Has it not ended?"""
        return self._process.poll() is None

    def wait_ready(self, timeout_s: float = 180.0) -> float:
        """Wait until it answers that it is ready; seconds that this took.

        Raises:
            BootPIGError: It ended, or is not ready in time; the end of its log is in the message.
        """
        start = time.monotonic()
        while time.monotonic() - start < timeout_s:
            if not self.is_running:
                raise BootPIGError(
                    f"{self._name} ended with {self._process.returncode}: {self.tail}"
                )
            with contextlib.suppress(OSError, urllib.error.URLError):
                with urllib.request.urlopen(self.url + self._ready, timeout=2) as answer:
                    if answer.status == 200:
                        return time.monotonic() - start
            time.sleep(_POLL_S)
        self.stop()
        raise BootPIGError(f"{self._name} is not ready after {timeout_s:g} s: {self.tail}")

    @property
    def tail(self) -> str:
        """The last line of its log."""
        lines = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return lines[-1][:300] if lines else "it wrote nothing"

    def pause(self) -> None:
        """Take its processes off the processor."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let them go on."""
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        """End it at once, as the system does that is out of memory."""
        self._signal(signal.SIGKILL)
        self._process.wait()

    def stop(self) -> int:
        """Ask it to end, and end it where it does not; its exit code."""
        self.resume()
        self._signal(signal.SIGTERM)
        try:
            self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            pass
        self.kill()  # what it started may be left
        return self._process.returncode

    def usage(self) -> Usage:
        """What its processes hold now; zeros where the system does not tell (only Linux does)."""
        rss_bytes = fds = threads = 0
        for pid in _group(self.pid):
            with contextlib.suppress(OSError, ValueError):
                text = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
                fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
                if "VmRSS" in fields:  # it is no zombie
                    rss_bytes += 1024 * int(fields["VmRSS"].split()[0])
                    threads += int(fields["Threads"])
                    fds += len(os.listdir(f"/proc/{pid}/fd"))
        return Usage(rss_bytes, fds, threads)

    @property
    def _name(self) -> str:
        return f"`python -m {' '.join(self._words)}`"

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _group(leader: int) -> list[int]:
    """Processes of a group."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError):
            stat = (entry / "stat").read_text(encoding="utf-8")
            if int(stat.rpartition(")")[2].split()[2]) == leader:
                found.append(int(entry.name))
    return found
