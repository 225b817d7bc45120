"""A command in a process of its own: how long it takes, and how much memory at most."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bootpig_rt.errors import BootPIGError

_KILO = 1 if sys.platform == "darwin" else 1024


@dataclass(frozen=True)
class ChildRun:
    """What a process took.

    Attributes:
        wall_ms: From its start to its end.
        peak_bytes: Largest resident memory.
    """

    wall_ms: float
    peak_bytes: int


def run_child(words: Sequence[str], *, environment: Mapping[str, str] | None = None) -> ChildRun:
    """Run `python WORDS` to its end.

    Args:
        words: Such as `["-m", "bootpig_rt", "demo"]`.
        environment: In addition to that of this process.

    Raises:
        BootPIGError: It failed; the last line that it wrote is in the message.
    """
    with tempfile.TemporaryFile() as errors:
        start = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, *words],
            stdout=subprocess.DEVNULL,
            stderr=errors,
            env={**os.environ, **(environment or {})},
        )
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            process.kill()
            process.wait()
            raise
        wall_ms = 1e3 * (time.perf_counter() - start)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            errors.seek(0)
            last = errors.read().decode(errors="replace").strip().splitlines()[-1:] or [""]
            raise BootPIGError(
                f"`{' '.join(words)}` ended with code {process.returncode}: {last[0]}"
            )
    return ChildRun(wall_ms, usage.ru_maxrss * _KILO)
