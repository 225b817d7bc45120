"""One piece of a run, in a process of its own.

    python -m tests.fuzz.worker KIND SEED BEGIN END WORK

The input that is being read lies in a file, so that it is known what ended the process. Found is,
beside errors of other kinds than ours, whatever warns, is not closed, takes too much time or
memory, or stays in memory.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import gc
import logging
import os
import resource
import signal
import struct
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType

import msgspec

from tests.fuzz.checks import Checks
from tests.fuzz.kinds import KINDS, input_of
from tests.fuzz.results import Finding, Piece
from tests.fuzz.usage import Usage

MAX_CPU_S = 5.0
"""Of one input. Most take milliseconds: one that takes longer hangs, on any machine."""

MAX_PEAK_MIB = 256.0
"""Of one input: a service reads pictures of 16 megapixels, at some bytes a pixel."""

MAX_GROWTH_MIB = 24.0
"""Over a piece; allocators need some, a leak of 10 kB an input takes more."""

_ADDRESS_SPACE = 8 << 30
_FILES_OF_A_KIND = 3
_HEAD = struct.Struct("<q")


class Hang(BaseException):
    """An input takes too long; no `except` of the code that reads it catches this."""


class NowFile:
    """The input that is being read, for whoever finds this process dead."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)

    def write(self, index: int, data: bytes) -> None:
        """Before an input is read."""
        os.pwrite(self._descriptor, _HEAD.pack(index) + data, 0)
        os.ftruncate(self._descriptor, _HEAD.size + len(data))


def read_now(path: Path) -> tuple[int, bytes] | None:
    """Index and bytes of the last input of a process; None where it read none."""
    data = path.read_bytes() if path.exists() else b""
    return (_HEAD.unpack_from(data)[0], data[_HEAD.size :]) if len(data) >= _HEAD.size else None


def now_path(work: Path, name: str) -> Path:
    """Where that file lies."""
    return work / "now" / name


@contextlib.contextmanager
def within_limits(cpu_s: float) -> Iterator[None]:
    """`Hang` is raised in the block once it has taken too much processor time."""

    def end(_: int, __: FrameType | None) -> None:
        raise Hang(f"over {cpu_s:g} s of processor time")

    before = signal.signal(signal.SIGPROF, end)
    signal.setitimer(signal.ITIMER_PROF, cpu_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


class Findings:
    """What was wrong, with few files of each kind of it."""

    def __init__(self, folder: Path, kind: str, seed: int) -> None:
        self._folder, self._name = folder, f"{kind}-{seed}"
        self._seen: Counter[str] = Counter()
        self.all: list[Finding] = []

    def add(self, index: int, what: str, data: bytes) -> None:
        """One more; `what` is the same for the same fault but for what stands in brackets."""
        self._seen[what.partition("(")[0]] += 1
        file = ""
        if self._seen[what.partition("(")[0]] <= _FILES_OF_A_KIND:
            self._folder.mkdir(parents=True, exist_ok=True)
            path = self._folder / f"{self._name}-{index}.input"
            path.write_bytes(data)
            file = str(path)
        self.all.append(Finding(index, what, file))


def told(error: BaseException) -> str:
    """An error in a line, with the last place in our code that it went through."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [one for one in frames if "bootpig_rt" in one.filename]
    last = (ours or frames)[-1]
    place = f"{Path(last.filename).name}:{last.lineno}"
    return " ".join(f"{type(error).__name__} at {place} ({error})".split())[:400]


def check_input(checks: Checks, kind: str, data: bytes) -> tuple[str, str | None]:
    """How an input went, and what was wrong with that."""
    check = KINDS[kind].check
    assert check is not None
    _WARNED.clear()
    outcome, wrong = "", None
    try:
        with within_limits(MAX_CPU_S):
            outcome = check(checks, data)
    except (Exception, Hang) as error:
        outcome, wrong = type(error).__name__, told(error)
    if wrong is None and _WARNED:
        wrong = f"a warning ({_WARNED[0]})"
    return outcome, wrong


def run_piece(kind: str, seed: int, begin: int, end: int, work: Path) -> Piece:
    """Read some inputs, one after the other."""
    start, usage, outcomes = time.monotonic(), Usage(), Counter[str]()
    findings = Findings(work / "found", kind, seed)
    now = NowFile(now_path(work, f"{kind}-{seed}-{begin}-{end}"))
    made = work / "made"
    peak_mib, settled_mib, num_files = 0.0, 0.0, 0
    with TemporaryDirectory() as folder:
        checks = Checks(Path(folder), made)
        for index in range(begin, end):
            data = input_of(kind, seed, index, made)
            now.write(index, data)
            usage.forget_peak()
            before_mib = usage.memory_mib()
            outcome, wrong = check_input(checks, kind, data)
            outcomes[outcome] += 1
            taken_mib = usage.peak_mib() - before_mib
            peak_mib = max(peak_mib, taken_mib)
            if wrong is None and taken_mib > MAX_PEAK_MIB:
                wrong = f"memory ({taken_mib:.0f} MiB)"
            if wrong is not None:
                findings.add(index, wrong, data)
            if index == begin + (end - begin) // 3:
                settled_mib, num_files = _settled_mib(usage), usage.num_files()
        growth_mib = _settled_mib(usage) - settled_mib
        new_files = usage.num_files() - num_files
        checks.close()
    if growth_mib > MAX_GROWTH_MIB:
        findings.add(-1, f"growth ({growth_mib:.0f} MiB in {end - begin} inputs)", b"")
    if new_files > 0:
        findings.add(-1, f"files left open ({new_files})", b"")
    return Piece(
        kind=kind,
        seed=seed,
        begin=begin,
        end=end,
        outcomes=dict(outcomes),
        findings=findings.all,
        seconds=time.monotonic() - start,
        peak_mib=peak_mib,
        growth_mib=growth_mib,
    )


def _settled_mib(usage: Usage) -> float:
    """Memory that is in use, without what the allocator could give back."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # another libc
        ctypes.CDLL(None).malloc_trim(0)
    return usage.memory_mib()


_WARNED: list[str] = []
"""Of the input that is being read: warnings, and errors where nobody could catch them."""


def prepare_process() -> None:
    """Warnings are noted, memory has an end, a crash says where it was."""
    faulthandler.enable()
    warnings.simplefilter("always", append=True)  # behind the filters that a service has
    warnings.simplefilter("always", ResourceWarning)
    warnings.showwarning = lambda text, kind, *_: _WARNED.append(f"{kind.__name__}: {text}")
    sys.unraisablehook = lambda args: _WARNED.append(f"{args.exc_type.__name__}: {args.exc_value}")
    logging.getLogger().addHandler(logging.NullHandler())
    resource.setrlimit(resource.RLIMIT_AS, (_ADDRESS_SPACE, _ADDRESS_SPACE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def main(words: list[str]) -> int:
    """Print the piece as JSON."""
    kind, seed, begin, end, work = words
    prepare_process()
    piece = run_piece(kind, int(seed), int(begin), int(end), Path(work))
    sys.stdout.buffer.write(msgspec.json.encode(piece))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
