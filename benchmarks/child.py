"""A command in a process of its own: how long it takes, and how much memory at most."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bootpig_rt.errors import BootPIGError

# The resources that `wait4` reports begin with the memory of the process that forked: a child of a
# large process always looks large. So the child says itself what it took, when it ends.
_BOOT = """
import atexit, sys
def peak(path=sys.argv[1]):
    with open("/proc/self/status") as status, open(path, "w") as out:
        out.writelines(line for line in status if line.startswith("VmHWM:"))
if sys.platform == "linux":
    import ctypes
    ctypes.CDLL(None).prctl(1, 9)  # PR_SET_PDEATHSIG: it ends with whoever waits for it
    atexit.register(peak)
kind, what = sys.argv[2:4]
sys.argv[:] = [kind, *sys.argv[4:]]
if kind == "-c":
    exec(compile(what, "<string>", "exec"), {"__name__": "__main__"})
else:
    import runpy
    runpy.run_module(what, run_name="__main__", alter_sys=True)
"""


_SAMPLE_S = 0.1


@dataclass(frozen=True)
class ChildRun:
    """What a process took.

    Attributes:
        wall_ms: From its start to its end.
        peak_bytes: Largest resident memory, of this process alone; None where the system does not
            tell (only Linux does).
        output: What it wrote on stdout.
        own_bytes: Largest part of the memory that maps no file, as it was seen ten times a second:
            the system takes pages of files back whenever somebody needs room. None as above.
    """

    wall_ms: float
    peak_bytes: int | None
    output: str = ""
    own_bytes: int | None = None


def run_child(
    words: Sequence[str],
    *,
    environment: Mapping[str, str] | None = None,
    timeout_s: float | None = None,
) -> ChildRun:
    """Run `python -c CODE ...` or `python -m MODULE ...` to its end.

    Args:
        words: Such as `["-m", "bootpig_rt", "demo"]`; the first is `-c` or `-m`.
        environment: In addition to that of this process.
        timeout_s: It is ended after so long; None: never.

    Raises:
        BootPIGError: It failed, and the last line that it wrote is in the message; or it took
            longer than it may.
    """
    with (
        tempfile.TemporaryFile() as output,
        tempfile.TemporaryFile() as errors,
        tempfile.TemporaryDirectory() as folder,
    ):
        told = Path(folder) / "peak"
        start = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-c", _BOOT, str(told), *words],
            stdout=output,
            stderr=errors,
            env={**os.environ, **(environment or {})},
        )
        try:
            with _own_memory(process.pid) as own:
                process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise BootPIGError(
                f"`{' '.join(words[:2])}` was ended after {timeout_s:.0f} s, its limit"
            ) from None
        except BaseException:
            process.kill()
            process.wait()
            raise
        wall_ms = 1e3 * (time.perf_counter() - start)
        if process.returncode:
            errors.seek(0)
            last = errors.read().decode(errors="replace").strip().splitlines()[-1:] or [""]
            raise BootPIGError(
                f"`{' '.join(words)}` ended with code {process.returncode}: {last[0]}"
            )
        output.seek(0)
        text = output.read().decode(errors="replace")
        return ChildRun(wall_ms, _peak_bytes(told), text, max(own, default=None))


@contextmanager
def _own_memory(pid: int) -> Iterator[list[int]]:
    """Bytes that a process has to itself, seen every `_SAMPLE_S` in the body."""
    seen: list[int] = []
    is_over = threading.Event()

    def look() -> None:
        path = Path(f"/proc/{pid}/status")
        while not is_over.wait(_SAMPLE_S):
            try:
                lines = path.read_text(encoding="ascii", errors="replace").splitlines()
            except OSError:  # another system than Linux, or it has just ended
                return
            own = (line for line in lines if line.startswith(("RssAnon:", "RssShmem:")))
            seen.append(1024 * sum(int(line.split()[1]) for line in own))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        is_over.set()
        thread.join()


def _peak_bytes(path: Path) -> int | None:
    """The number of a line `VmHWM:  1234 kB`."""
    words = path.read_text(encoding="utf-8").split() if path.is_file() else []
    return 1024 * int(words[1]) if len(words) == 3 else None
