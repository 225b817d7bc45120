"""A whole run: inputs in pieces, each in a process of its own, that goes on where it was.

Of a process that crashed or hung, the input is kept, and the others of its piece are read again
without it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import msgspec

from tests.fuzz.corpus import ROOT
from tests.fuzz.kinds import KINDS
from tests.fuzz.made import make_all
from tests.fuzz.results import Finding, Piece, joined, read_piece
from tests.fuzz.usage import Usage
from tests.fuzz.worker import MAX_CPU_S, now_path, read_now

_PIECES = {"request": 1200}
_PIECE = 2500
_LOOK_EVERY_S = 0.5
_HANG_CPU_S = 6 * MAX_CPU_S
"""For code that does not come back to Python, where it would be told that its time is over."""


@dataclass(frozen=True)
class Plan:
    """What is run.

    Attributes:
        inputs: Of all kinds together.
        kinds: Names of them.
        seed: Draws the inputs.
        work: Folder that holds what was done, and what was found.
        jobs: Processes at once.
    """

    inputs: int
    kinds: tuple[str, ...]
    seed: int
    work: Path
    jobs: int

    def pieces(self) -> list[tuple[str, int, int]]:
        """Kind, begin and end of each."""
        total = sum(KINDS[kind].share for kind in self.kinds)
        found = []
        for kind in self.kinds:
            count = -(-self.inputs * KINDS[kind].share // total)
            step = _PIECES.get(kind, _PIECE)
            found += [(kind, at, min(count, at + step)) for at in range(0, count, step)]
        return found


class Campaign:
    """Runs a plan.

    Args:
        plan: What to do.
        tell: Hears of every piece that is done, also of those that an earlier run did.
    """

    def __init__(self, plan: Plan, tell: Callable[[Piece], object]) -> None:
        self._plan, self._tell = plan, tell
        self._stop = threading.Event()

    def run(self) -> list[Piece]:
        """All pieces of the plan."""
        work = self._plan.work
        for name in ("pieces", "now", "found"):
            (work / name).mkdir(parents=True, exist_ok=True)
        make_all(work / "made")
        done, left = [], []
        for kind, begin, end in self._plan.pieces():
            file = work / "pieces" / f"{kind}-{self._plan.seed}-{begin}-{end}.json"
            if file.exists():
                done.append(read_piece(file))
                self._tell(done[-1])
            else:
                left.append((kind, begin, end))
        with ThreadPoolExecutor(self._plan.jobs) as pool:
            running = [pool.submit(self._run, *one) for one in left]
            try:
                for future in as_completed(running):
                    piece = future.result()
                    piece.write(work / "pieces")
                    self._tell(piece)
                    done.append(piece)
            except BaseException:
                self._stop.set()
                pool.shutdown(cancel_futures=True)
                raise
        return done

    def _run(self, kind: str, begin: int, end: int) -> Piece:
        pieces = list(self._parts(kind, begin, end))
        return msgspec.structs.replace(joined(pieces), begin=begin, end=end)

    def _parts(self, kind: str, begin: int, end: int) -> Iterator[Piece]:
        """One piece, or several around inputs that end a process."""
        if begin >= end:
            return
        answer = self._process(kind, begin, end)
        if isinstance(answer, Piece):
            yield answer
            return
        index = answer.index
        yield Piece(kind, self._plan.seed, index, index + 1, {"crash": 1}, [answer], 0.0, 0.0, 0.0)
        yield from self._parts(kind, begin, index)
        yield from self._parts(kind, index + 1, end)

    def _process(self, kind: str, begin: int, end: int) -> Piece | Finding:
        plan = self._plan
        numbers = [str(plan.seed), str(begin), str(end), str(plan.work)]
        words = ["tests.fuzz.asking"] if kind == "request" else ["tests.fuzz.worker", kind]
        process = subprocess.Popen(
            [sys.executable, "-m", *words, *numbers],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )
        now = now_path(plan.work, f"{kind}-{plan.seed}-{begin}-{end}")
        watcher = threading.Thread(target=self._watch, args=(process, now), daemon=True)
        watcher.start()
        out, errors = process.communicate()
        watcher.join()
        if process.returncode == 0:
            now.unlink(missing_ok=True)
            return msgspec.json.decode(out, type=Piece)
        last = read_now(now)
        told = errors.decode("utf-8", "replace").strip()
        if self._stop.is_set() or last is None or process.returncode > 0:
            raise RuntimeError(
                f"{kind} {begin}..{end} ended with {process.returncode}: {told[-3000:]}"
            )
        index, data = last
        name = signal.Signals(-process.returncode).name
        file = plan.work / "found" / f"{kind}-{plan.seed}-{index}.input"
        file.write_bytes(data)
        place = " ".join(told.split())[:300]
        return Finding(index, f"ended the process with {name} ({place})", str(file))

    def _watch(self, process: subprocess.Popen[bytes], now: Path) -> None:
        """End a process that is with one input for too much processor time, or is not wanted."""
        usage, index, begun_s = Usage(process.pid), None, 0.0
        while process.poll() is None:
            time.sleep(_LOOK_EVERY_S)
            if self._stop.is_set():
                process.terminate()
                continue
            try:
                last, cpu_s = read_now(now), usage.cpu_s()
            except (OSError, ValueError):  # it is ending
                continue
            if last is None or last[0] != index:
                index, begun_s = None if last is None else last[0], cpu_s
            elif cpu_s - begun_s > _HANG_CPU_S:
                process.send_signal(signal.SIGKILL)
