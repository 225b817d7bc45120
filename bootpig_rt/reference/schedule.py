"""Reference schedules: at which noise level each step reads the subject, and whether it does.

Plain rules over step numbers. This file knows nothing about tables, subjects or solvers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from bootpig_rt.errors import ParameterError

IntArray = npt.NDArray[np.int64]

Mode = Literal["exact", "clean", "anchor", "stride"]

FORMS = "exact, clean, anchor:T, stride:K or window:A-B, or one of the first four with a window"
_EXAMPLE = "such as anchor:200, stride:4 or clean+window:0-0.6"
WHOLE = (0.0, 1.0)
_MAX_NUMBER = 1000


@dataclass(frozen=True)
class ReferenceSchedule:
    """Which noise level the Reference U-Net reads the subject at, step by step.

    - `exact`: each step has its own entry, the reference noised to that step's timestep, as the
      published pipeline computes it (paper, section 3.2).
    - `clean`: one entry for all steps, from latents without noise at t = 0. Exact for pairs trained
      with `reference_timestep` `clean` or `mixed`, an approximation for `same`.
    - `anchor`: one entry for all steps, the reference noised to `timestep`. An approximation.
    - `stride`: an entry at every k-th step; the steps between read the latest one. An
      approximation.

    Each of them may have a window, a share of the steps that read the reference. The others draw
    from the prompt alone and run fewer rows. An approximation.

    Attributes:
        mode: One of the above.
        timestep: Of `anchor` only, 1 or more.
        stride: k of `stride` only, 2 or more.
        window: First and last of the share of the steps that read the reference, 0 to 1.
    """

    mode: Mode
    timestep: int = 0
    stride: int = 1
    window: tuple[float, float] = WHOLE

    @classmethod
    def parse(cls, text: object, default: Mode = "exact") -> ReferenceSchedule:
        """Read `exact`, `clean`, `anchor:T`, `stride:K`, `window:A-B`, `stride:2+window:0-0.5`.

        `anchor:0` is `clean` and `stride:1` is `exact`.

        Args:
            text: What the user gave.
            default: What a window alone is a window of: the pair's own schedule.

        Raises:
            ParameterError: Anything else.
        """
        parts = text.split("+") if isinstance(text, str) else []
        windows = [part for part in parts if part.startswith("window:")]
        modes = [part for part in parts if not part.startswith("window:")]
        schedule = _mode(modes[0]) if len(modes) == 1 else None if modes else cls(default)
        if parts and len(windows) <= 1 and schedule is not None:
            window = parse_share(windows[0].removeprefix("window:")) if windows else WHOLE
            if window is not None:
                return replace(schedule, window=window)
        raise ParameterError(f"reference schedule is {text!r}, expected {FORMS}, {_EXAMPLE}")

    @classmethod
    def default_for(cls, reference_timestep: str) -> ReferenceSchedule:
        """The schedule that is exact for a pair at the least cost.

        Args:
            reference_timestep: How the pair was trained: `same`, `clean` or `mixed`.
        """
        return cls("exact" if reference_timestep == "same" else "clean")

    def is_exact_for(self, reference_timestep: str) -> bool:
        """Whether a pair trained that way has seen references at these noise levels."""
        trained = {"same": ("exact",), "clean": ("clean",), "mixed": ("exact", "clean")}
        return self.mode in trained[reference_timestep] and self.window == WHOLE

    def entry_of_step(self, num_steps: int) -> IntArray:
        """The entry of the table that each step reads, int64 [T]; -1 outside the window.

        Raises:
            ParameterError: No step lies in the window.
        """
        steps = steps_of_share(self.window, num_steps)
        if not steps:
            raise ParameterError(
                f"reference schedule is {self}, but none of {num_steps} steps lies in its window; "
                "widen it, or draw without a subject"
            )
        entries = np.full(num_steps, -1, dtype=np.int64)
        inside = np.arange(len(steps))
        if self.mode in ("clean", "anchor"):
            entries[steps.start : steps.stop] = 0
        else:
            entries[steps.start : steps.stop] = inside // self.stride
        return entries

    def timesteps(self, solver_timesteps: IntArray) -> IntArray:
        """Timesteps of the table's entries, int64 [E].

        Args:
            solver_timesteps: int64 [T]; not read where one entry serves all steps.

        Raises:
            ParameterError: No step lies in the window.
        """
        if self.mode in ("clean", "anchor"):
            return np.array([self.timestep], dtype=np.int64)
        entries = self.entry_of_step(len(solver_timesteps))
        _, first = np.unique(entries, return_index=True)
        return solver_timesteps[[step for step in first.tolist() if entries[step] >= 0]]

    def __str__(self) -> str:
        """The form that `parse` reads."""
        number = {"anchor": f":{self.timestep}", "stride": f":{self.stride}"}.get(self.mode, "")
        if self.window == WHOLE:
            return f"{self.mode}{number}"
        return f"{self.mode}{number}+window:{self.window[0]:g}-{self.window[1]:g}"


def parse_share(text: str) -> tuple[float, float] | None:
    """Read `A-B` with 0 <= A < B <= 1; None where it is not of that form."""
    low, dash, high = text.partition("-")
    try:
        share = float(low), float(high)
    except ValueError:
        return None
    plain = all(set(part) <= set("0123456789.") for part in (low, high))
    return share if dash and plain and 0 <= share[0] < share[1] <= 1 else None


def steps_of_share(share: tuple[float, float], num_steps: int) -> range:
    """The steps i of T with A <= i / T < B; the tolerance is that of writing 0.6 in binary."""
    start, stop = (math.ceil(end * num_steps - 1e-9) for end in share)
    return range(start, stop)


def _mode(text: str) -> ReferenceSchedule | None:
    name, colon, argument = text.partition(":")
    if name in ("exact", "clean") and not colon:
        return ReferenceSchedule("exact" if name == "exact" else "clean")
    if not (argument.isascii() and argument.isdigit() and len(argument) < 10):
        return None
    number = int(argument)
    if name == "anchor":
        return ReferenceSchedule("anchor", number) if number else ReferenceSchedule("clean")
    if name == "stride" and 1 <= number <= _MAX_NUMBER:
        return ReferenceSchedule("stride", stride=number) if number > 1 else _mode("exact")
    return None
